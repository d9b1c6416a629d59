"""Digests of files and folders, read once, until a signal ends it."""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.util import background
from llamacpp_orchestrator.util.cancel import look_for_stop

BUFFER = 1 << 20  # bytes
AHEAD = 4  # buffers that are read before the digest has them all
POLL_SECONDS = 0.02


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    return file_digest(path, hashlib.sha256())


def file_digest(path: Path, digest: Any) -> str:
    """What a digest that has begun comes to with a file's bytes, in hex; Stopped where a signal ends it."""
    with path.open("rb", buffering=0) as file:
        # One buffer for all of it: a megabyte that is made anew for each read costs a fifth of the time.
        buffer = bytearray(max(1, min(BUFFER, os.fstat(file.fileno()).st_size)))
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            look_for_stop()
            digest.update(view[:count])
    return str(digest.hexdigest())


def read_through(
    file: io.FileIO, lengths: Iterable[int], digest: Any, written: threading.Event | None = None
) -> Iterator[bytearray]:
    """The next parts of a file, so many bytes each, while a digest takes them beside; EOFError where the file ends before.

    A part holds until the next is asked for. It may be longer than was asked for: what comes after is of another part. A file
    that somebody writes just now has its end only when it is `written`.
    """
    full: queue.SimpleQueue[tuple[bytearray, int]] = queue.SimpleQueue()
    free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()

    def take() -> None:
        for buffer, length in iter(full.get, (b"", 0)):
            digest.update(memoryview(buffer)[:length])
            free.put(buffer)

    end = background.begin(take)
    made, most = 0, BUFFER if written else min(BUFFER, os.fstat(file.fileno()).st_size)
    try:
        for length in lengths:
            look_for_stop()
            buffer = bytearray(max(most, length)) if made < AHEAD else free.get()
            made += 1
            if _filled(file, memoryview(buffer)[:length], written) < length:
                raise EOFError
            full.put((buffer, length))
            yield buffer
    finally:
        full.put((bytearray(), 0))
        end()


def _filled(file: io.FileIO, space: memoryview, written: threading.Event | None) -> int:
    done = 0
    while done < len(space):
        whole = written is None or written.is_set()  # before it is read: what is written meanwhile is read next time
        count = file.readinto(space[done:])
        if not count and whole:
            break
        if not count and written:
            written.wait(POLL_SECONDS)
        done += count
    return done


def folder_sha256(root: Path, wanted: Callable[[str], bool] = lambda name: True) -> str:
    """The sha256 over the sorted paths (with slashes) and contents of the wanted files below a folder."""
    digest = hashlib.sha256()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    for name in filter(wanted, names):
        digest.update(f"{name}\0{file_sha256(root / name)}\n".encode())
    return digest.hexdigest()
