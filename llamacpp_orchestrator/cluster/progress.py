"""A run on a cluster from its first chain to its last: what may begin is submitted, and what has ended is taken in."""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from llamacpp_orchestrator.cluster import placement
from llamacpp_orchestrator.cluster import sending
from llamacpp_orchestrator.cluster import worker
from llamacpp_orchestrator.cluster.placement import Workers
from llamacpp_orchestrator.cluster.records import Answer
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.screen import Screen
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.scheduler import Event

TICK = 0.2
LOST_SECONDS = 10.0  # without a scheduler
GONE = "run the same command again: it goes on with what is not made yet"


class Progress(msgspec.Struct, kw_only=True):
    """A run at work: chains that wait, those that run with their futures, and those that have ended with their exit codes.

    Into `inbox` come what workers tell, as Dask gives it, and the keys of chains whose futures have ended. `retried` are chains
    of which a second worker makes what the first had no room for; `task` is what a worker does.
    """

    client: Any
    order: Order
    workers: Workers
    inbox: queue.SimpleQueue[Any]
    screen: Screen
    waiting: list[Chain]
    running: dict[str, Any] = {}
    chains: dict[str, Chain] = {}
    ended: set[str] = set()
    codes: dict[str, int] = {}
    retried: set[str] = set()
    task: Callable[..., bytes] = worker.run_chain


def follow(run: Progress) -> None:
    """Show what comes until every chain has ended, or one has failed; NetworkError where the scheduler goes."""
    seen = time.monotonic()
    with sending.sender(run.client, run.order) as send:
        while (run.waiting or run.running) and (run.order.keep_going or not any(run.codes.values())):
            begin(run)
            _drain(run, send, TICK)
            seen = time.monotonic() if run.client.status == "running" else seen
            if time.monotonic() - seen > LOST_SECONDS or any(run.running[key].cancelled() for key in run.ended):
                raise NetworkError("the scheduler of the cluster has gone, or has let go of this run", GONE)
            answers = _answers(run)
            _drain(run, send, 0.0)
            for key, answer in answers.items():
                _take(run, key, answer)
    if left := len(run.waiting) + len(run.running):
        text = f"after the failure {left} more tasks were stopped or not begun (--keep-going)"
        run.screen.report(Event("cluster", "note", text))


def begin(run: Progress) -> None:
    """Submit the chains for which all is there that they need, and end those for which it never will be."""
    ready = [chain for chain in run.waiting if all(key in run.codes for key in chain.after)]
    if not ready:
        return
    keys = {chain.key for chain in ready}
    run.waiting = [chain for chain in run.waiting if chain.key not in keys]
    run.chains |= {chain.key: chain for chain in ready}
    for chain in ready:
        if any(run.codes[key] for key in chain.after):
            run.codes[chain.key] = 1
            run.screen.report(Event(f"task {chain.key}", "blocked", "by what its outputs are made of"))
    _submit(run, [chain for chain in ready if chain.key not in run.codes], run.workers.alone)


def _submit(run: Progress, chains: list[Chain], workers: list[str] | None) -> None:
    """Let some workers make chains, None for any of them; the key of each comes into the inbox once it has ended.

    Those that claim alike go to the scheduler together, for each call takes milliseconds. Their keys are of one group: so they
    wait there for the next worker that has nothing to do, and are not all given away before.
    """
    alike: dict[tuple[tuple[str, float], ...], list[Chain]] = {}
    for chain in chains:
        alike.setdefault(tuple(sorted(placement.claims(chain, run.workers).items())), []).append(chain)
    for claimed, group in alike.items():
        name = f"{run.order.handshake.run}-{'again' if chains[0].key in run.retried else 'chain'}"
        names = [(name, chain.key) for chain in group]
        how: dict[str, Any] = {"key": names, "pure": False, "workers": workers, "resources": dict(claimed) or None}
        # The order is no result that they depend on: Dask would send them all to the worker that has it.
        tasks = [msgspec.json.encode(run.order.handshake)] * len(group), list(map(msgspec.json.encode, group))
        for chain, future in zip(group, run.client.map(run.task, *tasks, **how), strict=True):
            run.running[chain.key] = future
            future.add_done_callback(functools.partial(_note_end, run.inbox, chain.key))


def _note_end(inbox: queue.SimpleQueue[Any], key: str, future: Any) -> None:
    inbox.put(key)


def _drain(run: Progress, send: sending.Send, seconds: float) -> None:
    """Take in all that has come, and wait so long for the first; keys of chains whose futures have ended are gathered."""
    asking: list[News] = []
    with suppress(queue.Empty):
        item = run.inbox.get(timeout=seconds) if seconds else run.inbox.get_nowait()
        while True:
            if isinstance(item, str):
                run.ended.add(item)
            else:
                for news in msgspec.json.decode(item[1]["news"], type=list[News]):
                    (asking.append if news.status == sending.LACKS else run.screen.show)(news)
            item = run.inbox.get_nowait()
    send(asking)


def _answers(run: Progress) -> dict[str, Answer | Exception]:
    """What chains came to, or what kept them from it; those of a worker that is lost just now come with another look."""
    ended = {key: run.running[key] for key in run.ended if run.running[key].done()}
    try:
        good = [key for key, future in ended.items() if future.status == "finished"]
        data = run.client.gather([ended[key] for key in good]) if good else []
        bad = {key: future.exception() for key, future in ended.items() if future.status == "error"}
    except Exception:
        return {}
    return {key: msgspec.json.decode(answer, type=Answer) for key, answer in zip(good, data, strict=True)} | bad


def _take(run: Progress, key: str, answer: Answer | Exception) -> None:
    """Take in what a chain came to; where its worker's disk was full, another one makes it, once."""
    del run.running[key]
    run.ended.discard(key)
    others = _others(run, answer.address) if isinstance(answer, Answer) and answer.full and key not in run.retried else []
    if isinstance(answer, Answer) and others:
        run.retried.add(key)
        run.screen.forget(key)
        message = next((item.error[0] for item in answer.news if item.error), (answer.error or ("",))[0])
        text = f"worker {answer.worker} has no room for {run.chains[key].outputs[0]}, and another one makes it: {message}"
        run.screen.report(Event("cluster", "note", text))
        _submit(run, [run.chains[key]], others)
    else:
        run.codes[key] = outcome(key, answer, run.screen)


def _others(run: Progress, address: str) -> list[str]:
    """The workers that a chain may go to instead of the one at an address."""
    known = run.workers.alone or list(run.client.scheduler_info(n_workers=-1)["workers"])
    return [other for other in known if other != address]


def outcome(key: str, answer: Answer | Exception, screen: Screen) -> int:
    """Show what a chain came to; its exit code."""
    if isinstance(answer, Exception):
        message = f"a worker could not make its outputs: {type(answer).__name__}: {answer}"
        error = OrchestrateError(message, worker.UNFIT)
        if type(answer).__name__ == "KilledWorker":
            message = "workers were lost again and again while they made the same outputs"
            error = OrchestrateError(message, "had they enough memory? see the logs of the workers, then run it again")
        screen.fail(key, error)
        return 1
    for item in answer.news:
        screen.show(item)
    screen.end(key)
    if answer.error and not screen.has_failed(key):
        screen.fail(key, OrchestrateError(*answer.error))
    return answer.code
