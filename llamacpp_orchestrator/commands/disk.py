"""How much a job puts on the disk, and what of it would have to be fetched."""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Iterator

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job import tensor_types
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system.disk import Need
from llamacpp_orchestrator.system.disk import existing
from llamacpp_orchestrator.util.units import size

PROJECTOR_SHARE = 5  # what looks and listens is rarely more than a fifth of a model
ENVIRONMENT_BYTES = {"cpu": 1_500_000_000}
GPU_ENVIRONMENT_BYTES = 7_000_000_000
BUILD_BYTES = 1_000_000_000


def needs(pinned: PinnedJob, stale: Iterable[Build]) -> tuple[Need, ...]:
    """What the outputs that are to be made will write, and where."""
    stale = list(stale)
    needs: list[Need] = []
    for pin in _pins(pinned, stale):
        if missing := missing_bytes(pin):
            needs.append(Need(str(hub.cache_folder()), missing, f"download of {pin.wanted.source}"))
    for environment, what in needed_environments(pinned.lock, stale):
        if not pinned.store.has("environments", environment.pin().digest()):
            count = ENVIRONMENT_BYTES.get(environment.torch, GPU_ENVIRONMENT_BYTES)
            needs.append(Need(str(pinned.store.root), count, what, exact=False))
    if any(build.of for build in stale) and binaries.from_source(pinned.context) and not binaries.installed(pinned):
        needs.append(Need(str(pinned.store.root), BUILD_BYTES, "building the programs", exact=False))
    for need in dict.fromkeys(need for build in stale for need in build.needs if need.merged):
        if not pinned.has_merged(need):
            count = sum(file.size for file in pinned.files(need.wanted).files)
            needs.append(Need(str(pinned.store.root), count, f"the merged {need.name}, until all is made of it", exact=False))
    for build in stale:
        folder = pipeline_build.visible(build.output).parent
        needs.append(Need(str(folder), estimate(pinned.lock, build), build.name, exact=False))
    return tuple(needs)


def needed_environments(lock: Lock, stale: list[Build]) -> Iterator[tuple[EnvironmentPin, str]]:
    """The environments that are needed to make some outputs, and what each of them is called."""
    if stale and lock.environment:
        yield lock.environment, "the Python environment"
    if lock.reference and any(map(pipeline_build.is_compared, stale)):
        yield lock.reference, reference.TITLE


def _pins(pinned: PinnedJob, stale: Iterable[Build]) -> Iterable[FilesPin]:
    """The files that outputs are made from, those of several once."""
    return dict.fromkeys(pinned.files(part.wanted) for build in stale for need in build.needs for part in need.parts)


def missing_bytes(pin: FilesPin) -> int:
    """The bytes of a pin's files that are not on this machine yet."""
    return sum(file.size for file in lock_resolve.missing(pin))


def check_sizes(pinned: PinnedJob, stale: Iterable[Build]) -> None:
    """Raise NetworkError for a file that is to be downloaded, and is too large for the servers that may be asked."""
    for pin in _pins(pinned, stale):
        hub.check_sizes(lock_resolve.missing(pin), pin.wanted.source, pinned.context.settings)


def check_offline(pinned: PinnedJob, stale: Iterable[Build], quantizing: bool) -> None:
    """Raise NetworkError that lists what would have to be fetched, if something would and the network may not be asked."""
    if not pinned.context.settings.offline:
        return
    stale, lacking = list(stale), []
    if not pinned.store.has("source", pinned.lock.llama_cpp.key()):
        lacking.append(f"the converter tree of {pinned.tag}")
    for environment, what in needed_environments(pinned.lock, stale) if pinned.context.settings.index.index_urls else ():
        lacking += [] if pinned.store.has("environments", environment.pin().digest()) else [what]
    if quantizing and (absent := binaries.lacking(pinned)):
        lacking.append(absent)
    for pin in _pins(pinned, stale):
        lacking += [f"{pin.wanted.source}: {file.path} ({size(file.size)})" for file in lock_resolve.missing(pin)]
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
    if output.kind == "merged":
        return weights
    return int(weights / 2 * tensor_types.bits(output.type) / 8)


def check_place(context: Context) -> None:
    """Raise OrchestrateError when the outputs could not be written where the job wants them; told before any download."""
    place = existing(spec.folder(context.job.output, context.file.parent))
    if not os.access(place, os.W_OK):
        raise OrchestrateError(f"{place} cannot be written to", "check the folder's rights, or set another `output`")
