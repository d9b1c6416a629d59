"""From a receipt back to its job: make the output anew elsewhere and compare, or hash again all that it was made from."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.commands import run
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.context import at_work
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.pipeline import actions
from llamacpp_orchestrator.pipeline import adapter_staging
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.pipeline.receipt import Receipt
from llamacpp_orchestrator.source import tree
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import log_of
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import tempfiles
from llamacpp_orchestrator.verify import levels
from llamacpp_orchestrator.verify.gguf import Checks

MOST_LINES = 20


class Reproduced(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an output: its digest by the receipt and as made now, and where the two differ."""

    path: str
    recorded: str
    made: str
    differences: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same as text."""
        same = "identical" if self.made == self.recorded else "differs"
        return [f"{same:<11}{self.path}", *(f"           {line}" for line in self.differences)]


def origin(path: Path, settings: Settings, job: Path | None = None) -> tuple[Receipt, PinnedJob]:
    """The receipt of an output, its job, and a lock that says of it what the one of then did.

    JobError when the receipt or the job cannot be found, LockError when the lock says something else now.
    """
    path = Path(os.path.abspath(path))
    output = path.with_name(path.name.removesuffix(pipeline_receipt.SUFFIX))
    receipt = pipeline_receipt.read(output) or pipeline_receipt.read(
        output.with_name(pipeline_receipt.SHARD.sub("", output.name))
    )
    if receipt is None:
        raise JobError(f"{path} has no readable receipt", "name an output that orchestrate has made, or its receipt")
    file = job.absolute() if job else Path(os.path.normpath(output.parent / receipt.job))
    if not receipt.job and job is None or not file.is_file():
        raise JobError(
            f"{output.name}: its job {receipt.job or 'is not named in the receipt and'} is not there", "name it: --job FILE"
        )
    context = at_work(loader.load(file), file, settings)
    lock = lock_file.read(lock_file.path_for(file))
    if lock is None or not _same(PinnedJob(context, lock), receipt):
        have = lock_file.digest(lock) if lock else "none"
        raise LockError(
            f"{output.name} was made with lock {receipt.versions.lock or 'unknown'}, {lock_file.path_for(file).name} is {have}",
            "restore the job and its lock as they were then (git log), and try again",
        )
    return receipt, PinnedJob(context, lock)


def _same(pinned: PinnedJob, receipt: Receipt) -> bool:
    """Whether a lock says of one output what it said when that was made, whatever has become of its other parts."""
    if lock_file.digest(pinned.lock) == receipt.versions.lock:
        return True
    if diff.stale_reasons(pinned.context.job, pinned.lock):
        return False
    return receipt.recipe in [build.recipe for build in pipeline_build.builds(pinned) if build.output.path.name == receipt.path]


def reproduce(path: Path, settings: Settings, job: Path | None, options: Options, report: Reporter) -> tuple[Reproduced, ...]:
    """Make an output again in a temporary folder and compare each of its files; raises what kept it from being made."""
    receipt, pinned = origin(path, settings, job)
    context = pinned.context
    with tempfile.TemporaryDirectory(
        dir=context.store.folder("downloads"), prefix="reproduce-", ignore_cleanup_errors=True
    ) as scratch:
        apart = msgspec.structs.replace(context, job=msgspec.structs.replace(context.job, output=scratch), address="")
        alike = [build for build in pipeline_build.builds(pinned) if build.output.path.name == receipt.path]
        names = tuple(build.name for build in [build for build in alike if receipt.recipe in build.recipes] or alike)
        result = run.run(apart, msgspec.structs.replace(options, locked=True, write_lock=False, only=names), report)
        if result.errors:
            raise result.errors[0]
        made = {Path(output.path).name: Path(output.path) for output in result.outputs}
        if not any(file.name in made for file in receipt.files):
            raise JobError(f"{context.file.name} makes no {receipt.path} any more", "restore the job as it was then (git log)")
        folder, digests = path.absolute().parent, {Path(output.path).name: output.sha256 for output in result.outputs}
        return tuple(
            Reproduced(
                path=str(folder / file.name),
                recorded=file.sha256,
                made=digests.get(file.name, "not made"),
                differences=()
                if digests.get(file.name) in (None, file.sha256)
                else tuple(_differences(pinned, folder / file.name, made[file.name])),
            )
            for file in receipt.files
        )


def _differences(pinned: PinnedJob, old: Path, new: Path) -> list[str]:
    if not old.is_file():
        return [f"{old.name} is not there any more; only its digest could be compared"]
    python, package = str(pinned.python), str(pinned.tree / "gguf-py")
    command = Command((python, str(inside.path("gguf_diff")), package, str(old), str(new)), env=pinned.script_env)
    answer = process.capture(sandbox.around(command, limits.limits(pinned.context.settings)), timeout=3600)
    lines: list[str] = json.loads(answer)
    more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return lines[:MOST_LINES] + more or ["metadata and tensors are equal; only their layout differs"]


def check(path: Path, settings: Settings, level: str, read: tuple[Checks, ...] = ()) -> list[str]:
    """What is wrong with an output by a level of checks; [] is good. JobError when what they need is not on this machine.

    `read` is what reading its files has found.
    """
    receipt, pinned = origin(path, settings)
    context, lock = pinned.context, pinned.lock
    build = next((build for build in pipeline_build.builds(pinned) if build.output.path.name == receipt.path), None)
    if build is None:
        raise JobError(f"{context.file.name} makes no {receipt.path} any more", "restore the job as it was then (git log)")
    if build.output.kind == "merged":
        return []  # there is nothing to compare it with but its receipt, by which it has been checked
    files = [build.output.path.parent / file.name for file in receipt.files]
    find = functools.partial(binaries.tool, pinned) if level in check_levels.RUNNING else None
    log = tempfiles.renew(log_of(f"verify {build.name}", context.store.folder("logs")))
    subject = actions.subject(pinned, build, files, log, find)
    if find and not binaries.ready(pinned):
        raise JobError(
            f"the programs of {pinned.tag}, which `{level}` needs, are not on this machine",
            f"get them with: {context.command('setup')}",
        )
    if build.of and not subject.of and level != check_levels.STRUCTURE:
        raise JobError(
            f"{receipt.path} was made from a temporary file, which is gone", "reproduce it, or check it with --level structure"
        )
    judges = (Path(subject.reference),) if level in check_levels.COMPARING else ()
    if judges and lock.reference is None:
        way = f"set `verify: logits` for {build.output.model.name} in {context.file.name}, then: {context.command('setup')}"
        raise JobError(f"{lock_file.path_for(context.file).name} pins nothing to compare next tokens with", way)
    for paths, command in ((subject.of, "run"), ((subject.tree, Path(subject.python), *judges), "setup")):
        if missing := [path for path in paths if not path.exists()]:
            raise JobError(f"{missing[0]} is not on this machine", f"bring it here first: {context.command(command)}")
    lock_tree.get_tree(context, lock.llama_cpp, lambda text: None)  # anew, where it was changed since
    if not build.of or level in check_levels.COMPARING:
        _show(pinned, build)
    folder = context.store.folder("downloads")
    with tempfile.TemporaryDirectory(dir=folder, prefix="verify-", ignore_cleanup_errors=True) as scratch:
        subject = msgspec.structs.replace(subject, level=level, scratch=Path(scratch), checks=read)
        try:
            levels.check(subject, warm_worker.run_alone, lambda text: None)
        except OrchestrateError as error:
            return [error.message]
    return []


def _show(pinned: PinnedJob, build: pipeline_build.Build) -> None:
    """Make the views of an output's sources, where they have gone, out of what is on this machine and as it was locked."""
    lora = build.output.lora
    model = msgspec.structs.replace(build.output.model, loras=(lora,) if lora else ())
    here = msgspec.structs.replace(
        pinned.context,
        job=msgspec.structs.replace(pinned.context.job, models=(model,)),
        settings=msgspec.structs.replace(pinned.context.settings, offline=True),
    )
    offline = PinnedJob(here, pinned.lock)
    local_folders.drift(offline)
    for need in build.needs or (records.model_need(model),):
        for part in need.parts:
            try:
                setup.bring(offline, offline.files(part.wanted), part.name, lambda text: None)
            except NetworkError as error:
                again = f"bring them here, and make it again: {pinned.context.command('run', '--force')}"
                raise JobError(f"the files of {part.wanted.source} are not on this machine", again) from error
        if need.merged:
            adapter_staging.make_merged(
                offline, need, log_of(f"merge {need.name}", pinned.store.folder("logs")), lambda text: None
            )


