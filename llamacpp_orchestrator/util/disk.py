"""The room on a disk: what is needed, what there is, and what is said where it does not do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path

from llamacpp_orchestrator.errors import FULL
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.units import size

BACK_SECONDS = 0.25
NO_ROOM = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


def shortage(folder: Path, need: int, what: str = "") -> str:
    """How much a disk lacks to take so many bytes, "" where it has room."""
    free = shutil.disk_usage(folder).free
    return f"{folder}: need {size(need)}{what}, have {size(free)}, {size(need - free)} missing" if need > free else ""


def need_room(folder: Path, need: int, what: str) -> None:
    """Raise OrchestrateError where a disk cannot take so many bytes, with how many it has."""
    if lacking := shortage(folder, need, f" {what}"):
        raise OrchestrateError(lacking, FULL)


def full(folder: Path, when: str) -> OrchestrateError:
    """The disk that is full though it seemed to have room, or nothing had said how much it would take."""
    return OrchestrateError(f"{folder}: no space left on its disk {when}, have {size(shutil.disk_usage(folder).free)}", FULL)


def write_back(path: Path, written: threading.Event) -> None:
    """Have a file put on its disk while it is written, so that little is left to wait for at its end; Linux alone can do that."""
    at = 0
    while not written.wait(BACK_SECONDS):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # What is not on the disk yet begins to go there, and stays in memory (mm/fadvise.c).
            os.posix_fadvise(file.fileno(), at, size - at, os.POSIX_FADV_DONTNEED)
            at = size


def flush(path: Path) -> None:
    """See that a file is on its disk; OSError where that refuses what was written before: a quota may be told only now."""
    try:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
