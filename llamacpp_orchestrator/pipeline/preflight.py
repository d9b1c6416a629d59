"""Whether the pinned tag can take a model: asked of its small files as soon as they are here, and of its tokenizer."""

from __future__ import annotations

import contextlib
from pathlib import Path

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import quantized
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system import interpreter as system_interpreter
from llamacpp_orchestrator.system import limits as system_limits
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.system.scheduler import Tell

HASHER = "pretokenizer_hash"


def check_small_files(pinned: PinnedJob, wanted: Wanted, view: Path, tell: Tell) -> None:
    """Raise JobError or OrchestrateError for what the tag cannot convert, before gigabytes are fetched for nothing."""
    for model in pinned.context.job.models if wanted.kind == "model" else ():
        if records.base_wanted(model) == wanted:
            tree = lock_tree.get_tree(pinned.context, pinned.lock.llama_cpp, tell)
            subject = _subject(pinned, model, view)
            preflight.check_model(subject)
            if preflight.takes_vocabulary(subject):
                converter_view.check_pieces(pinned, wanted, view)
            if model.mmproj and "--mistral-format" not in model.args:
                preflight.check_projector(tree, pinned.tag, model.name, safetensors.read_json(view / "config.json"))


def notes(pinned: PinnedJob, build: Build) -> tuple[str, ...]:
    """What is to be said of the model that an output is converted from: its weights, and what the tag is shown otherwise."""
    if build.of:
        return ()
    translated = converter_view.notes(pinned, build)
    if build.output.lora:
        return translated
    pin = pinned.files(build.needs[0][0])
    view = converter_view.views(pinned, build)[0]
    weights, beside = headers.read(view), weight_files.note(pin.unread)
    odd = (*headers.notes(weights), *quantized.notes(preflight.read_json(view / "config.json"), weights))
    return (*([beside] if beside else []), *odd, *translated)


def check_tokenizer(pinned: PinnedJob, build: Build, run: Run, log: Path) -> None:
    """Raise OrchestrateError for a tokenizer that the tag does not know."""
    if build.output.lora:
        return
    view = pinned.view(*build.needs[0])
    subject = _subject(pinned, build.output.model, converter_view.folder(pinned, view))
    interpreter = Interpreter(
        python=str(pinned.python),
        run=run,
        env=pinned.script_env,
        limits=system_limits.limits(pinned.context.settings),
        scratch=build.stage,
        log=log,
    )
    preflight.check_hash(subject, hash_of(subject, interpreter) if preflight.is_hashed(subject) else "")


def _subject(pinned: PinnedJob, model: spec.Model, view: Path) -> preflight.Subject:
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
        trees=pinned.store.folder("source"),
    )


def hash_of(subject: preflight.Subject, interpreter: Interpreter) -> str:
    """The digest of a model's pre-tokenizer as upstream works it out; "" where there is none."""
    question = {"source": str(capabilities.core(subject.tree)), "model": str(subject.folder)}
    # A tokenizer that does not load is upstream's to complain about: it has words for it.
    with contextlib.suppress(CommandFailed):
        return system_interpreter.ask(interpreter, HASHER, question, str, (subject.tree, subject.folder))
    return ""
