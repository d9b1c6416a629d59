"""Whether the pinned tag can take a model: asked of its small files as soon as they are here, and of its tokenizer."""

from __future__ import annotations

from pathlib import Path

from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import quantized
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system.scheduler import Tell


def check_small_files(work: Work, lock: Lock, wanted: Wanted, view: Path, tell: Tell) -> None:
    """Raise JobError or OrchestrateError for what the tag cannot convert, before gigabytes are fetched for nothing."""
    for model in work.job.models if wanted.kind == "model" else ():
        if records.base_wanted(model) == wanted:
            lock_tree.get_tree(work, lock.llama_cpp, tell)
            asked = subject(work, lock, model, view)
            preflight.check_model(asked)
            if preflight.takes_vocabulary(asked):
                converter_view.check_pieces(work, lock, wanted, view)


def notes(work: Work, lock: Lock, build: Build) -> tuple[str, ...]:
    """What is to be said of the model that an output is converted from: its weights, and what the tag is shown otherwise."""
    if build.of:
        return ()
    translated = converter_view.notes(work, lock, build)
    if build.output.lora:
        return translated
    pin = lock.files(build.needs[0][0])
    view = converter_view.views(work, lock, build)[0]
    weights, beside = headers.read(view), weight_files.note(pin.unread)
    odd = (*headers.notes(weights), *quantized.notes(preflight.read_json(view / "config.json"), weights))
    return (*([beside] if beside else []), *odd, *translated)


def subject(work: Work, lock: Lock, model: spec.Model, view: Path) -> preflight.Subject:
    """A model as it is seen in a view, before the tag of a lock."""
    wanted = records.base_wanted(model)
    return preflight.Subject(
        tree=pipeline_build.tree(work, lock),
        tag=lock.llama_cpp.tag,
        folder=view,
        source=wanted.source,
        args=model.args,
        weights=wanted.weights,
        compared=model.verify != "structure",
        mmproj=bool(model.mmproj),
        trees=work.store.folder("source"),
    )
