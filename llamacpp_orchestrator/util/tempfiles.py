"""What killed runs of this machine have left beside a job, its outputs and the cache's small files: swept by the next run."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from llamacpp_orchestrator.util.store import machine


def sweep_folder(folder: Path) -> None:
    """Remove what killed runs have left in one folder; what cannot be removed stays, for it harms nobody."""
    with contextlib.suppress(OSError):
        for path in list(folder.glob(f".{machine()}.*.new")):
            import psutil  # nearly always there is nothing

            writer = re.fullmatch(r"\.[0-9a-f]{8}\.(\d{1,9})\.[0-9a-f]{12}\.new", path.name)
            if writer and not psutil.pid_exists(int(writer[1])):
                path.unlink(missing_ok=True)
