"""Hundreds of adapters in one job: what the driver itself does for each step, and whether its memory grows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.bench import world as worlds
from tests.bench.clock import orchestrate
from tests.bench.clock import ours
from tests.bench.clock import probed
from tests.bench.table import Row
from tests.bench.table import compared
from tests.bench.table import limited
from tests.bench.world import World

MANY, FEW = 300, 30
MEGABYTE = 1_000_000


def rows(world: World) -> Iterator[Row]:
    """The same small adapter under many names."""
    env = world.env()
    many, few = (job(world, count) for count in (MANY, FEW))
    for each in (few, many):
        ours("run", each, env=env)
    plans = [ours("plan", many, env=env) for _ in range(5)]
    yield limited(f"many: `plan` of {MANY} adapters", plans, 1.0, unit="s", note="theirs is the goal")
    small = probed(few.parent / "probe.json", "run", few, "--force", env=env)
    large = probed(many.parent / "probe.json", "run", many, "--force", env=env)
    steps = len(json.loads(orchestrate("plan", many, "--force", "--json", env=env))["steps"])
    note = f"{steps} steps; processor time of the driver's own process, its start included, children left out"
    per_step = [1000 * large.cpu / steps]
    yield limited("many: the driver's own time for a step, checks included", per_step, 3.0, unit="ms", note=note)
    name = f"many: the driver's memory with {MANY} adapters against {FEW}"
    yield compared(name, [(large.peak / MEGABYTE, small.peak / MEGABYTE)], unit="MB", goal=1.25)
    for each in (few, many):
        shutil.rmtree(each.parent)


def job(world: World, count: int) -> Path:
    """One model with so many adapters."""
    return worlds.write_job(world.folder(f"many-{count}"), worlds.fleet(worlds.data(world.scratch), count))
