"""What runs leave behind: what killed ones had begun is swept by the next, and a log begins anew beside its older ones."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from llamacpp_orchestrator.util.store import machine

OLDER_LOGS = 3


def sweep_folder(folder: Path) -> None:
    """Remove what killed runs have left in one folder; what cannot be removed stays, for it harms nobody."""
    with contextlib.suppress(OSError):
        for path in list(folder.glob(f".{machine()}.*.new")):
            import psutil  # nearly always there is nothing

            writer = re.fullmatch(r"\.[0-9a-f]{8}\.(\d{1,9})\.[0-9a-f]{12}\.new", path.name)
            if writer and not psutil.pid_exists(int(writer[1])):
                path.unlink(missing_ok=True)


def renew(log: Path) -> Path:
    """Let a log begin anew, for an explanation reads what this run said; the older ones stay beside it (NAME.1.log, ...)."""
    names = [log, *(log.with_name(f"{log.stem}.{number}{log.suffix}") for number in range(1, OLDER_LOGS + 1))]
    with contextlib.suppress(OSError):  # on Windows another run may have it open: then both write to the one
        if log.exists():
            for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
                if newer.exists():
                    os.replace(newer, older)
    return log
