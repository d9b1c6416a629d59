"""The folder in which an output is made, its lock, and the renames that put it in its place with its receipt."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Container
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from filelock import Timeout

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.build import Outputs
from llamacpp_orchestrator.pipeline.build import is_current
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.cancel import look_for_stop
from llamacpp_orchestrator.util.store import link
from llamacpp_orchestrator.util.store import remove

# In a stage folder, held by whoever works there: the locks of outputs are those of one cache, and a disk may have many machines.
MARK = ".at-work"


class Locks:
    """The locks of outputs that one run holds: taken before an output is made, given back once it lies in its place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[Path, FileLock] = {}
        self._marks: dict[Path, FileLock] = {}

    def of(self, build: Build) -> FileLock:
        """The lock of an output, which is one for all runs on this machine."""
        key = hashlib.sha256(os.path.normcase(build.output.path.resolve()).encode()).hexdigest()[:32]
        return FileLock(self._folder / f"output-{key}.lock", thread_local=False, is_singleton=False)

    def acquire(self, build: Build, tell: Tell) -> None:
        """Take the lock of an output, once no other run has it."""
        lock = self.of(build)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell("note: another run is making this file; waiting for it")
            while not lock.is_locked:
                look_for_stop()
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=0.5)
        self._held[build.output.path] = lock

    def holds(self, build: Build) -> bool:
        """Tell whether this run has the lock of an output."""
        return build.output.path in self._held

    def enter(self, build: Build) -> None:
        """Let every other run know that its stage folder is at work; on a disk without locks none will."""
        mark = FileLock(build.stage / MARK, thread_local=False, is_singleton=False)
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            mark.acquire(timeout=0)
            self._marks[build.output.path] = mark

    def leave(self, build: Build) -> None:
        """Let go of its stage folder: what is in there may be put into its place, or be taken away."""
        if mark := self._marks.pop(build.output.path, None):
            mark.release()
            remove(Path(mark.lock_file))

    def release(self, build: Build) -> None:
        """Let other runs make this output."""
        self.leave(build)
        if lock := self._held.pop(build.output.path, None):
            lock.release()


def prepare(locks: Locks, build: Build, force: bool, tell: Tell) -> bool:
    """Take the lock of an output and finish what was interrupted there; whether it must be made still."""
    locks.acquire(build, tell)
    left = _place_left(build)
    if not force and is_current(build):
        return False
    try:
        build.output.path.parent.mkdir(parents=True, exist_ok=True)
        for stage in left:
            remove(stage)
        build.stage.mkdir()
        locks.enter(build)
    except OSError as error:
        message = f"cannot write into {build.output.path.parent}: {error.strerror}"
        raise OrchestrateError(message, "check the folder's rights") from error
    return True


def finish_interrupted(locks: Locks, builds: Iterable[Build]) -> None:
    """End what a killed run left half placed, so that its files are known as ours."""
    listed = functools.cache(_stages)  # once for all outputs of a folder
    for build in builds:
        if build.stage_key in listed(build.output.path.parent):
            with locks.of(build):
                _place_left(build)


def recognise(locks: Locks, stale: Iterable[Build]) -> bool:
    """Tell whether some outputs are current after all, and have lost no more than their times; not those being made just now."""
    recognised = False
    for build in stale:
        with contextlib.suppress(Timeout), locks.of(build).acquire(timeout=0):
            recognised |= not is_current(build) and pipeline_receipt.recognise(build.output.path, build.recipes)
    return recognised


@contextlib.contextmanager
def staged(build: Build) -> Iterator[None]:
    """Do what needs the stage folder of an output; OrchestrateError where somebody takes the folder away meanwhile."""
    try:
        yield
    except Exception as error:
        if build.stage.exists():
            raise
        folder = build.stage.parent
        way = "does another program clean that folder, or the locks in the cache?"
        message = f"{build.stage} was removed while {build.name} was made in it"
        if not folder.is_dir():
            gone = "is a file now" if folder.exists() else "was removed or renamed"
            message = f"the output folder {folder} {gone} while {build.name} was made in it"
            way = "leave that folder alone while it runs, or set another `output`"
        raise OrchestrateError(message, f"run the same command again; {way}") from error


def spent(outputs: Outputs, ended: Container[str]) -> list[Path]:
    """The folders of temporary outputs of which all has been made and checked; `ended` has the names of steps that ended well."""
    temporary = [build.output.path for build in outputs.builds if build.output.temporary]
    left = {build.of.path for build in outputs.stale if build.of and f"verify {build.name}" not in ended}
    return [path.parent for path in temporary if path not in left]


def _stages(folder: Path) -> dict[str, list[Path]]:
    """The folders in which runs make the outputs of a folder now, or have left something, by the key of their output."""
    found: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError):
        names = os.listdir(folder)  # noqa: PTH208 - for each output of a folder that may hold thousands
        for name in sorted(name for name in names if name.endswith(".stage")):
            found.setdefault(name[1:].partition(".")[0], []).append(folder / name)
    return found


def _is_left(stage: Path) -> bool:
    """Tell whether nobody works in a stage folder any more, on whatever machine."""
    mark = stage / MARK
    try:
        if mark.exists():
            with FileLock(mark, thread_local=False, is_singleton=False, timeout=0):
                return True
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        return True
    return True


def _place_left(build: Build) -> list[Path]:
    """Place what killed runs have checked; the folders that they had, which may be there still."""
    stages = list(filter(_is_left, _stages(build.output.path.parent).get(build.stage_key, [])))
    for stage in stages:
        place(build.output.path, stage)
    return stages


def place(path: Path, stage: Path) -> None:
    """Rename a checked output into its final place, its receipt last.

    The receipt lies in the stage folder before the first rename: whoever finds it there, after a crash, ends the work.
    """
    receipt = pipeline_receipt.read(stage / path.name)
    if receipt is None:
        return
    former = pipeline_receipt.read(path)
    for file in receipt.files:
        dest = path.parent / file.name
        if (stage / file.name).exists():
            dest.parent.mkdir(exist_ok=True)
            try:
                os.replace(stage / file.name, dest)
            except FileNotFoundError:  # another machine has done the same just now
                if not dest.is_file() or dest.stat().st_size != file.size:
                    raise
    try:  # it is on the disk already, and stays there as well until all is done
        link(pipeline_receipt.receipt_path(stage / path.name), pipeline_receipt.receipt_path(path))
    except FileNotFoundError:  # as above
        pipeline_receipt.write(path, receipt)
    for name in {file.name for file in former.files} - {file.name for file in receipt.files} if former else ():
        remove(path.parent / name)
    remove(stage)


def clean(locks: Locks, stale: Iterable[Build]) -> None:
    """Remove what an interrupted or failed run has left beside its outputs."""
    for build in stale:
        if locks.holds(build):
            locks.leave(build)
            # After a signal between two renames, what was checked and half in its place goes all the way.
            place(build.output.path, build.stage)
            remove(build.stage)
            if build.output.temporary and pipeline_receipt.read(build.output.path) is None:
                remove(build.output.path.parent)
            locks.release(build)
