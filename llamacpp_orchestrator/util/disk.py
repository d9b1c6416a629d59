"""The room on a disk: what is needed, what there is, and what is said where it does not do."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from llamacpp_orchestrator.errors import FULL
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.units import size

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


def flush(path: Path) -> None:
    """See that a file is on its disk; OSError where that refuses what was written before: a quota may be told only now."""
    try:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
