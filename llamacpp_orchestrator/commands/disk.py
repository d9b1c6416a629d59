"""How much a job puts on the disk, and whether there is room for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.export import quality
from llamacpp_orchestrator.export.quality import Asked
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.util.disk import shortage
from llamacpp_orchestrator.util.units import size

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


def needs(work: Work, lock: Lock, stale: Iterable[Build]) -> tuple[Need, ...]:
    """What the outputs that are to be made will write, and where."""
    stale = list(stale)
    found: list[Need] = []
    for pin in dict.fromkeys(lock.files(wanted) for build in stale for wanted, _ in build.needs):
        if missing := missing_bytes(pin):
            found.append(Need(str(hub.cache_folder()), missing, f"download of {pin.wanted.source}"))
    for pinned, what in needed_environments(lock, stale):
        if not work.store.has("environments", pinned.pin().digest()):
            count = ENVIRONMENT_BYTES.get(pinned.torch, GPU_ENVIRONMENT_BYTES)
            found.append(Need(str(work.store.root), count, what, exact=False))
    if any(build.of for build in stale) and binaries.from_source(work) and not binaries.here(work, lock):
        found.append(Need(str(work.store.root), BUILD_BYTES, "building the programs", exact=False))
    for build in stale:
        folder = pipeline_build.visible(build.output).parent
        found.append(Need(str(folder), estimate(lock, build), build.name, exact=False))
    return tuple(found)


def needed_environments(lock: Lock, stale: list[Build]) -> Iterator[tuple[EnvironmentPin, str]]:
    """The environments that are needed to make some outputs, and what each of them is called."""
    if stale and lock.environment:
        yield lock.environment, "the Python environment"
    if lock.reference and any(map(pipeline_build.is_compared, stale)):
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
    for pinned, what in needed_environments(lock, stale) if work.settings.index.index_urls else ():
        lacking += [] if work.store.has("environments", pinned.pin().digest()) else [what]
    if quantizing and (absent := binaries.lacking(work, lock)):
        lacking.append(absent)
    for pin in dict.fromkeys(lock.files(wanted) for build in stale for wanted, _ in build.needs):
        lacking += [f"{pin.wanted.source}: {file.path} ({size(file.size)})" for file in missing_files(pin)]
    if lacking:
        message = f"--offline: these are not on this machine: {'; '.join(lacking)}"
        raise NetworkError(message, "run the same command once without --offline")


def estimate(lock: Lock, build: Build) -> int:
    """About how large an output will be; weights are taken to have two bytes each, as nearly all published ones have."""
    output = build.output
    wanted = records.lora_wanted(output.lora) if output.lora else records.base_wanted(output.model)
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
        if lacking := shortage(existing(group[0].folder), sum(need.bytes for need in group) + MARGIN):
            parts = ", ".join(f"{size(need.bytes)} for {need.what}" for need in sorted(group, key=lambda need: -need.bytes)[:4])
            lines.append(f"{lacking} ({parts})")
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
