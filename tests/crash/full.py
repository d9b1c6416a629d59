"""Disks that are too small: for the cache, for the outputs, for both."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tests.crash import world as worlds
from tests.crash.cuts import told
from tests.crash.kills import wrong
from tests.crash.remains import remains
from tests.crash.scene import Scene
from tests.crash.world import World
from tests.support.disks import mounted


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A small disk: its size in MB, and what lies on it."""

    size: int
    cache: bool = False
    output: bool = False

    def __str__(self) -> str:
        what = [name for name in ("cache", "output") if getattr(self, name)]
        return f"{self.size} MB for {' and '.join(what)}"


# Around what each of them takes: a package of 37 MB, its tree, copies of 9 MB; files of 9 and 5 MB.
DISKS = (
    *(Disk(size=size, cache=True) for size in (4, 30, 41, 52, 56)),
    *(Disk(size=size, output=True) for size in (1, 8, 14, 20)),
    *(Disk(size=size, cache=True, output=True) for size in (41, 58, 70)),
)


def survived(scene: Scene, name: str, disk: Disk, other: Path, reference: Mapping[str, str]) -> tuple[bool, list[str]]:
    """Whether a disk was too small, and what is wrong after a run on it, and after the next, when it has grown.

    `other` is a warm cache on a disk that is large enough.
    """
    place = scene.scratch / name / "disk"
    with mounted(place, disk.size):
        cache = place / "cache" if disk.cache else None
        # An environment and the programs are larger than all of this, and made by others: they lie elsewhere.
        if cache:
            _elsewhere(cache, other, "home", "builds")
        world = worlds.make(scene, name, "pypi", cache, place / "dist" if disk.output else None)
        if cache:
            _elsewhere(cache, other, "environments")
        failed, complaints = _first(world)
        subprocess.run(["mount", "-o", "remount,size=600m", str(place)], check=True)
        again = world.run()
        return failed, complaints + wrong(world, again.code, again.said, reference)


def _elsewhere(cache: Path, other: Path, *kinds: str) -> None:
    cache.mkdir(exist_ok=True)
    for kind in kinds:
        (cache / kind).symlink_to(other / kind)


def _first(world: World) -> tuple[bool, list[str]]:
    first = world.run()
    if not first.code:
        return False, []
    # A download that can be gone on with may stay; nothing else.
    left = [each for each in remains(world) if not each.endswith(".part")]
    return True, told(first.code, first.said) + [f"left by the failure: {each}" for each in left]
