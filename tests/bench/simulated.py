"""A cluster of many workers in one process, whose chains sleep: what driver and scheduler cost by themselves.

`python -m tests.bench.simulated N` starts it, and says its address.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import dask
import msgspec

from llamacpp_orchestrator.cluster.records import Answer
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import Handshake
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.worker import Desk
from llamacpp_orchestrator.cluster.worker import asked

STEPS = 6  # that a chain tells of
# What each worker does for itself all the time, and on machines of their own would not do beside the others.
QUIET = {"distributed.worker.profile.enabled": False, "distributed.admin.system-monitor.interval": "60s"}

begun: set[str] = set()  # addresses of workers that have asked for the order: they would not be one process


def sleep(handshake_json: bytes, chain_json: bytes) -> bytes:
    """A chain that takes as many seconds as its output's name says."""
    from distributed import get_worker

    worker, chain = get_worker(), msgspec.json.decode(chain_json, type=Chain)
    run = msgspec.json.decode(handshake_json, type=Handshake).run

    def send(news: Sequence[News]) -> None:
        worker.log_event(run, {"news": msgspec.json.encode(news)})

    who = News(step="", status="done", chain=chain.key, by=str(worker.name), turn=chain.key, address=worker.address)
    if worker.address not in begun:
        begun.add(worker.address)
        asked(run, Desk(send=send, is_wanted=lambda: True, who=who))
    news = tuple(msgspec.structs.replace(who, step=f"step {number} {chain.key}") for number in range(STEPS))
    send(news[: STEPS // 2])
    time.sleep(float(chain.outputs[0]))
    return msgspec.json.encode(Answer(code=0, worker=str(worker.name), address=worker.address, news=news))


async def serve(count: int) -> None:
    """A scheduler and so many workers, until they are killed."""
    distributed: Any = importlib.import_module("distributed")
    logging.disable(logging.CRITICAL)
    how = {"host": "127.0.0.1", "dashboard": False}
    async with distributed.Scheduler(port=0, **how) as scheduler:
        workers = [
            distributed.Worker(scheduler.address, nthreads=1, name=f"w{number}", memory_limit=0, **how) for number in range(count)
        ]
        await asyncio.gather(*workers)
        sys.stdout.write(f"{scheduler.address}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with dask.config.set(QUIET):
        asyncio.run(serve(int(sys.argv[1])))
