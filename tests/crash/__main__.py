"""Kills, fills and cuts (or those of them that are named); prints a table, and what was wrong; exits 1 if anything was."""

from __future__ import annotations

import itertools
import queue
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from tests.crash import cuts
from tests.crash import full
from tests.crash import kills
from tests.crash import mends
from tests.crash import world as worlds
from tests.crash.scene import Scene
from tests.crash.scene import publish
from tests.crash.scene import scene
from tests.crash.scene import twin
from tests.support import disks

LANES, KILLS, MENDS, ROUTES = 2, 60, 16, ("pypi", "git")
APART = 7  # of two requests that are cut in one run: further than anything tries again


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """An undisturbed run by one route: its outputs, its lines, its seconds, and the requests that it made."""

    sums: dict[str, str]
    lines: tuple[str, ...]
    seconds: float
    requests: int


class Row(msgspec.Struct, kw_only=True):
    """What came of one kind of mishap: how many were tried, and what was wrong."""

    kind: str
    tried: int = 0
    wrong: dict[str, list[str]] = {}


Trial = tuple[str, Callable[[str], tuple[bool, list[str]]]]  # what it is called, and what does it in a lane of a name


def main(words: list[str]) -> int:
    """All of it, or the kinds that are named; 1 when anything was wrong."""
    asked = words or ["kills", "mends", "full", "cuts"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-", ignore_cleanup_errors=True) as scratch, scene(Path(scratch)) as here:
        cut = cuts.cutting(here)
        known = dict(references(here, cut))
        rows = [row for kind in asked for row in KINDS[kind](here, cut, known)]
    for row in rows:
        for name, complaints in row.wrong.items():
            print(f"\n{row.kind}: {name}", *complaints, sep="\n    ")
    print(f"\n{'kind':<24}{'tried':>6}{'survived':>10}")
    for row in rows:
        print(f"{row.kind:<24}{row.tried:>6}{row.tried - len(row.wrong):>10}")
    print(f"in {time.monotonic() - began:.0f} s")
    return int(any(row.wrong for row in rows))


def references(here: Scene, cut: cuts.Cut) -> Iterator[tuple[str, Reference]]:
    """Undisturbed runs by both routes; the tree of the first is what GitHub then serves for the second."""
    for route in ROUTES:
        # Both lanes must have compiled what Python needs, and have what is KEPT, before the times and lines of one mean anything.
        for lane in (*range(LANES), LANES - 1):
            world = worlds.make(here, f"lane{lane}", route)
            cut.seen = 0
            ended = world.run()
            if ended.code:
                sys.exit(f"an undisturbed run failed:\n{ended.said}")
            if route == "pypi" and not lane:
                publish(here, next(path for path in (world.cache / "source").glob("package-*") if path.is_dir()))
        lines = tuple(ended.said.splitlines())
        yield route, Reference(sums=world.sums(), lines=lines, seconds=ended.seconds, requests=cut.seen)


def every(kind: str, trials: Iterable[Trial]) -> Row:
    """Try all, each in a lane that is free."""
    lanes: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in range(LANES):
        lanes.put(f"lane{number}")
    row = Row(kind=kind, wrong={})

    def one(trial: Trial) -> None:
        name, attempt = trial
        lane = lanes.get()
        try:
            tried, complaints = attempt(lane)
        finally:
            lanes.put(lane)
        row.tried += tried
        if complaints:
            row.wrong[name] = complaints
        print(
            f"{kind}: {name}: {'WRONG' if complaints else 'well' if tried else 'it did not come to that'}",
            file=sys.stderr,
            flush=True,
        )

    with ThreadPoolExecutor(LANES) as pool:
        list(pool.map(one, trials))
    return row


def kill_rows(here: Scene, cut: cuts.Cut, known: dict[str, Reference]) -> Iterator[Row]:
    """Kills by both routes."""
    for route, reference in known.items():
        chosen = kills.moments(list(reference.lines), reference.seconds, KILLS // len(known))

        def trial(moment: kills.Moment, route: str = route, sums: dict[str, str] = reference.sums) -> Trial:
            return str(moment), lambda lane: kills.survived(worlds.make(here, lane, route), moment, sums)

        yield every(f"killed ({route})", map(trial, chosen))


def mend_rows(here: Scene, cut: cuts.Cut, known: dict[str, Reference]) -> Iterator[Row]:
    """Kills while a damaged cache is mended, by both routes; each lane keeps its world."""
    for route, reference in known.items():
        kept = {f"lane{number}": worlds.make(here, f"lane{number}", route) for number in range(LANES)}
        for world in kept.values():
            world.run()
        mends.spoil(kept["lane0"], next(iter(mends.DAMAGES)))
        mend = kept["lane0"].run()
        chosen = kills.moments(mend.said.splitlines(), mend.seconds, MENDS // len(known))
        ways = itertools.cycle(mends.DAMAGES)

        def trial(
            moment: kills.Moment,
            damage: str,
            kept: dict[str, worlds.World] = kept,
            sums: dict[str, str] = reference.sums,
        ) -> Trial:
            return f"{damage}, {moment}", lambda lane: mends.survived(kept[lane], damage, moment, sums)

        yield every(f"mends ({route})", map(trial, chosen, ways))


def full_rows(here: Scene, cut: cuts.Cut, known: dict[str, Reference]) -> Iterator[Row]:
    """Disks that are too small."""
    if not disks.possible():
        print("small disks can be made by root on Linux alone: left out", file=sys.stderr)
        return
    made = worlds.make(here, "made", "pypi")
    made.run()

    def trial(disk: full.Disk) -> Trial:
        return str(disk), lambda lane: full.survived(here, f"{lane}-full", disk, made.cache, known["pypi"].sums)

    yield every("disk full", map(trial, full.DISKS))


def cut_rows(here: Scene, cut: cuts.Cut, known: dict[str, Reference]) -> Iterator[Row]:
    """The network cut at each request, in some run; each lane has servers of its own, for they count the requests of all."""
    reference = known["git"]
    with twin(here) as other:
        lanes = {"lane0": (here, cut), "lane1": (other, cuts.cutting(other))}

        def trial(at: int, step: int) -> Trial:
            def attempt(lane: str) -> tuple[bool, list[str]]:
                scene, cut = lanes[lane]
                return True, cuts.survived(worlds.make(scene, lane, "git"), cut, at, step, reference.sums)

            return f"from request {at} on", attempt

        yield every("cut now and then", [trial(at, APART) for at in range(1, APART + 1)])
        yield every("cut for good", [trial(at, 1) for at in range(1, reference.requests + 1, APART)])


KINDS = {"kills": kill_rows, "mends": mend_rows, "full": full_rows, "cuts": cut_rows}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
