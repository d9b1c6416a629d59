"""Whether the pinned tag can take a model: asked of its small files as soon as they are here, and of its tokenizer."""

from __future__ import annotations

import contextlib
from pathlib import Path

from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import quantized
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system import interpreter as system_interpreter
from llamacpp_orchestrator.system import limits as system_limits
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.system.scheduler import Tell

HASHER = "pretokenizer_hash"


def check_small_files(work: Work, lock: Lock, wanted: Wanted, view: Path, tell: Tell) -> None:
    """Raise JobError or OrchestrateError for what the tag cannot convert, before gigabytes are fetched for nothing."""
    for model in work.job.models if wanted.kind == "model" else ():
        if records.base_wanted(model) == wanted:
            tree = lock_tree.get_tree(work, lock.llama_cpp, tell)
            subject = _subject(work, lock, model, view)
            preflight.check_model(subject)
            if preflight.takes_vocabulary(subject):
                converter_view.check_pieces(work, lock, wanted, view)
            if model.mmproj and "--mistral-format" not in model.args:
                preflight.check_projector(tree, lock.llama_cpp.tag, model.name, safetensors.read_json(view / "config.json"))


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


def check_tokenizer(work: Work, lock: Lock, build: Build, known: dict[Path, str], run: Run, log: Path) -> None:
    """Raise OrchestrateError for a tokenizer that the tag does not know; the digests asked for so far are kept in `known`."""
    if build.output.lora:
        return
    (wanted, name), *_ = build.needs
    view = pipeline_build.view(work, lock.files(wanted), name)
    subject = _subject(work, lock, build.output.model, converter_view.folder(work, lock, view))
    if subject.folder not in known:
        interpreter = Interpreter(
            python=str(pipeline_build.python(work, lock)),
            run=run,
            env=pipeline_build.converter_env(work),
            limits=system_limits.limits(work.settings),
            scratch=build.stage,
            log=log,
        )
        known[subject.folder] = hash_of(subject, interpreter) if preflight.is_hashed(subject) else ""
    preflight.check_hash(subject, known[subject.folder])


def _subject(work: Work, lock: Lock, model: spec.Model, view: Path) -> preflight.Subject:
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


def hash_of(subject: preflight.Subject, interpreter: Interpreter) -> str:
    """The digest of a model's pre-tokenizer as upstream works it out; "" where there is none."""
    question = {"source": str(capabilities.core(subject.tree)), "model": str(subject.folder)}
    # A tokenizer that does not load is upstream's to complain about: it has words for it.
    with contextlib.suppress(CommandFailed):
        return system_interpreter.ask(interpreter, HASHER, question, str, (subject.tree, subject.folder))
    return ""
