"""The network is cut at each request: now and then, which a new try heals, or for good, until the next run."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import Any

import msgspec

from tests.crash.kills import wrong
from tests.crash.scene import Scene
from tests.crash.world import World


class Cut(msgspec.Struct):
    """Counts requests, and drops the one of a number (0: none) and every so many after it; all of them where that is 1."""

    at: int = 0
    step: int = 1
    seen: int = 0
    lock: Any = msgspec.field(default_factory=threading.Lock)

    def drops(self) -> bool:
        """Whether the request that comes now is dropped."""
        with self.lock:
            self.seen += 1
            return bool(self.at) and self.seen >= self.at and not (self.seen - self.at) % self.step


def cutting(scene: Scene) -> Cut:
    """A cut that both servers ask about every request."""
    cut = Cut()
    for server in (scene.hub, scene.github):
        _ask(server, cut)
    return cut


def _ask(server: ThreadingHTTPServer, cut: Cut) -> None:
    before: Any = server.RequestHandlerClass

    class Route(before):  # type: ignore[misc]
        def parse_request(self: BaseHTTPRequestHandler) -> bool:
            known = bool(before.parse_request(self))
            if known and cut.drops():
                # Reset, as a router does that has lost its table.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return False
            return known

        def handle(self: BaseHTTPRequestHandler) -> None:
            with contextlib.suppress(OSError, ValueError):
                before.handle(self)

        def finish(self: BaseHTTPRequestHandler) -> None:
            with contextlib.suppress(OSError, ValueError):
                before.finish(self)

    server.RequestHandlerClass = Route


def survived(world: World, cut: Cut, at: int, step: int, reference: Mapping[str, str]) -> list[str]:
    """What is wrong after a run with such cuts, and after the next."""
    cut.at, cut.step, cut.seen = at, step, 0
    first = world.run()
    cut.at = 0
    if first.code == 0:
        return wrong(world, 0, "", reference)
    complaints = told(first.code, first.said)
    again = world.run()
    return complaints + wrong(world, again.code, again.said, reference)


def told(code: int, said: str) -> list[str]:
    """What is wrong with a failure: another exit code than 1, or no text that tells of it."""
    if code == 1 and "error: " in said and "Traceback" not in said:
        return []
    return [f"exit {code} with a text that helps nobody: {' | '.join(said.splitlines()[-6:])}"]
