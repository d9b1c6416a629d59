"""Digests of files and folders, read once, until a signal ends it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.util.cancel import look_for_stop

BUFFER = 1 << 20  # bytes


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


def folder_sha256(root: Path, wanted: Callable[[str], bool] = lambda name: True) -> str:
    """The sha256 over the sorted paths (with slashes) and contents of the wanted files below a folder."""
    digest = hashlib.sha256()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    for name in filter(wanted, names):
        digest.update(f"{name}\0{file_sha256(root / name)}\n".encode())
    return digest.hexdigest()
