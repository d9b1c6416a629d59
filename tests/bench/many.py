"""Hundreds of adapters in one job: what the driver itself does for each step, and whether its memory grows."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import Bounds
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import run
from tests.bench import world as worlds
from tests.bench.clock import orchestrate
from tests.bench.clock import ours
from tests.bench.clock import probed
from tests.bench.table import Row
from tests.bench.table import compared
from tests.bench.table import limited
from tests.support import scratch
from tests.support.scratch import Failed
from tests.support.scratch import World

MANY, FEW = 1000, 30
PAIRS = 5
MEGABYTE = 1_000_000


def rows(world: World) -> Iterator[Row]:
    """The same small adapter under many names; the first jobs of their kind leave the cache warm."""
    env = world.env()
    many, few = (job(world, count) for count in (MANY, FEW))
    ours("run", few, env=env)
    orchestrate("lock", many, env=env)
    plans = [ours("plan", many, env=env) for _ in range(PAIRS)]
    yield limited(f"many: `plan` of {MANY} adapters", plans, 3.0, unit="s", note="theirs is the goal")
    note = "steps of the shape of such a job that do nothing, each in a thread of its own; theirs is the goal"
    yield limited("many: scheduling a step", [scheduling() for _ in range(PAIRS)], 3.0, unit="ms", note=note)
    steps, fewer = (len(json.loads(orchestrate("run", each, "--force", "--json", env=env))["steps"]) for each in (many, few))
    small, large = (probed(each.parent / "probe.json", "run", each, "--force", env=env) for each in (few, many))
    note = (
        f"processor time of the driver's own process, children left out: {large.cpu:.1f} s for {steps} steps less "
        f"{small.cpu:.1f} s for {fewer}; theirs is the goal"
    )
    each_step = 1000 * (large.cpu - small.cpu) / (steps - fewer)
    yield limited("many: the driver's own time for one step more, checks included", [each_step], 1.5, unit="ms", note=note)
    each_one = 1000 * (large.seconds - small.seconds) / (MANY - FEW)
    note = f"{large.seconds:.1f} s for {MANY} less {small.seconds:.1f} s for {FEW}; theirs is the goal"
    yield limited("many: the time of one adapter more, checks included", [each_one], 45.0, unit="ms", note=note)
    name = f"many: the driver's memory with {MANY} adapters against {FEW}"
    yield compared(name, [(large.peak / MEGABYTE, small.peak / MEGABYTE)], unit="MB", goal=1.25)
    for each in (few, many):
        shutil.rmtree(each.parent)


def scheduling() -> float:
    """Milliseconds that a step costs which does nothing, in a job of so many adapters."""
    names = [f"l-{number}" for number in range(MANY)]
    steps = [Step(kind="environment")]
    for name in names:
        steps.append(Step(kind="fetch", key=name))
        steps.append(Step(kind="convert", key=name, needs=("environment", f"fetch {name}"), heavy=True))
        steps.append(Step(kind="verify", key=name, needs=(f"convert {name}",)))
    began, bounds = time.perf_counter(), Bounds(jobs=2, memory=8000 * MEGABYTE)
    need = {"convert": 300 * MEGABYTE}
    ended = run(steps, lambda step, outcomes, tell: DONE, bounds, lambda event: None, lambda step: need.get(step.kind, 0))
    if {event.status for event in ended} != {"done"}:
        raise Failed("a step that does nothing has failed")
    return 1000 * (time.perf_counter() - began) / len(steps)


def job(world: World, count: int) -> Path:
    """One model with so many adapters."""
    return worlds.write_job(world.folder(f"many-{count}"), worlds.fleet(f"../{scratch.data(world.scratch).name}", count))
