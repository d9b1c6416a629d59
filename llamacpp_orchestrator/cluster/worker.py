"""What runs on a worker: this program as a child, whose events go to the driver as they come."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import msgspec

import llamacpp_orchestrator
from llamacpp_orchestrator.cluster.records import Answer
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import text_of

# Dask gives a worker one thread of each, for its tasks compute by themselves; ours are programs with limits of their own.
NOT_FOR_CHILDREN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
LOOK_SECONDS = 0.5
UNFIT = "job, lock and output folder must be on storage that all workers see, and the program the same on all of them"
RUNNING = ("executing", "long-running")  # of a task that somebody still waits for


def unfit(order_json: bytes) -> str:
    """Why nothing of a run can be done on this worker; "" where it can."""
    order = msgspec.json.decode(order_json, type=Order)
    if order.version != llamacpp_orchestrator.__version__:
        return f"it has llamacpp-orchestrator {llamacpp_orchestrator.__version__}, and {order.version} was asked"
    job = Path(order.job)
    for path, digest in ((job, order.job_sha256), (lock_file.path_for(job), order.lock_sha256)):
        try:
            if file_sha256(path) != digest:
                return f"{path} is another file there"
        except OSError:
            return f"it does not see {path}"
    if text_of(Path(order.probe)) != order.run:
        return f"it does not see the folder {Path(order.probe).parent}"
    return ""


def run_chain(order_json: bytes, chain_json: bytes, *before: bytes) -> bytes:
    """Make the outputs of a chain, whatever comes of it: how it ended is data, for an exception is no answer to a user.

    `before` are the answers of the chains that it needs.
    """
    from distributed import get_worker

    order, chain = msgspec.json.decode(order_json, type=Order), msgspec.json.decode(chain_json, type=Chain)
    worker = get_worker()
    name = str(worker.name)
    if any(msgspec.json.decode(answer, type=Answer).code for answer in before):
        return _encoded(Answer(code=1, worker=name, blocked=True))
    if reason := unfit(order_json):
        return _encoded(Answer(code=2, worker=name, error=(f"worker {name} cannot do it: {reason}", UNFIT)))
    turn, news = uuid.uuid4().hex, dict[str, News]()
    error: tuple[str, str] | None = None
    with tempfile.TemporaryDirectory(prefix="orchestrate-") as folder:
        log = Path(folder) / "stderr"
        with process.known(process.start(_command(order, chain), stderr=log)) as child, _tied_to_task(worker, child):
            assert child.stdout is not None
            for item in filter(None, map(_news, child.stdout)):
                if item.status == "error":
                    error = item.error
                    continue
                news[item.step] = msgspec.structs.replace(item, chain=chain.key, by=name, turn=turn)
                worker.log_event(order.run, msgspec.to_builtins(news[item.step]))
            code = child.wait()
        if code and not error and not any(item.status == "failed" for item in news.values()):
            words = process.words_of(log)
            error = (f"orchestrate {process.ended(code)} on worker {name}: {words}", "run the same command again")
    return _encoded(Answer(code=code, worker=name, news=tuple(news.values()), error=error))


def _news(line: bytes) -> News | None:
    """An event that the child tells; None for what some library has printed between."""
    try:
        return msgspec.json.decode(line, type=News)
    except msgspec.DecodeError:
        return None


def _encoded(answer: Answer) -> bytes:
    return msgspec.json.encode(answer)


def _command(order: Order, chain: Chain) -> Command:
    argv = [sys.executable, "-m", "llamacpp_orchestrator", "run", order.job, "--locked", "--events", "--jobs", "1"]
    options = {"--force": order.force, "--keep-going": order.keep_going, "--offline": order.offline}
    argv += [option for option, given in options.items() if given]
    argv += [word for name in chain.outputs for word in ("--only", name)]
    env = {name: value for name, value in os.environ.items() if name not in NOT_FOR_CHILDREN}
    return Command(tuple(argv), cwd=str(Path(order.job).parent), env=tuple(env.items()))


@contextmanager
def _tied_to_task(worker: Any, child: Popen[bytes]) -> Iterator[None]:
    """End a child once nobody waits for its task any more: Dask lets a task that it has cancelled go on to its end."""
    over, key = threading.Event(), worker.get_current_task()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            task = worker.state.tasks.get(key)
            if task is None or task.state not in RUNNING or worker.status.name not in ("running", "paused"):
                process.stop(child)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
