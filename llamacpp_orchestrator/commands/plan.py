"""What a job would do on this machine, before it does it: the space it needs, its steps, its commands."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec

from llamacpp_orchestrator.commands.disk import Need
from llamacpp_orchestrator.commands.disk import existing
from llamacpp_orchestrator.commands.disk import measuring
from llamacpp_orchestrator.commands.disk import missing_bytes
from llamacpp_orchestrator.commands.disk import needed_environments
from llamacpp_orchestrator.commands.disk import needs
from llamacpp_orchestrator.commands.lock import settled
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.export import ollama
from llamacpp_orchestrator.export import quality
from llamacpp_orchestrator.export.quality import Asked
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import memory as pipeline_memory
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.units import size
from llamacpp_orchestrator.verify import perplexity


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step as it would be done: its command if it has one, the bytes it downloads, or that it is up to date.

    `memory` is about how many bytes it takes at its peak; 0 for little, or while the headers that tell are not here.
    """

    name: str
    status: str
    detail: str = ""
    command: str = ""
    download: int = 0
    memory: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All steps of a job, what they need, and how many bytes of memory they may take at a time."""

    steps: tuple[PlannedStep, ...]
    needs: tuple[Need, ...]
    free: dict[str, int]
    memory: int = 0


def check_job(work: Work, lock: Lock) -> None:
    """Raise JobError for what the tag's scripts do not have, where they are here to be asked."""
    if work.store.has("source", lock.llama_cpp.key()):
        preflight.check_job(work.job, lock.llama_cpp.tag, work.file.name, pipeline_build.tree(work, lock))


def make(work: Work, lock: Lock, force: bool = False) -> Plan:
    """Every step of the job with its exact command; touches nothing."""
    check_job(work, lock)
    made = pipeline_build.builds(work, lock, force)
    stale = [build for build in made if not build.current]
    steps: list[PlannedStep] = []
    if stale:
        steps += _setup(work, lock, stale)
        for pin in dict.fromkeys(lock.files(wanted) for build in stale for wanted, _ in build.needs):
            missing = missing_bytes(pin)
            where = "" if spec.is_folder(pin.wanted.source) else f" at {pin.commit}"
            detail = f"{pin.wanted.source}{where}, {len(pin.files)} files, {size(sum(file.size for file in pin.files))}"
            steps.append(
                PlannedStep(
                    name=f"fetch {pin.wanted.source}", status="run" if missing else "cached", detail=detail, download=missing
                )
            )
    for build in made:
        verb = "quantize" if build.of else "convert"
        status = "current" if build.current else "run"
        steps += [step for step in _matrix(work, build) if step not in steps]
        detail = "temporary, until all is made of it" if build.output.temporary else ""
        memory = 0 if build.current else pipeline_memory.of_build(work, lock, build)
        named = f"{verb} {build.name}"
        steps.append(PlannedStep(name=named, status=status, detail=detail, command=str(final(build)), memory=memory))
    for each in ollama.find(made):
        steps.append(PlannedStep(name=f"modelfile {each.path.name}", status=ollama.status(work, lock, each), detail=each.name))
    asked = quality.find(work, made)
    for one in asked:
        steps += _measured(work, lock, one, force)
    found = needs(work, lock, stale) + measuring(work, lock, asked, force)
    folders = dict.fromkeys(need.folder for need in found)
    free = {folder: shutil.disk_usage(existing(folder)).free for folder in folders}
    return Plan(steps=tuple(steps), needs=found, free=free, memory=limits.bound(work.settings))


def _matrix(work: Work, build: Build) -> list[PlannedStep]:
    matrix = build.matrix
    if build.current or not (build.of and matrix and matrix.text) or imatrix.ready(matrix, work.store):
        return []
    made_by = imatrix.command(Path(imatrix.TOOL), build.of.path, str(matrix.text), matrix.made, matrix.args, Path())
    detail = f"at most {matrix.minutes} minutes"
    return [PlannedStep(name=f"imatrix {build.origin}", status="run", detail=detail, command=str(made_by))]


