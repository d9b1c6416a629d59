"""A server on loopback that answers every question with what an example wants it to say."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import huggingface_hub.hf_api  # noqa: F401  loaded here, so that the first reader's second is not spent on it
import pypi_simple  # noqa: F401
import requests  # noqa: F401

from llamacpp_orchestrator.models import hub_session
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
from tests.fuzz.common import folder


class Server(http.server.ThreadingHTTPServer):
    """Answers by the beginning of the path, "" for all others: body and headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Route)
        self.says: dict[str, tuple[bytes, dict[str, str]]] = {}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Route(http.server.BaseHTTPRequestHandler):
    """One question."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Say what the example wants."""
        found = [begin for begin in self.server.says if self.path.startswith(begin)]
        body, headers = self.server.says[max(found, key=len)] if found else (b"", {})
        status = int(headers.get("status", 200 if found else 404))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
            if name != "status":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of it."""


@functools.cache
def server() -> Server:
    """The one server of this process."""
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made


@contextlib.contextmanager
def saying(**says: Any) -> Iterator[Server]:
    """The server, which says this meanwhile: path → (body, headers). Nobody waits before asking again."""
    found, waits = server(), (download.BACKOFF_SECONDS, hub_session.WAIT_SECONDS)
    found.says = says
    download.BACKOFF_SECONDS = hub_session.WAIT_SECONDS = 0.0
    try:
        yield found
    finally:
        download.BACKOFF_SECONDS, hub_session.WAIT_SECONDS = waits


def settings(url: str) -> Settings:
    """A machine whose every server is the one at a URL."""
    with folder() as here:
        return Settings(
            cache=here, github=(url,), github_api=(url,), huggingface=(url,), index=Index(index_urls=(f"{url}/simple",))
        )
