"""The folder in which an output is made, its lock, and the renames that put it in its place with its receipt."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from filelock import FileLock
from filelock import Timeout

from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import log_of
from llamacpp_orchestrator.util.archive import look_for_stop
from llamacpp_orchestrator.util.store import remove


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """Where one run makes things: its log folder, its converter, the locks that it holds, and whether it may overwrite.

    `waiting` has for each temporary output what is still to be made of it, `notes` what a receipt is to tell; `warm` begins to
    load what conversions need, where that can be done once for all; `memory` is how many bytes all that runs at a time may take.
    """

    work: Work
    lock: Lock
    logs: Path
    converter: Run
    held: dict[Path, FileLock]
    waiting: dict[Path, set[Path]] = {}
    notes: dict[Path, tuple[str, ...]] = {}
    force: bool = False
    jobs: int = 0
    warm: Callable[[], None] | None = None
    memory: int = 0

    def log(self, step: str) -> Path:
        """The log file of one step."""
        return log_of(step, self.logs)


def prepare(bench: Bench, build: Build, tell: Tell) -> bool:
    """Take the lock of an output and finish what was interrupted there; whether the output then is current."""
    path, held = build.output.path, _lock(bench, build)
    try:
        held.acquire(timeout=0)
    except Timeout:
        tell("note: another run is making this file; waiting for it")
        while not held.is_locked:
            look_for_stop()
            with contextlib.suppress(Timeout):
                held.acquire(timeout=0.5)
    bench.held[path] = held
    publish(build)
    if not bench.force and pipeline_receipt.is_current(pipeline_receipt.read(path), build.recipe, path.parent):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(build.stage)
        build.stage.mkdir()
    except OSError as error:
        raise OrchestrateError(f"cannot write into {path.parent}: {error.strerror}", "check the folder's rights") from error
    return True


def _lock(bench: Bench, build: Build) -> FileLock:
    key = hashlib.sha256(os.path.normcase(build.output.path.resolve()).encode()).hexdigest()[:32]
    return FileLock(bench.work.store.folder("locks") / f"output-{key}.lock", thread_local=False, is_singleton=False)


def heal(bench: Bench, build: Build) -> None:
    """End what a killed run left half published, so that its files are known as ours."""
    if build.stage.exists():
        with _lock(bench, build):
            publish(build)


def drop_temporary(bench: Bench, build: Build) -> None:
    """Remove the temporary output that this one was made of, once nothing else is to be made of it."""
    path = build.of.path if build.of else build.output.path
    left = bench.waiting.get(path, set())
    left.discard(build.output.path)
    # Two may end at once; only one of them finds it in its place.
    if build.of and not left and bench.waiting.pop(path, None) is not None:
        remove(path.parent)


def publish(build: Build) -> None:
    """Rename a checked output into its final place, its receipt last.

    The receipt lies in the stage folder before the first rename: whoever finds it there, after a crash, ends the work.
    """
    path = build.output.path
    receipt = pipeline_receipt.read(build.stage / path.name)
    if receipt is None:
        return
    known = pipeline_receipt.read(path)
    for file in receipt.files:
        if (build.stage / file.name).exists():
            os.replace(build.stage / file.name, path.parent / file.name)
    pipeline_receipt.write(path, receipt)
    for name in {file.name for file in known.files} - {file.name for file in receipt.files} if known else ():
        remove(path.parent / name)
    remove(build.stage)


def release(bench: Bench, build: Build) -> None:
    """Let other runs make this output."""
    if held := bench.held.pop(build.output.path, None):
        held.release()


def clean(bench: Bench, made: list[Build]) -> None:
    """Remove what an interrupted or failed run has left beside its outputs."""
    for build in made:
        if build.output.path in bench.held:
            publish(build)  # a signal between two renames: what was checked and half in its place goes all the way
            remove(build.stage)
            if build.output.temporary and pipeline_receipt.read(build.output.path) is None:
                remove(build.output.path.parent)
            release(bench, build)
