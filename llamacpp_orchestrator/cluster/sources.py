"""The user's own folders and files on a cluster: which of them a worker does not have, and where it keeps what is sent to it."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Collection
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llamacpp_orchestrator.cluster.records import Content
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.records import Source
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import at_work
from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.store import remove

FOLDER = "sent"  # in the cache


def texts(job: Job) -> list[str]:
    """What a job says of each folder or file on the user's own disk that its outputs are made of, once."""
    folders = [wanted.source for wanted in records.all_wanted(job) if wanted.is_folder]
    matrices = [model.imatrix.file or model.imatrix.text or "" for model in job.models if model.imatrix]
    metadata = [commands.metadata(model.args)[1] for model in job.models]
    return list(filter(None, dict.fromkeys((*folders, *matrices, *metadata))))


def sources(here: PinnedJob) -> tuple[Source, ...]:
    """All that a job names on the driver's machine, with the contents that its lock has, or that it has now."""
    return tuple(_source(here, text) for text in texts(here.context.job))


def _source(here: PinnedJob, text: str) -> Source:
    place = here.context.folder(text)
    pins = [here.files(wanted) for wanted in records.all_wanted(here.context.job) if wanted.source == text]
    files = {file.path: Content(file.size, file.sha256) for pin in pins for file in pin.files}
    if not pins:
        files = {os.curdir: Content(place.stat().st_size, here.store.sha256(place))}
    return Source(text=text, place=str(place), files=files)


def pinned(order: Order, outputs: Collection[str], machine: Settings, folders: Mapping[str, str] = {}) -> PinnedJob:
    """The job of an order on a worker, with nothing but the models and adapters of some outputs, by name."""
    file = Path(order.job)
    machine = msgspec.structs.replace(machine, offline=order.offline)
    places = {text: Path(folder) for text, folder in folders.items()}
    context = msgspec.structs.replace(at_work(_parsed(order.text, file), file, machine), folders=places)
    return PinnedJob(_narrowed(context, outputs), order.lock)


_parsed = functools.lru_cache(maxsize=2)(loader.parse)


def _narrowed(context: Context, outputs: Collection[str]) -> Context:
    """A job with nothing but the models and adapters of some outputs, by name: what is of no use to them need not be there."""
    job = context.job
    placed = [output for _, output in layout.placed(job, context.file.parent)]
    made = [output for output in placed if pipeline_build.name_of(context, output) in outputs]
    loras = {model: {output.lora for output in made if output.model == model} for model in dict.fromkeys(o.model for o in made)}
    models = tuple(
        msgspec.structs.replace(model, loras=tuple(lora for lora in model.loras if lora in loras[model]))
        for model in job.models
        if model in loras
    )
    return msgspec.structs.replace(context, job=msgspec.structs.replace(job, models=models))


def is_here(here: PinnedJob, source: Source) -> bool:
    """Tell whether this machine has a source where the job says, and nothing else there that conversion would read."""
    wanted = [wanted for wanted in records.all_wanted(here.context.job) if wanted.source == source.text]
    try:
        for each in wanted:
            local_folders.drift_of(here, each)
    except (OrchestrateError, OSError):
        return False
    return bool(wanted) or not lacking(here.store, source, here.context.folder(source.text))


def kept(store: Store, source: Source) -> Path:
    """Where the cache of a worker keeps what a source has, by its content, under the source's own name."""
    key = msgspec.json.encode(sorted((name, content.sha256) for name, content in source.files.items()))
    return store.entry(FOLDER, hashlib.sha256(key).hexdigest()[:32]) / (Path(source.place).name or "source")


def lacking(store: Store, source: Source, place: Path) -> list[str]:
    """The names of a source's files that a place does not have with the same content."""
    return [name for name, content in source.files.items() if not _same(store, place / name, content)]


def _same(store: Store, path: Path, content: Content) -> bool:
    try:
        return path.is_file() and path.stat().st_size == content.size and store.sha256(path) == content.sha256
    except OSError:
        return False


def take(store: Store, source: Source, name: str, part: Path) -> None:
    """Put a file that has come into its place, once it is what it should be; IntegrityError where it is not."""
    if not _same(store, part, source.files[name]):
        remove(part)
        message = f"{source.place}: {name} is not what was locked"
        raise IntegrityError(message, "has it changed since? run the same command again")
    place = kept(store, source) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, place)
