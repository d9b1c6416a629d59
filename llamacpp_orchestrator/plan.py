"""What a job would do on this machine, before it does it: the space it needs, its steps, its commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import claims
from llamacpp_orchestrator import hub
from llamacpp_orchestrator import imatrix
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import ollama
from llamacpp_orchestrator import pins
from llamacpp_orchestrator import preflight
from llamacpp_orchestrator import programs
from llamacpp_orchestrator import quality
from llamacpp_orchestrator import reference
from llamacpp_orchestrator import spec
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import EnvironmentPin
from llamacpp_orchestrator.lock import FilesPin
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.quality import Asked
from llamacpp_orchestrator.report import size
from llamacpp_orchestrator.work import Work

# Bits per weight, from ggml's block layouts; K-quants and IQ types mix, so theirs are upstream's averages, rounded up.
BITS = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "tq1_0": 2.0, "tq2_0": 2.5, "auto": 16.0,
    "q6_k": 6.6, "q5_k_m": 5.8, "q5_k_s": 5.6, "q5_0": 5.6, "q5_1": 6.1, "q4_k_m": 5.0, "q4_k_s": 4.7, "q4_0": 4.7, "q4_1": 5.2,
    "q3_k_l": 4.4, "q3_k_m": 4.1, "q3_k_s": 3.7, "q2_k": 3.5, "iq4_xs": 4.5, "iq4_nl": 4.7, "iq3_m": 3.8, "iq2_m": 3.0,
    "iq1_s": 2.1, "iq1_m": 2.3, "iq2_xxs": 2.5, "iq2_xs": 2.7, "iq2_s": 2.9, "iq3_xxs": 3.5, "iq3_xs": 3.7, "iq3_s": 3.8,
    "q2_k_s": 3.4, "q3_k": 4.1, "q4_k": 5.0, "q5_k": 5.8, "q1_0": 1.5, "q2_0": 2.6, "mxfp4_moe": 4.7,
}  # fmt: skip
PROJECTOR_SHARE = 5  # what looks and listens is rarely more than a fifth of a model
ENVIRONMENT_BYTES = {"cpu": 1_500_000_000}
GPU_ENVIRONMENT_BYTES = 7_000_000_000
BUILD_BYTES = 1_000_000_000
MARGIN = 50_000_000


class Need(msgspec.Struct, frozen=True):
    """Bytes that will be written below a folder, and for what; an estimate when `exact` is false."""

    folder: str
    bytes: int
    what: str
    exact: bool = True


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


def needs(work: Work, lock: Lock, stale: Iterable[Build]) -> tuple[Need, ...]:
    """What the outputs that are to be made will write, and where."""
    stale = list(stale)
    found: list[Need] = []
    for pin in dict.fromkeys(lock.files(wanted) for build in stale for wanted, _ in build.needs):
        if missing := missing_bytes(pin):
            found.append(Need(str(hub.cache_folder()), missing, f"download of {pin.wanted.source}"))
    for pinned, what in _environments(lock, stale):
        if not work.store.has("environments", pinned.pin().digest()):
            size = ENVIRONMENT_BYTES.get(pinned.torch, GPU_ENVIRONMENT_BYTES)
            found.append(Need(str(work.store.root), size, what, exact=False))
    if any(build.of for build in stale) and programs.from_source(work) and not programs.here(work, lock):
        found.append(Need(str(work.store.root), BUILD_BYTES, "building the programs", exact=False))
    for build in stale:
        folder = building.visible(build.output).parent
        found.append(Need(str(folder), estimate(lock, build), build.name, exact=False))
    return tuple(found)


def _environments(lock: Lock, stale: list[Build]) -> Iterator[tuple[EnvironmentPin, str]]:
    """The environments that are needed to make some outputs, and what each of them is called."""
    if stale and lock.environment:
        yield lock.environment, "the Python environment"
    if lock.reference and any(map(building.is_compared, stale)):
        yield lock.reference, reference.TITLE


def measuring(work: Work, lock: Lock, asked: Iterable[Asked], force: bool = False) -> tuple[Need, ...]:
    """What the largest of the reports needs while it is made: they are made one after the other."""
    folder = str(work.store.root / "downloads")
    left = [each for each in asked if force or quality.stale(work, lock, each)]
    found = [Need(folder, quality.estimate(each), f"measuring {each.base.output.model.name}", exact=False) for each in left]
    return tuple(sorted(found, key=lambda need: -need.bytes)[:1])


def missing_files(pin: FilesPin) -> tuple[hub.HubFile, ...]:
    """The files of a pin that are not on this machine yet."""
    if spec.is_folder(pin.wanted.source):
        return ()
    return hub.missing(hub.Snapshot(source=pin.wanted.source, commit=pin.commit, files=pin.files))


def missing_bytes(pin: FilesPin) -> int:
    """The bytes of a pin's files that are not on this machine yet."""
    return sum(file.size for file in missing_files(pin))


