"""The driver's side of a run on a cluster: chains are submitted, their events shown as they come, and what failed gathered."""

from __future__ import annotations

import importlib
import logging
import queue
import secrets
import time
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import llamacpp_orchestrator
from llamacpp_orchestrator.cluster import child
from llamacpp_orchestrator.cluster import placement
from llamacpp_orchestrator.cluster import sources
from llamacpp_orchestrator.cluster import worker
from llamacpp_orchestrator.cluster.placement import Workers
from llamacpp_orchestrator.cluster.progress import Progress
from llamacpp_orchestrator.cluster.progress import follow
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import Handshake
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.screen import Screen
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.util.store import draft

CONNECT_SECONDS = 10.0
WAIT_SECONDS = 60.0  # for the first worker
TICK = 0.2

Share = Callable[[int], list[Chain]]  # the chains for so many tasks at a time


def make(pinned: PinnedJob, chains: Share, names: frozenset[str], options: Options, report: Reporter) -> list[Event]:
    """Let the workers of a cluster make all chains, which what they can do at a time decides; the last event of each step.

    `names` are the steps of outputs. JobError where Dask or a fitting worker is not there, NetworkError for a scheduler that
    does not answer, or no longer.
    """
    screen = Screen(names=names, report=report)
    with _handshake(pinned) as handshake, _client(options.scheduler) as client:
        workers = _workers(client, msgspec.json.encode(handshake), options.workers_per_node, report)
        listed = chains(workers.tasks)
        placement.check(listed, workers)
        with _subscription(client, handshake.run) as inbox:
            order = _order(pinned, handshake, options)
            progress = Progress(client=client, order=order, workers=workers, inbox=inbox, screen=screen, waiting=listed)
            try:
                follow(progress)
            finally:
                with suppress(Exception):
                    client.cancel(list(progress.running.values()), force=True)
                    client.run(child.end_all, handshake.run, workers=workers.alone, on_error="ignore")
    return [event for _, event in screen.last.values()]


@contextmanager
def _handshake(pinned: PinnedJob) -> Iterator[Handshake]:
    """What workers must have; a file in the output folder is there meanwhile, by which they know that they see that."""
    run, version = f"orchestrate-{secrets.token_hex(8)}", llamacpp_orchestrator.__version__
    if pinned.context.address:  # which workers reach by themselves
        yield Handshake(run=run, version=version)
        return
    folder = pinned.context.folder(pinned.context.job.output)
    folder.mkdir(parents=True, exist_ok=True)
    probe = draft(folder / run)  # named so that the next run takes it away where this one cannot
    probe.write_text(run, encoding="utf-8")
    try:
        yield Handshake(run=run, version=version, probe=str(probe.absolute()))
    finally:
        probe.unlink(missing_ok=True)


def _order(pinned: PinnedJob, handshake: Handshake, options: Options) -> Order:
    job = pinned.context.file.absolute()
    return Order(
        handshake=handshake,
        job=str(job),
        text=job.read_bytes(),
        lock=pinned.lock,
        sources=sources.sources(pinned),
        force=options.force,
        keep_going=options.keep_going,
        offline=pinned.context.settings.offline,
    )


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        way = "install it: pip install distributed (the extra `cluster`), here and on every worker"
        raise JobError("--scheduler needs Dask's `distributed`, which is not installed here", way) from error
    # What it says of a connection that broke is a traceback; ours is an error that tells what to do.
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    how: dict[str, Any] = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that differ: what matters of them is asked by itself
            client = distributed.Client(**how, timeout=CONNECT_SECONDS, set_as_default=False, name="orchestrate")
    except (OSError, ValueError, TypeError) as error:
        way = "start one (`dask scheduler`), or name the address that it says, such as tcp://host:8786, or its scheduler file"
        raise NetworkError(f"no scheduler of Dask answers at {address}: {type(error).__name__}", way) from error
    try:
        yield client
    finally:
        with suppress(Exception):
            client.close(timeout=2)


def _workers(client: Any, handshake: bytes, most: int, report: Reporter) -> Workers:
    """The workers that can do it, once there are any; JobError with the reason where none can."""
    late = time.monotonic() + WAIT_SECONDS
    while not (info := client.scheduler_info(n_workers=-1)["workers"]):
        if time.monotonic() > late:
            raise JobError("the cluster has no workers", "start some: `dask worker ADDRESS`")
        report(Event("cluster", "progress", "waiting for the first worker"))
        time.sleep(TICK)
    reasons = client.run(worker.unfit, handshake, on_error="return")
    machines = {address: placement.machine(address, info.get(address, {})) for address in reasons}
    bad = {address: _reason(reason) for address, reason in reasons.items() if reason != ""}
    if len(bad) == len(reasons):
        address, reason = next(iter(bad.items()))
        raise JobError(f"no worker can do it; {machines[address].name}: {reason}", worker.UNFIT)
    for address, reason in bad.items():
        report(Event("cluster", "note", f"worker {machines[address].name} is left out: {reason}"))
    workers = placement.placed((each for address, each in machines.items() if address not in bad), most)
    return msgspec.structs.replace(workers, all=workers.all and not bad)


def _reason(reason: object) -> str:
    if isinstance(reason, ImportError):
        return f"llamacpp-orchestrator is not installed there ({reason})"
    return str(reason) or type(reason).__name__


@contextmanager
def _subscription(client: Any, run: str) -> Iterator[queue.SimpleQueue[Any]]:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.subscribe_topic(run, inbox.put)
    try:
        yield inbox
    finally:
        with suppress(Exception):
            client.unsubscribe_topic(run)
