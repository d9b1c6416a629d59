"""What killed runs of this machine have left beside a job, its outputs and the cache's small files: swept by the next run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.util.store import machine

LIMITED_INFORMATION = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION (winnt.h)


def sweep_folder(folder: Path) -> None:
    """Remove what killed runs have left in one folder; what cannot be removed stays, for it harms nobody."""
    with contextlib.suppress(OSError):
        for path in list(folder.glob(f".{machine()}.*.new")):
            writer = re.fullmatch(r"\.[0-9a-f]{8}\.(\d+)\.[0-9a-f]{12}\.new", path.name)
            if writer and not alive(int(writer[1])):
                path.unlink(missing_ok=True)


def alive(number: int) -> bool:
    """Whether there is a process of that number on this machine."""
    if sys.platform == "win32" or os.name == "nt":
        kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - known on Windows only
        handle = kernel.OpenProcess(LIMITED_INFORMATION, False, number)
        return bool(handle and kernel.CloseHandle(handle))
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True
