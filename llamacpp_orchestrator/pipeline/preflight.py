"""Whether the pinned tag can take a model: asked of its small files as soon as they are here, and of its tokenizer."""

from __future__ import annotations

from pathlib import Path

from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import quantized
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline.build import Build


def check_small_files(pinned: PinnedJob, wanted: Wanted, view: Path) -> None:
    """Raise JobError or OrchestrateError for what the tag cannot convert, before gigabytes are fetched for nothing."""
    for model in pinned.context.job.models if not wanted.is_adapter else ():
        if records.base_wanted(model) == wanted:
            preflight.check_model(subject(pinned, model, view))


def notes(pinned: PinnedJob, build: Build) -> tuple[str, ...]:
    """What is to be said of the model that an output is converted from: its weights, and what the tag is shown otherwise."""
    if build.of:
        return ()
    if build.output.kind == "merged":
        return merge_notes(pinned, build.needs[0])
    own = build.needs[-1]  # of an adapter its base is named before it
    beside = weight_files.note(pinned.files(own.wanted).unread)
    notes = (*([beside] if beside else []), *merge_notes(pinned, own), *converter_view.notes(pinned, build))
    if build.output.lora:
        return notes
    view = build.views[0]
    weights = headers.read(view)
    return (*notes, *headers.notes(weights), *quantized.notes(preflight.read_json(view / "config.json"), weights))


def merge_notes(pinned: PinnedJob, need: Ingredient) -> tuple[str, ...]:
    """What a merge has learned, as it stands in the mark of what came out of it."""
    mark = pinned.store.mark("merged", pinned.merged_key(need)) if need.merged else None
    return tuple(mark.facts.values()) if mark else ()


def subject(pinned: PinnedJob, model: spec.Model, view: Path) -> preflight.Subject:
    """A model as it is seen in a view, before the tag of a lock."""
    wanted = records.base_wanted(model)
    return preflight.Subject(
        tree=pinned.tree,
        tag=pinned.tag,
        folder=view,
        source=wanted.source,
        args=model.args,
        weights=wanted.weights,
        compared=model.verify != check_levels.STRUCTURE,
        mmproj=bool(model.mmproj),
        store=pinned.store,
    )