def _measured(work: Work, lock: Lock, each: Asked, force: bool) -> list[PlannedStep]:
    left, found = quality.stale(work, lock, each), []
    for build in (each.base, *each.made):
        text = each.text if build == each.base else None
        asked = str(perplexity.command(Path(perplexity.TOOL), build.output.path, each.asked, text))
        status = "run" if force or build in left or not build.current else "current"
        found.append(PlannedStep(name=quality.name(build), status=status, command=asked))
    return found


def final(build: Build) -> Command:
    """The command of a build as a user would type it, with the final path in place of the temporary one."""
    draft = str(build.stage / build.output.path.name)
    argv = tuple(str(build.output.path) if word == draft else word for word in build.command.argv)
    return msgspec.structs.replace(build.command, argv=argv)


def _setup(work: Work, lock: Lock, stale: list[Build]) -> list[PlannedStep]:
    store = work.store
    have = store.has("source", lock.llama_cpp.key())
    release = f"{lock.llama_cpp.release}, " if lock.llama_cpp.release else ""
    where = f"{lock.llama_cpp.tag} ({release}{lock.llama_cpp.commit or lock.llama_cpp.package})"
    made = [PlannedStep(name="source", status="cached" if have else "run", detail=where)]
    if lock.environment is None:
        made.append(PlannedStep(name="environment", status="own", detail=f"{work.job.environment.path} (unpinned)"))
    for pin, _ in needed_environments(lock, stale):
        have = store.has("environments", pin.pin().digest())
        detail = f"Python {pin.python}, {pin.requirements.count('==')} packages, torch {pin.torch}"
        name = "environment" if pin is lock.environment else "reference"
        made.append(PlannedStep(name=name, status="cached" if have else "run", detail=detail))
    return made + ([_binaries(work, lock)] if any(map(pipeline_build.needs_programs, stale)) else [])


def _binaries(work: Work, lock: Lock) -> PlannedStep:
    if not binaries.from_source(work):
        return PlannedStep(name="binaries", status="run", detail=f"of release {lock.llama_cpp.tag}")
    status = "cached" if binaries.here(work, lock) else "build"
    with_ = binaries.toolchain(lock_resolve.this_host()).said()
    return PlannedStep(name="binaries", status=status, detail=f"from the source of {lock.llama_cpp.tag}, with {with_}")


def lines(plan: Plan) -> list[str]:
    """A plan as text."""
    shown, most = [], max((step.memory for step in plan.steps), default=0)
    for step in plan.steps:
        said = [step.detail] if step.detail else []
        said += [f"download {size(step.download)}"] if step.download else []
        said += [f"{size(step.memory)} of memory (estimate)"] if step.memory else []
        shown.append(f"{step.status:<8}{step.name}" + (f": {', '.join(said)}" if said else ""))
        if step.command:
            shown.append(f"        $ {step.command}")
    for need in plan.needs:
        shown.append(f"disk    {size(need.bytes)}{'' if need.exact else ' (estimate)'} for {need.what}, in {need.folder}")
    shown += [f"memory  at most {size(plan.memory)} at a time"] if most and plan.memory else []
    return shown + [f"free    {size(free)} at {folder}" for folder, free in plan.free.items()]


def preview(work: Work, options: Options, report: Reporter) -> Plan:
    """What a run would do; what is not locked is resolved in a cache of its own, so that nothing is left behind."""
    lock = lock_file.read(lock_file.path_for(work.file))
    if lock is None or diff.stale_reasons(work.job, lock):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            aside = msgspec.structs.replace(work, store=Store(Path(scratch)))
            lock = settled(aside, msgspec.structs.replace(options, write_lock=False, downloads=False), report)
            check_job(aside, lock)
    return make(work, lock, options.force)
