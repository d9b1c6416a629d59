"""A server on loopback whose routes are functions; it keeps what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer

Route = Callable[["Asked"], None]


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Route:
    """A route that says this; a header of no value is left out."""

    def route(request: Asked) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    return route


def in_turn(*routes: Route) -> Route:
    """The first route for the first request, and so on; the last for all that follow."""
    left = list(routes)
    return lambda request: (left.pop(0) if len(left) > 1 else left[0])(request)


def silent(request: Asked) -> None:
    """A route that says nothing until the server is closed."""
    request.server.over.wait(20)


class Server(ThreadingHTTPServer):
    """Answers a path, with its query or without, by `routes`, else by `otherwise`; `seen` has (method, path, headers)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.routes: dict[str, Route] = {}
        self.otherwise = answer(404)
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def times(self, path: str) -> int:
        """How often a path was asked for."""
        return [asked for _, asked, _ in self.seen].count(path)

    def server_close(self) -> None:
        """End, with what still waits."""
        self.over.set()
        self.shutdown()
        super().server_close()


class Asked(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        """Answer by the routes of the server."""
        self.server.seen.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        routes = self.server.routes
        (routes.get(self.path) or routes.get(self.path.partition("?")[0], self.server.otherwise))(self)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of it."""
