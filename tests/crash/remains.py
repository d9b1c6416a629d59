"""What must not be left: half-made files, held locks, and processes that nobody will end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.crash.world import World
from tests.support import folders


def remains(world: World) -> list[str]:
    """Everything that a run has left but its results."""
    locks = (f"{path} is held" for path in (world.cache / "locks").glob("*.lock") if held(path))
    return [*map(str, folders.remains(*places(world))), *locks]


def places(world: World) -> set[Path]:
    """All folders that runs write to."""
    return {world.root, world.cache, world.output}


def held(path: Path) -> bool:
    """Whether some process holds a lock."""
    if sys.platform == "win32":
        return False
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def orphans(root: Path, seconds: float = 3.0) -> list[str]:
    """The processes that still work on a world, after some time in which they may end."""
    deadline = time.monotonic() + seconds
    while (found := working(root)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def working(root: Path) -> list[str]:
    """The processes whose command, folder or environment names a world."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = [(process / name).read_bytes() for name in ("cmdline", "environ")] + [
                os.fsencode((process / "cwd").readlink())
            ]
        except OSError:
            continue
        if any(os.fsencode(f"{root}/") in text + b"/" for text in words):
            found.append(f"process {process.name}: {words[0].replace(bytes(1), b' ').decode(errors='replace')[:120]}")
    return found


def descendants(number: int) -> list[int]:
    """A process's children, their children, and so on."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            below.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except OSError:
            continue
    found, asked = [], [number]
    while asked:
        children = below.get(asked.pop(), [])
        found += children
        asked += children
    return found
