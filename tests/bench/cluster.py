"""A run on a cluster: what scheduling costs, how many workers share the work, and how far it goes."""

from __future__ import annotations

import importlib
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from contextlib import contextmanager
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.cluster import progress
from llamacpp_orchestrator.cluster.placement import Machine
from llamacpp_orchestrator.cluster.placement import Workers
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import Handshake
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.screen import Screen
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.source.pin import SourcePin
from tests.bench import probe
from tests.bench import simulated
from tests.bench import world as worlds
from tests.bench.clock import ours
from tests.bench.table import Row
from tests.bench.table import compared
from tests.bench.table import limited
from tests.support import ROOT
from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.scratch import Failed
from tests.support.scratch import World

ADAPTERS, WARMING = 140, 40
COUNTS, TURNS = (0, 1, 2, 4), 2  # workers; 0 is a run without a cluster
CHAINS, WORKERS, SECONDS = 2000, 200, 4.0
FEW = 200
EFFICIENCY = 0.85  # at least, of two workers on two cores
SETTINGS = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}  # as docs/cluster.md has it


def rows(world: World) -> Iterator[Row]:
    """Chains that sleep on many workers that are simulated, and adapters on few that are real."""
    few = [simulation(FEW, 2, 0.0)[1] / FEW * 1000 for _ in range(3)]
    note = f"{FEW} chains that do nothing, on two workers; theirs is the goal"
    yield limited("cluster: scheduling a chain", few, 15.0, unit="ms", note=note)
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # memory at most is of a process, whatever it did before
        planned, seconds, memory = apart.submit(simulation, CHAINS, WORKERS, SECONDS).result()
    what = f"{CHAINS} chains on {WORKERS} workers"
    yield limited(f"cluster: planning {what}", [planned], 2.0, unit="s", note="theirs is the goal")
    yield limited(f"cluster: the driver's memory with {what}", [memory], 200.0, unit="MB", note="theirs is the goal")
    ideal = CHAINS * SECONDS / WORKERS
    bare = plain(CHAINS, WORKERS, SECONDS)
    note = f"each sleeps {SECONDS:.0f} s; workers and scheduler are one process, in which Dask's own `map` takes {bare:.1f} s"
    yield compared(f"cluster: {what} against the ideal time", [(seconds, ideal)], unit="s", goal=1.1, note=note)
    yield from adapters(world)


def adapters(world: World) -> Iterator[Row]:
    """Adapters of one model, made anew by a plain run and by one, two and four workers on this machine, once all are warm."""
    env: dict[str, Any] = world.env()
    job = worlds.write_job(world.folder(f"cluster-of-{ADAPTERS}"), worlds.fleet(scratch.data(world.scratch), ADAPTERS))
    ours("run", job, env=env)
    paces: dict[int, list[float]] = {count: [] for count in COUNTS}
    for turn, count in enumerate(COUNTS * TURNS):  # one cluster at a time: a worker that has nothing to do takes 4 % of a core
        with _workers(world.folder(f"cluster-{turn}"), count, env) as where:
            ours("run", job, "--force", *where, env=env)
        ends = sorted(file.stat().st_mtime for file in job.parent.rglob("*.gguf"))[WARMING:]
        paces[count].append((ends[-1] - ends[0]) / (len(ends) - 1) * 1000)
    note = f"the last {ADAPTERS - WARMING} of {ADAPTERS}, for each worker loads torch first"
    for count, other, goal in (2, 1, 1 / (2 * EFFICIENCY)), (4, 1, 1 / (2 * EFFICIENCY)), (2, 0, 1 / EFFICIENCY):
        against = f"against {other}" if other else "against a run without a cluster"
        pairs = list(zip(paces[count], paces[other], strict=True))
        yield compared(f"cluster: an adapter more on {count} warm workers {against}", pairs, unit="ms", goal=goal, note=note)


@contextmanager
def _workers(folder: Path, count: int, env: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    if not count:
        yield ()
        return
    with closing(Cluster(folder)) as cluster:
        for number in range(count):
            cluster.join(f"w{number}", **(env | SETTINGS))
        while any("Registered to" not in (folder / f"w{number}.log").read_text() for number in range(count)):
            time.sleep(0.1)
        yield "--scheduler", cluster.place


def simulation(chains: int, workers: int, seconds: float) -> tuple[float, float, float]:
    """Seconds until all chains are with the scheduler, and until all have ended; the most megabytes that this process has had."""
    distributed: Any = importlib.import_module("distributed")
    with _cluster(workers) as address, distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers)
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client.subscribe_topic("run", inbox.put)
        lock = Lock(llama_cpp=SourcePin(tag="b1", repo="", tree="0" * 64, commit="0" * 40), models=())
        order = Order(handshake=Handshake(run="run", version=""), job="/job.yaml", text=b"", lock=lock)
        began = time.perf_counter()
        run = progress.Progress(
            client=client,
            order=order,
            workers=Workers(machines=(Machine(address=address, name="all"),)),
            inbox=inbox,
            screen=Screen(names=frozenset(), report=lambda event: None),
            waiting=[Chain(key=str(number), outputs=(str(seconds),)) for number in range(chains)],
            task=simulated.sleep,
        )
        progress.begin(run)
        planned = time.perf_counter() - began
        progress.follow(run)
        if failed := [event.error for _, event in run.screen.last.values() if event.error]:
            raise Failed(f"a chain that sleeps has failed: {failed[0]}")
        return planned, time.perf_counter() - began, probe.peak() / 1e6


def plain(chains: int, workers: int, seconds: float) -> float:
    """Seconds that Dask takes for as many tasks that sleep and tell nothing."""
    distributed: Any = importlib.import_module("distributed")
    with _cluster(workers) as address, distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers)
        began = time.perf_counter()
        client.gather(client.map(time.sleep, [seconds] * chains, pure=False))
        return time.perf_counter() - began


@contextmanager
def _cluster(workers: int) -> Iterator[str]:
    argv = [sys.executable, "-m", "tests.bench.simulated", str(workers)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            with suppress(OSError):
                process.kill()