def check_offline(work: Work, lock: Lock, stale: Iterable[Build], quantizing: bool) -> None:
    """Raise NetworkError that lists what would have to be fetched, if something would and the network may not be asked."""
    if not work.settings.offline:
        return
    stale, lacking = list(stale), []
    if not work.store.has("source", lock.llama_cpp.key()):
        lacking.append(f"the converter tree of {lock.llama_cpp.tag}")
    for pinned, what in _environments(lock, stale) if work.settings.index.index_urls else ():
        lacking += [] if work.store.has("environments", pinned.pin().digest()) else [what]
    if quantizing and (absent := programs.lacking(work, lock)):
        lacking.append(absent)
    for pin in dict.fromkeys(lock.files(wanted) for build in stale for wanted, _ in build.needs):
        lacking += [f"{pin.wanted.source}: {file.path} ({size(file.size)})" for file in missing_files(pin)]
    if lacking:
        message = f"--offline: these are not on this machine: {'; '.join(lacking)}"
        raise NetworkError(message, "run the same command once without --offline")


def estimate(lock: Lock, build: Build) -> int:
    """About how large an output will be; weights are taken to have two bytes each, as nearly all published ones have."""
    output = build.output
    wanted = locks.lora_wanted(output.lora) if output.lora else locks.base_wanted(output.model)
    weights = sum(file.size for file in lock.files(wanted).files if file.path.endswith(".safetensors"))
    if output.kind == "mmproj":
        weights //= PROJECTOR_SHARE
    return int(weights / 2 * BITS.get(output.type.lower(), 16.0) / 8)


def check_space(found: Iterable[Need]) -> None:
    """Raise OrchestrateError when a disk cannot hold what will be written to it, saying how much is missing where."""
    disks: dict[int, list[Need]] = {}
    for need in found:
        disks.setdefault(existing(need.folder).stat().st_dev, []).append(need)
    lines = []
    for group in disks.values():
        wanted, free = sum(need.bytes for need in group) + MARGIN, shutil.disk_usage(existing(group[0].folder)).free
        if wanted > free:
            parts = ", ".join(f"{size(need.bytes)} for {need.what}" for need in sorted(group, key=lambda need: -need.bytes)[:4])
            lines.append(
                f"{existing(group[0].folder)}: need {size(wanted)}, have {size(free)}, {size(wanted - free)} missing ({parts})"
            )
    if lines:
        raise OrchestrateError(
            "the disk cannot hold this job: " + "; ".join(lines),
            "free some space, or move the cache (ORCHESTRATE_CACHE_DIR), the models (HF_HOME) or the `output` folder",
        )


def check_place(work: Work) -> None:
    """Raise OrchestrateError when the outputs could not be written where the job wants them; told before any download."""
    place = existing(spec.folder(work.job.output, work.file.parent))
    if not os.access(place, os.W_OK):
        raise OrchestrateError(f"{place} cannot be written to", "check the folder's rights, or set another `output`")


def existing(folder: str | Path) -> Path:
    """The nearest folder that is there already: a path itself, or what it will be made in."""
    path = Path(folder).absolute()
    return next((parent for parent in (path, *path.parents) if parent.exists()), path)


def check_job(work: Work, lock: Lock) -> None:
    """Raise JobError for what the tag's scripts do not have, where they are here to be asked."""
    if work.store.has("source", lock.llama_cpp.key()):
        preflight.check_job(work.job, lock.llama_cpp.tag, work.file.name, building.tree(work, lock))


def make(work: Work, lock: Lock, force: bool = False) -> Plan:
    """Every step of the job with its exact command; touches nothing."""
    check_job(work, lock)
    made = building.builds(work, lock, force)
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
        memory = 0 if build.current else claims.of_build(work, lock, build)
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
    return Plan(steps=tuple(steps), needs=found, free=free, memory=claims.bound(work.settings))


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
        asked = str(quality.command(Path(quality.TOOL), build.output.path, each.asked, text))
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
    for pin, _ in _environments(lock, stale):
        have = store.has("environments", pin.pin().digest())
        detail = f"Python {pin.python}, {pin.requirements.count('==')} packages, torch {pin.torch}"
        name = "environment" if pin is lock.environment else "reference"
        made.append(PlannedStep(name=name, status="cached" if have else "run", detail=detail))
    return made + ([_binaries(work, lock)] if any(map(building.needs_programs, stale)) else [])


def _binaries(work: Work, lock: Lock) -> PlannedStep:
    if not programs.from_source(work):
        return PlannedStep(name="binaries", status="run", detail=f"of release {lock.llama_cpp.tag}")
    status = "cached" if programs.here(work, lock) else "build"
    with_ = programs.toolchain(pins.this_host()).said()
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
