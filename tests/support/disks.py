"""Disks that are too small, or of which a system lets no program run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def possible() -> bool:
    """Whether this user may make small disks here."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def mounted(place: Path, size: int, *options: str) -> Iterator[None]:
    """A disk of so many MB at a place, with options of mount such as noexec and ro, as long as the block runs."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}m", *options)), "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
