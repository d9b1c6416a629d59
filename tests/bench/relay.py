"""A road to a server on this machine that counts what comes back over it, headers and all."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from collections.abc import Iterator

import msgspec

CHUNK = 1 << 16


class Counted(msgspec.Struct):
    """The port of the road, and the bytes that the server has sent over it."""

    port: int
    received: int = 0


@contextlib.contextmanager
def relay(port: int) -> Iterator[Counted]:
    """A road to a port, open as long as the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        counted = Counted(port=door.getsockname()[1])
        lock = threading.Lock()

        def count(length: int) -> None:
            with lock:
                counted.received += length

        threading.Thread(target=_welcome, args=(door, port, count), daemon=True).start()
        yield counted


def _welcome(door: socket.socket, port: int, count: Callable[[int], None]) -> None:
    # The block's end closes the door, which ends the wait for callers.
    with contextlib.suppress(OSError):
        while True:
            near, _ = door.accept()
            far = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=_carry, args=(near, far, lambda length: None), daemon=True).start()
            threading.Thread(target=_carry, args=(far, near, count), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, count: Callable[[int], None]) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK):
            count(len(chunk))
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