def recheck(path: Path, settings: Settings) -> list[str]:
    """What is not as its lock says among the things on this machine that an output was made from; [] is good."""
    _, pinned = origin(path, settings)
    context, lock = pinned.context, pinned.lock
    complaints = []
    if context.store.mark("source", lock.llama_cpp.key()):
        digest = tree.tree_digest(pinned.tree)
        if digest != lock.llama_cpp.tree:
            complaints.append(f"the converter tree has digest {digest}, locked {lock.llama_cpp.tree}")
    for pin in lock_file.environments(lock):
        if context.store.mark("environments", key := pin.pin().digest()):
            complaints += venv.altered(context.store.entry("environments", key))
    if lock.assets and records.uses_binaries(context.job):
        complaints += binaries.altered(pinned)
    return complaints + [line for pin in lock.models for line in _changed(context, pin)]


def _changed(context: Context, pin: FilesPin) -> Iterator[str]:
    local = pin.wanted.is_folder
    snapshot = pin.snapshot
    for file in pin.files:
        path = context.folder(pin.wanted.source) / file.path if local else hub.cached(snapshot, file)
        if not path.is_file():
            # What the hub's cache has let go can be fetched again; a folder of the user's own is the only copy.
            if local:
                yield f"{path} is gone"
            continue
        if (digest := hub.digest_of(path, file)) != (file.sha256 or file.oid):
            yield f"{path} has digest {digest}, locked {file.sha256 or file.oid}"
