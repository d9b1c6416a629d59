"""What ends children when the driver itself is killed: a guard on POSIX (inside/child_guard.py), a job object on Windows."""

from __future__ import annotations

import atexit
import ctypes
import sys
from typing import Any

from llamacpp_orchestrator import inside

LIMITS, KILL_ON_CLOSE = 9, 0x2000  # JobObjectExtendedLimitInformation, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE (winnt.h)
# JOBOBJECT_EXTENDED_LIMIT_INFORMATION as 32-bit numbers, of which the fifth holds the flags.
NUMBERS, FLAGS = 36 if sys.maxsize > 1 << 32 else 28, 4


def guard() -> tuple[str, ...]:
    """The command of the guard, which needs nothing that is installed."""
    return (sys.executable, "-I", "-S", str(inside.path("child_guard")))


def tie() -> None:
    """Let Windows end every child with this process, except when it ends in good order: then nothing of ours is left."""
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - known on Windows only
    kernel.CreateJobObjectW.restype = kernel.GetCurrentProcess.restype = ctypes.c_void_p
    job = ctypes.c_void_p(kernel.CreateJobObjectW(None, None))
    # Some sandboxes refuse; then there is one safety less, and nothing to tell.
    if _limit(kernel, job, KILL_ON_CLOSE) and kernel.AssignProcessToJobObject(job, ctypes.c_void_p(kernel.GetCurrentProcess())):
        # What a program of the user's has started for good, such as a server, may then stay.
        atexit.register(_limit, kernel, job, 0)


def _limit(kernel: Any, job: ctypes.c_void_p, flags: int) -> bool:
    record = (ctypes.c_uint32 * NUMBERS)()
    record[FLAGS] = flags
    return bool(kernel.SetInformationJobObject(job, LIMITS, ctypes.byref(record), ctypes.sizeof(record)))
