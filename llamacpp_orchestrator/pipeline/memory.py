"""The memory that each step of a job takes, in bytes, by the headers of the files that are here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from llamacpp_orchestrator.convert import memory_model
from llamacpp_orchestrator.convert.memory_model import Weight
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models.safetensors import safetensors_header
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.util.units import size
from llamacpp_orchestrator.verify import gguf

MOST_UNKNOWN = 1 << 30  # numbers in the largest tensor of a pickle, which nobody looks into before it is read
KILLED = -9
Files = tuple[tuple[Path, int, int], ...]  # path, size and time: what is known of a file holds as long as these do


def of_build(pinned: PinnedJob, build: Build) -> int:
    """The bytes that it takes to make an output; 0 while what would tell is not here."""
    if build.output.kind == "merged":
        return 0
    if build.of:
        weights = _stored(_files(pipeline_build.shards(build.of))) or _source(pinned, build.output.model)
        # On a Mac the tool reads what it maps elsewhere (llama-quant.cpp).
        return memory_model.quantizing(weights, build.of.type, host.system() != "macos") if weights else 0
    lora, model = build.output.lora, build.output.model
    weights = _of_files(pinned, build.needs[-1])
    if not weights:
        return 0
    if lora:
        file = sum(item.size for item in pinned.files(build.needs[-1].wanted).files)
        return memory_model.adapter(file, weights, build.output.type)
    seen = [weight for weight in weights if adapter.OUTSIDE.search(weight.name)] if build.output.kind == "mmproj" else []
    words = sum(item.size for item in pinned.files(build.needs[-1].wanted).files if item.path == "tokenizer.json")
    return memory_model.conversion(seen or weights, build.output.type, model.args, words)


def of_merge(pinned: PinnedJob, need: Ingredient) -> int:
    """The bytes that it takes to merge adapters into a model."""
    adapters = sum(file.size for part in need.parts[1:] for file in pinned.files(part.wanted).files)
    pickles = [file.size for file in pinned.files(need.wanted).files if file.path.endswith(".bin")]
    return memory_model.merging(adapters, max(pickles, default=0))


def check_peft(pinned: PinnedJob, need: Ingredient, reason: str) -> None:
    """Raise OrchestrateError where PEFT cannot merge by itself with the memory that a job may take: float32, all at once."""
    several = len(need.merged) > 1 or any(weight != 1 for _, weight in need.merged)
    bytes_ = memory_model.comparing(_of_files(pinned, need.parts[0]), 0) * (2 if several else 1)
    if bytes_ > (most := limits.bound(pinned.context.settings)) > 0:
        raise OrchestrateError(
            f"{reason}: only PEFT itself can merge it, which takes {size(bytes_)} of memory, and a job has {size(most)} here",
            "merge it on a machine with more memory; or free some, and allow it: --memory SIZE",
        )


def of_matrix(build: Build) -> int:
    """The bytes that it takes to make the importance matrix of an output."""
    return memory_model.loading(_size(pipeline_build.shards(build.of))) if build.of else 0


def of_check(pinned: PinnedJob, build: Build, base: layout.Output | None) -> int:
    """The bytes that it takes to load an output, an adapter with its base, or to compare it with its source."""
    files = _size([*build.stage.glob("*.gguf"), *(pipeline_build.shards(base) if base else [])])
    if not pipeline_build.is_compared(build):
        return memory_model.loading(files)
    return memory_model.comparing(_source(pinned, build.output.model), files)


def explain_oom(error: CommandFailed, need: int, most: int) -> CommandFailed:
    """The failure of a program that the system killed for want of memory, with what it was taken to `need` (bytes)."""
    budget = f"it was taken to need {size(need)} of the {size(most)} that may be used at a time"
    hint = f"{budget}; give the job less to use at a time (--memory 8G, say), use --jobs 1, or close other programs"
    return error.retold(error.message, hint)


def _source(pinned: PinnedJob, model: spec.Model) -> tuple[Weight, ...]:
    return _of_files(pinned, records.model_need(model))


def _of_files(pinned: PinnedJob, need: Ingredient) -> tuple[Weight, ...]:
    """The tensors of a model or adapter; () where its files are not here, or cannot be read, which its own step will tell."""
    wanted = need.wanted
    pin = pinned.files(wanted)
    pickles = [file.size for file in pin.files if file.path.endswith(".bin")]
    if pickles:
        return (Weight("", "BF16", min(max(pickles) // 2, MOST_UNKNOWN)),)
    files = [file for file in pin.files if file.path.endswith(".safetensors")]
    if wanted.is_folder:
        own = [pinned.context.folder(wanted.source) / file.path for file in files]
    else:
        snapshot = pin.snapshot
        own = [hub.cached(snapshot, file) for file in files]
    view = pinned.view(need)
    return _headers(_files([view / file.path for file in files]) or _files(own))


def _files(paths: Sequence[Path]) -> Files:
    try:
        return tuple((path, status.st_size, status.st_mtime_ns) for path in paths for status in [path.stat()])
    except OSError:
        return ()


def _size(paths: Sequence[Path]) -> int:
    return sum(file[1] for file in _files(paths))


@functools.lru_cache(maxsize=8)
def _headers(files: Files) -> tuple[Weight, ...]:
    try:
        return memory_model.weights(safetensors_header(path) for path, *_ in files)
    except (OrchestrateError, OSError, LookupError, TypeError, ValueError):
        return ()


@functools.lru_cache(maxsize=8)
def _stored(files: Files) -> tuple[Weight, ...]:
    paths = [path for path, *_ in files]
    try:
        for path in paths:
            gguf.check(path)  # it was whole when it was made, but that may be long ago
        tensors = gguf.contents(paths).tensors
    except OrchestrateError:
        return ()
    return tuple(Weight(name, "", tensor.elements) for name, (_, tensor) in tensors.items())
