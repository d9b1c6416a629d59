"""The programs of ours that a worker runs: each makes one chain after the other, and is kept a while for the next of its run."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import msgspec

from llamacpp_orchestrator.cluster import arrivals
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Work
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command

# Dask gives a worker one thread of each, for its tasks compute by themselves; ours are programs with limits of their own.
NOT_FOR_CHILDREN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
IDLE_SECONDS = 60.0
OVER = "over"  # the status of the event that ends a chain; its text is the exit code


class Child(msgspec.Struct, kw_only=True, eq=False):
    """A program at work for a run, or waiting for more of it; `code` is how the last chain ended."""

    run: str
    folder: Path
    process: Popen[bytes]
    code: int = 0
    timer: threading.Timer | None = None

    def words(self) -> str:
        """The last lines that it has said besides its events."""
        return process.words_of(self.folder / "stderr")


_idle: list[Child] = []
_lock = threading.Lock()


@contextmanager
def at_work(run: str) -> Iterator[Child]:
    """A program for a chain of a run: one that waits for more of it, or a new one. It is kept unless it has ended."""
    with _lock:
        child = next((child for child in _idle if child.run == run and child.process.poll() is None), None)
        if child:
            _idle.remove(child)
    if child and child.timer:
        child.timer.cancel()
    child = child or _start(run)
    try:
        yield child
    except BaseException:
        end(child)
        raise
    if child.process.poll() is not None:
        return end(child)
    child.timer = threading.Timer(IDLE_SECONDS, _dismiss, (child,))
    child.timer.daemon = True
    with _lock:
        _idle.append(child)
    child.timer.start()


def _start(run: str) -> Child:
    folder = Path(tempfile.mkdtemp(prefix="orchestrate-"))
    return Child(run=run, folder=folder, process=process.start(command(folder), stderr=folder / "stderr"))


def command(folder: Path) -> Command:
    """The call that starts a program, in a folder of its own."""
    env = {name: value for name, value in os.environ.items() if name not in NOT_FOR_CHILDREN}
    return Command((sys.executable, "-m", "llamacpp_orchestrator", "work"), cwd=str(folder), env=tuple(env.items()))


def events(child: Child, work: Work) -> Iterator[News]:
    """What a program tells while it makes a chain; its `code` tells then how that ended."""
    assert child.process.stdin is not None and child.process.stdout is not None
    try:
        child.process.stdin.write(msgspec.json.encode(work) + b"\n")
        child.process.stdin.flush()
    except OSError:  # it has just ended
        child.code = child.process.wait() or 1
        return
    for line in child.process.stdout:
        item = _news(line)
        if item and item.status == OVER:
            child.code = int(item.text)
            return
        if item:
            yield item
    child.code = child.process.wait() or 1


def _news(line: bytes) -> News | None:
    """An event that the child tells; None for what some library has printed between."""
    try:
        return msgspec.json.decode(line, type=News)
    except msgspec.DecodeError:
        return None


def _dismiss(child: Child) -> None:
    """End a program that nobody has needed for a while."""
    with _lock:
        if child not in _idle:
            return
        _idle.remove(child)
    end(child)


def end(child: Child) -> None:
    """End a program, and take away what it has said."""
    process.stop(child.process)
    for pipe in (child.process.stdin, child.process.stdout):
        if pipe:
            pipe.close()
    shutil.rmtree(child.folder, ignore_errors=True)


async def end_all(run: str) -> None:
    """End the programs that wait for more of a run, which is over, and forget its order; it runs beside the worker's tasks."""
    arrivals.forget(run)
    for child in [child for child in _idle if child.run == run]:
        await asyncio.to_thread(_dismiss, child)
