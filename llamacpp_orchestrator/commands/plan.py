"""What a job would do on this machine, before it does it: the space it needs, its steps, its commands."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec

from llamacpp_orchestrator import export
from llamacpp_orchestrator.commands import disk
from llamacpp_orchestrator.commands.disk import missing_bytes
from llamacpp_orchestrator.commands.disk import needed_environments
from llamacpp_orchestrator.commands.lock import settled
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.environment import wheels
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import graph
from llamacpp_orchestrator.pipeline import memory as pipeline_memory
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.build import Outputs
from llamacpp_orchestrator.remote_outputs import mirror
from llamacpp_orchestrator.remote_outputs import store
from llamacpp_orchestrator.results import PlannedStep
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.disk import Need
from llamacpp_orchestrator.system.disk import existing
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.units import size

QUESTIONS = {"inspect": "its small files", "check": "whether the tag's script takes it"}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All steps of a job, what they need, and how many bytes of memory they may take at a time."""

    steps: tuple[PlannedStep, ...]
    needs: tuple[Need, ...]
    free: dict[str, int]
    memory: int = 0


def check_job(pinned: PinnedJob) -> None:
    """Raise JobError for what the tag's scripts do not have, where they are here to be asked."""
    if pinned.store.has("source", pinned.lock.llama_cpp.key()):
        preflight.check_job(pinned.context.job, pinned.tag, pinned.context.file.name, pinned.tree)


def make(pinned: PinnedJob, force: bool = False) -> Plan:
    """Every step of the job with its exact command, as a run would name it; touches nothing."""
    check_job(pinned)
    mirror.look(pinned.context)
    outputs = pipeline_build.outputs(pinned, force)
    stale = outputs.stale
    steps = _setup(pinned, stale) if stale else []
    for key, source in graph.fetches(pinned, stale).items():
        steps += [_brought(step, pinned.files(source.wanted)) for step in graph.brought(pinned, stale, key, source)]
    steps += [_merged(pinned, key, need) for key, need in graph.merges(stale).items()]
    for build in outputs.builds:
        steps += [step for step in _matrix(pinned, build, outputs) if step not in steps]
        steps += _made(pinned, build, build.output.path in outputs.current)
    for step in store.woven([], pinned, outputs):
        detail = pinned.context.address if step.kind == "store" else f"from {pinned.context.address}"
        steps.append(PlannedStep(name=step.name, status="run", detail=detail))
    disk.check_sizes(pinned, stale)
    needs = disk.needs(pinned, stale) + store.needs(store.sources(pinned, outputs))
    for module in export.wanted(pinned.context.job):
        items = module.find(pinned, outputs.builds)
        steps += module.planned(pinned, items, outputs.current, force)
        needs += module.needs(pinned, items, force)
    folders = dict.fromkeys(need.folder for need in needs)
    free = {folder: shutil.disk_usage(existing(folder)).free for folder in folders}
    return Plan(steps=tuple(steps), needs=needs, free=free, memory=limits.bound(pinned.context.settings))


def _brought(step: Step, pin: FilesPin) -> PlannedStep:
    if step.kind in QUESTIONS:
        return PlannedStep(name=step.name, status="run", detail=QUESTIONS[step.kind])
    missing = missing_bytes(pin)
    where = "" if pin.wanted.is_folder else f" at {pin.commit}"
    detail = f"{pin.wanted.source}{where}, {len(pin.files)} files, {size(sum(file.size for file in pin.files))}"
    return PlannedStep(name=step.name, status="run" if missing else "cached", detail=detail, download=missing)


def _merged(pinned: PinnedJob, key: str, need: Ingredient) -> PlannedStep:
    here = pinned.has_merged(need)
    weights = (f"{adapter.name}" + (f" x {weight:g}" if weight != 1 else "") for adapter, weight in need.merged)
    memory = 0 if here else pipeline_memory.of_merge(pinned, need)
    return PlannedStep(
        name=f"merge {key}", status=_cached(here), detail=f"{', '.join(weights)} into {need.parts[0].name}", memory=memory
    )


