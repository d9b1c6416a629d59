"""S3 on 127.0.0.1 as moto plays it, with the faults of a network between."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Environ = dict[str, Any]
KEYS = {"AWS_ACCESS_KEY_ID": "stage", "AWS_SECRET_ACCESS_KEY": "stage-secret-key", "AWS_DEFAULT_REGION": "us-east-1"}


class Faulty:
    """A WSGI application before another; `faults` has what befalls the next requests for outputs, by method, and how many."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.faults: dict[str, tuple[str, int]] = {}

    def __call__(self, environ: Environ, start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fault, left = self.faults.get(method, ("", 0))
        if not left or not path.endswith(".gguf"):
            return self.application(environ, start)
        self.faults[method] = fault, left - 1
        if fault == "after":  # what was asked is done, and its answer is lost
            list(self.application(environ, lambda *_: lambda _: None))
            start("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        if fault == "cut":
            environ["wsgi.input"].read(10)
            raise ConnectionAbortedError
        if fault == "full":
            start("507 Insufficient Storage", [("Content-Length", "0")])
            return [b""]
        if fault == "denied":
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        answer = b"".join(self.application(environ, start))
        return [answer[:-1] + bytes([answer[-1] ^ 1]) if fault == "flip" and answer else answer]


@contextmanager
def serving() -> Iterator[tuple[str, Faulty]]:
    """The address of a server with the bucket `models`, and what stands before it."""
    from moto.backends import get_backend
    from moto.server import DomainDispatcherApplication
    from moto.server import create_backend_app
    from werkzeug.serving import make_server

    get_backend("s3").reset()
    faulty = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faulty, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faulty
    finally:
        server.shutdown()
        thread.join()
