"""A run mends a cache whose marks or entries were damaged, and is killed meanwhile; the next one must end well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path

from llamacpp_orchestrator.util.store import MARK
from tests.crash.kills import Moment
from tests.crash.kills import killed
from tests.crash.kills import wrong
from tests.crash.world import World

KINDS = ("source", "binaries", "views")  # all that a run makes of what others sent, but for environments, which cost most


def _cut(mark: Path, entry: Path) -> None:
    mark.write_bytes(mark.read_bytes()[:20])


def _folder(mark: Path, entry: Path) -> None:
    mark.unlink()
    (mark / "below").mkdir(parents=True)


def _shorten(mark: Path, entry: Path) -> None:
    file = max((path for path in entry.rglob("*") if path.is_file() and not path.is_symlink()), default=mark)
    content = file.read_bytes()[:-1]
    file.unlink()  # it may be a link to one in another cache
    file.write_bytes(content)


def _inside(mark: Path, entry: Path) -> None:
    shutil.move(mark, entry / "complete.json")


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "marks cut": _cut,
    "marks that are folders": _folder,
    "entries cut": _shorten,
    "marks inside, as in an older version": _inside,
}


def spoil(world: World, damage: str) -> None:
    """Damage whatever the cache of a world holds, and take its outputs away."""
    marks = [path for kind in KINDS for path in (world.cache / kind).glob(f"*{MARK}")]
    # An entry that no run has needed since, as a model's small files before its weights are here, has an earlier damage still.
    for mark in filter(Path.is_file, marks):
        DAMAGES[damage](mark, mark.with_name(mark.name.removesuffix(MARK)))
    shutil.rmtree(world.output)


def survived(world: World, damage: str, moment: Moment, reference: Mapping[str, str]) -> tuple[bool, list[str]]:
    """Whether a run over a damaged cache was killed at a moment, and what is wrong after the next, which leaves all mended."""
    spoil(world, damage)
    stopped = killed(world, moment)
    again = world.run()
    return stopped, wrong(world, again.code, again.said, reference)
