"""The driver's side of a run on a cluster: chains are submitted, their events shown as they come, and what failed gathered."""

from __future__ import annotations

import importlib
import logging
import queue
import secrets
import time
import warnings
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import llamacpp_orchestrator
from llamacpp_orchestrator.cluster import worker
from llamacpp_orchestrator.cluster.records import Answer
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.system.scheduler import ENDED
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import draft
from llamacpp_orchestrator.util.units import size

CONNECT_SECONDS = 10.0
WAIT_SECONDS = 60.0  # for the first worker
TICK = 0.2
MEMORY = "MEMORY"  # Dask's usual name for the resource, in bytes
LOST_SECONDS = 10.0  # without a scheduler
GONE = "run the same command again: it goes on with what is not made yet"


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers can do it, and which `alone` may: () for all, also those that come later.

    `memory` is what the largest offers of Dask's resource MEMORY, in bytes; 0 where none offers any.
    """

    number: int
    alone: tuple[str, ...] = ()
    memory: float = 0


Share = Callable[[int], list[Chain]]  # the chains for so many workers


class Screen(msgspec.Struct, kw_only=True):
    """The events of all chains as one run's: those of outputs go by the `names` of their steps, others with their worker.

    `turns` and `running` are of each chain: which run of it is on, and its steps that have not ended, with the time at which
    they began; `last` has the last event of each step that has ended, with its chain.
    """

    names: frozenset[str]
    report: Reporter
    turns: dict[str, str] = {}
    running: dict[str, dict[str, float]] = {}
    last: dict[str, tuple[str, Event]] = {}

    def show(self, news: News) -> None:
        """Report an event, and an end once, unless it is worse than the one before.

        Where a chain begins anew, what a lost worker had running is ended first, and what it had ended counts no more.
        """
        if self.turns.setdefault(news.chain, news.turn) != news.turn:
            self.turns[news.chain] = news.turn
            self.end(news.chain)
            self.last = {step: ended for step, ended in self.last.items() if ended[0] != news.chain}
            self.report(Event(news.step, "note", f"a worker was lost; {news.by} takes over what it did"))
        running = self.running.setdefault(news.chain, {})
        event = as_event(news, self.names)
        event = msgspec.structs.replace(event, began=running.get(event.step, event.began))
        before = self.last[event.step][1].status if event.step in self.last else ""
        worse = event.status == "failed" and before != "failed"
        if event.status != "note" and not worse and (before or (event.status == "progress" and event.step not in running)):
            return
        if event.status in ENDED:
            running.pop(event.step, None)
            self.last[event.step] = news.chain, event
        elif event.status == "started":
            running[event.step] = event.began
        self.report(event)

    def end(self, chain: str) -> None:
        """Take what a chain had running from the screen."""
        for name, began in self.running.pop(chain, {}).items():
            self.report(Event(name, "blocked", "by the end of its worker", began=began))

    def fail(self, chain: str, error: OrchestrateError) -> None:
        """Report the failure of a chain of which no step tells why."""
        event = Event(f"task {chain}", "failed", error=error)
        self.last[event.step] = chain, event
        self.report(event)


def as_event(news: News, names: Collection[str]) -> Event:
    """What a worker tells as an event of this run; `names` are steps that are called alike wherever they run."""
    error = None
    if news.error:
        log = f"\nits log is there: {news.log}" if news.log else ""
        error = OrchestrateError(news.error[0], f"{news.error[1]}\nit was on worker {news.by}{log}".lstrip("\n"))
    alike = news.step in names
    text = f"{news.text} on {news.by}" if alike and news.status == "progress" else news.text
    began = time.monotonic() - news.seconds
    return Event(
        news.step if alike else f"{news.step} on {news.by}",
        news.status,
        text,
        news.seconds,
        error,
        memory=news.memory,
        began=began,
    )


def make(pinned: PinnedJob, chains: Share, names: frozenset[str], options: Options, report: Reporter) -> list[Event]:
    """Let the workers of a cluster make all chains, which their number decides; the last event of each step.

    `names` are the steps of outputs. JobError where Dask or a fitting worker is not there, NetworkError for a scheduler that
    does not answer, or no longer.
    """
    screen = Screen(names=names, report=report)
    with _probe(pinned) as (run, probe):
        order = msgspec.json.encode(_order(pinned, run, probe, options))
        with _client(options.scheduler) as client:
            workers = _workers(client, order, report)
            with _subscription(client, run) as news:
                futures = _submit(client, order, chains(workers.number), workers, run)
                try:
                    _follow(client, futures, news, screen, options.keep_going)
                finally:
                    with suppress(Exception):
                        client.cancel(list(futures.values()), force=True)
    return [event for _, event in screen.last.values()]


@contextmanager
def _probe(pinned: PinnedJob) -> Iterator[tuple[str, Path]]:
    """A file in the output folder, by which workers know that they see it."""
    run = f"orchestrate-{secrets.token_hex(8)}"
    folder = pinned.context.folder(pinned.context.job.output)
    folder.mkdir(parents=True, exist_ok=True)
    probe = draft(folder / run)  # named so that the next run takes it away where this one cannot
    probe.write_text(run, encoding="utf-8")
    try:
        yield run, probe
    finally:
        probe.unlink(missing_ok=True)


def _order(pinned: PinnedJob, run: str, probe: Path, options: Options) -> Order:
    job = pinned.context.file.absolute()
    return Order(
        run=run,
        job=str(job),
        job_sha256=file_sha256(job),
        lock_sha256=file_sha256(lock_file.path_for(job)),
        probe=str(probe.absolute()),
        version=llamacpp_orchestrator.__version__,
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


def _workers(client: Any, order: bytes, report: Reporter) -> Workers:
    """The workers that can do it, once there are any; JobError with the reason where none can."""
    late = time.monotonic() + WAIT_SECONDS
    while not (info := client.scheduler_info(n_workers=-1)["workers"]):
        if time.monotonic() > late:
            raise JobError("the cluster has no workers", "start some: `dask worker ADDRESS`")
        report(Event("cluster", "progress", "waiting for the first worker"))
        time.sleep(TICK)
    reasons = client.run(worker.unfit, order, on_error="return")
    bad = {address: _reason(reason) for address, reason in reasons.items() if reason != ""}
    names = {address: str(info.get(address, {}).get("name", address)) for address in reasons}
    if len(bad) == len(reasons):
        address, reason = next(iter(bad.items()))
        raise JobError(f"no worker can do it; {names[address]}: {reason}", worker.UNFIT)
    for address, reason in bad.items():
        report(Event("cluster", "note", f"worker {names[address]} is left out: {reason}"))
    good = tuple(address for address in reasons if address not in bad)
    offers = [float((info.get(address, {}).get("resources") or {}).get(MEMORY, 0)) for address in good]
    return Workers(number=len(good), alone=good if bad else (), memory=max(offers, default=0))


def _reason(reason: object) -> str:
    if isinstance(reason, ImportError):
        return f"llamacpp-orchestrator is not installed there ({reason})"
    return str(reason) or type(reason).__name__


@contextmanager
def _subscription(client: Any, run: str) -> Iterator[queue.SimpleQueue[Any]]:
    news: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.subscribe_topic(run, news.put)
    try:
        yield news
    finally:
        with suppress(Exception):
            client.unsubscribe_topic(run)


def _submit(client: Any, order: bytes, chains: Sequence[Chain], workers: Workers, run: str) -> dict[str, Any]:
    check(chains, workers)
    futures: dict[str, Any] = {}
    for chain in chains:
        before = [futures[key] for key in chain.after]
        resources = {MEMORY: chain.memory} if workers.memory and chain.memory else None
        how: dict[str, Any] = {"key": f"{run}-{chain.key}", "pure": False, "workers": list(workers.alone) or None}
        task = order, msgspec.json.encode(chain)
        futures[chain.key] = client.submit(worker.run_chain, *task, *before, resources=resources, **how)
    return futures


def check(chains: Sequence[Chain], workers: Workers) -> None:
    """Raise JobError for what no worker can ever take: Dask would wait for one that can, and say nothing."""
    for chain in chains:
        if workers.memory and chain.memory > workers.memory:
            message = f"{chain.outputs[0]} takes about {size(chain.memory)} of memory, and no worker offers more than"
            way = "start a worker with more: dask worker ADDRESS --resources MEMORY=64e9"
            raise JobError(f"{message} {size(int(workers.memory))} (its resource {MEMORY})", way)


def _follow(client: Any, futures: dict[str, Any], news: queue.SimpleQueue[Any], screen: Screen, keep_going: bool) -> None:
    """Show what comes until every chain has ended, or one has failed; NetworkError where the scheduler goes."""
    left, seen, failed = dict(futures), time.monotonic(), False
    while left and (keep_going or not failed):
        _drain(news, screen, TICK)
        seen = time.monotonic() if client.status == "running" else seen
        if time.monotonic() - seen > LOST_SECONDS or any(future.cancelled() for future in left.values()):
            raise NetworkError("the scheduler of the cluster has gone, or has let go of this run", GONE)
        answers = _answers(client, {key: future for key, future in left.items() if future.done()})
        _drain(news, screen, 0.0)
        for key, answer in answers.items():
            del left[key]
            failed |= _outcome(key, answer, screen)
    if left:
        screen.report(
            Event("cluster", "note", f"after the failure {len(left)} more tasks were stopped or not begun (--keep-going)")
        )


def _answers(client: Any, ended: dict[str, Any]) -> dict[str, Answer | Exception]:
    """What chains came to, or what kept them from it; those of a worker that is lost just now come with another look."""
    try:
        good = [key for key, future in ended.items() if future.status == "finished"]
        data = client.gather([ended[key] for key in good]) if good else []
        bad = {key: future.exception() for key, future in ended.items() if future.status == "error"}
    except Exception:
        return {}
    return {key: msgspec.json.decode(answer, type=Answer) for key, answer in zip(good, data, strict=True)} | bad


def _drain(news: queue.SimpleQueue[Any], screen: Screen, seconds: float) -> None:
    """Show all that has come, and wait so long for the first."""
    with suppress(queue.Empty):
        screen.show(msgspec.convert(news.get(timeout=seconds)[1], News))
        while True:
            screen.show(msgspec.convert(news.get_nowait()[1], News))


def _outcome(key: str, answer: Answer | Exception, screen: Screen) -> bool:
    """Show what a chain came to; whether it has failed."""
    if isinstance(answer, Exception):
        message = f"a worker could not make its outputs: {type(answer).__name__}: {answer}"
        error = OrchestrateError(message, worker.UNFIT)
        if type(answer).__name__ == "KilledWorker":
            message = "workers were lost again and again while they made the same outputs"
            error = OrchestrateError(message, "had they enough memory? see the logs of the workers, then run it again")
        screen.fail(key, error)
        return True
    for item in answer.news:
        screen.show(item)
    screen.end(key)
    if answer.error and not any(chain == key and event.status == "failed" for chain, event in screen.last.values()):
        screen.fail(key, OrchestrateError(*answer.error))
    if answer.blocked:
        screen.report(Event(f"task {key}", "blocked", "by what its outputs are made of"))
    return bool(answer.code)