def _made(pinned: PinnedJob, build: Build, current: bool) -> list[PlannedStep]:
    """The step that makes an output, and the one that checks it."""
    name, status = f"{pipeline_build.verb(build)} {build.name}", "current" if current else "run"
    detail = "temporary, until all is made of it" if build.output.temporary else ""
    memory = 0 if current else pipeline_memory.of_build(pinned, build)
    making = PlannedStep(name=name, status=status, detail=detail, command=str(final(build)), memory=memory)
    level = build.output.model.verify if build.output.kind != "merged" else check_levels.STRUCTURE
    checking = PlannedStep(name=f"verify {build.name}", status="run", detail=level)
    return [making] if current else [making, checking]


def _matrix(pinned: PinnedJob, build: Build, outputs: Outputs) -> list[PlannedStep]:
    matrix = build.matrix
    current = build.output.path in outputs.current
    if current or not (build.of and matrix and matrix.text) or imatrix.ready(matrix, pinned.store):
        return []
    command = imatrix.command(Path(imatrix.TOOL), build.of.path, str(matrix.text), matrix.made, matrix.args, Path())
    detail = f"at most {matrix.minutes} minutes"
    return [PlannedStep(name=f"imatrix {build.origin}", status="run", detail=detail, command=str(command))]


def final(build: Build) -> Command:
    """The command of a build as a user would type it, with the final path in place of the temporary one."""
    draft = str(build.stage / build.output.path.name)
    argv = tuple(str(build.output.path) if word == draft else word for word in build.command.argv)
    return msgspec.structs.replace(build.command, argv=argv)


def _setup(pinned: PinnedJob, stale: list[Build]) -> list[PlannedStep]:
    store, lock = pinned.store, pinned.lock
    release = f"{lock.llama_cpp.release}, " if lock.llama_cpp.release else ""
    where = f"{pinned.tag} ({release}{lock.llama_cpp.commit or lock.llama_cpp.package})"
    steps = [PlannedStep(name="source", status=_cached(store.has("source", lock.llama_cpp.key())), detail=where)]
    if lock.environment is None:
        steps.append(PlannedStep(name="environment", status="own", detail=f"{pinned.context.job.environment.path} (unpinned)"))
    for pin, _ in needed_environments(lock, stale):
        count = len(wheels.packages(pin.requirements, wheels.here(), pin.python))
        detail = f"Python {pin.python}, {count} packages, torch {pin.torch}"
        name = "environment" if pin is lock.environment else "reference"
        steps.append(PlannedStep(name=name, status=_cached(store.has("environments", pin.pin().digest())), detail=detail))
    return steps + ([_binaries(pinned)] if any(map(pipeline_build.needs_programs, stale)) else [])


def _cached(here: bool) -> str:
    return "cached" if here else "run"


def _binaries(pinned: PinnedJob) -> PlannedStep:
    if not binaries.from_source(pinned.context):
        return PlannedStep(name="binaries", status="run", detail=f"of release {pinned.tag}")
    status = "cached" if binaries.installed(pinned) else "build"
    with_ = binaries.toolchain(lock_resolve.this_host()).said()
    return PlannedStep(name="binaries", status=status, detail=f"from the source of {pinned.tag}, with {with_}")


def lines(plan: Plan) -> list[str]:
    """A plan as text."""
    rows, most = [], max((step.memory for step in plan.steps), default=0)
    for step in plan.steps:
        parts = [step.detail] if step.detail else []
        parts += [f"download {size(step.download)}"] if step.download else []
        parts += [f"{size(step.memory)} of memory (estimate)"] if step.memory else []
        rows.append(f"{step.status:<8}{step.name}" + (f": {', '.join(parts)}" if parts else ""))
        if step.command:
            rows.append(f"        $ {step.command}")
    for need in plan.needs:
        rows.append(f"disk    {size(need.bytes)}{'' if need.exact else ' (estimate)'} for {need.what}, in {need.folder}")
    rows += [f"memory  at most {size(plan.memory)} at a time"] if most and plan.memory else []
    return rows + [f"free    {size(free)} at {folder}" for folder, free in plan.free.items()]


def preview(context: Context, options: Options, report: Reporter) -> Plan:
    """What a run would do; what is not locked is resolved in a cache of its own, so that nothing is left behind."""
    lock = lock_file.read(lock_file.path_for(context.file))
    if lock is None or diff.stale_reasons(context.job, lock):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            apart = msgspec.structs.replace(context, store=Store(Path(scratch)))
            lock = settled(apart, msgspec.structs.replace(options, write_lock=False, downloads=False), report)
            check_job(PinnedJob(apart, lock))
    return make(PinnedJob(context, lock), options.force)
