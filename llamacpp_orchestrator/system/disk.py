"""What will be written to the disks of this machine, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import FULL
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.disk import shortage
from llamacpp_orchestrator.util.units import size

MARGIN = 50_000_000


class Need(msgspec.Struct, frozen=True):
    """Bytes that will be written below a folder, and for what; an estimate when `exact` is false."""

    folder: str
    bytes: int
    what: str
    exact: bool = True


def check_space(needs: Iterable[Need]) -> None:
    """Raise OrchestrateError when a disk cannot hold what will be written to it, saying how much is missing where."""
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(existing(need.folder).stat().st_dev, []).append(need)
    lines = []
    for group in disks.values():
        if lacking := shortage(existing(group[0].folder), sum(need.bytes for need in group) + MARGIN):
            parts = ", ".join(f"{size(need.bytes)} for {need.what}" for need in sorted(group, key=lambda need: -need.bytes)[:4])
            lines.append(f"{lacking} ({parts})")
    if lines:
        raise OrchestrateError("the disk cannot hold this job: " + "; ".join(lines), FULL)


def existing(folder: str | Path) -> Path:
    """The nearest folder that is there already: a path itself, or what it will be made in."""
    path = Path(folder).absolute()
    return next((parent for parent in (path, *path.parents) if parent.exists()), path)
