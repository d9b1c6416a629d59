"""The steps that bring here the converter tree, the environments, the programs and the files of models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.environment import imports
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.environment import requirements
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.environment.pin import Pin
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import view as models_view
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import preflight as pipeline_preflight
from llamacpp_orchestrator.system.scheduler import Action
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.yaml_reader import nearest


def check_types(work: Work, lock: Lock) -> None:
    """Raise JobError for a type that this tag's llama-quantize does not list, with the nearest that it does."""
    asking = [model for model in work.job.models if model.quantize]
    known = quantize.types(binaries.tool(work, lock, "llama-quantize")) if asking else ()
    for model in asking:
        for type_ in quantize.unknown(model.quantize, known):
            raise JobError(
                f"{work.file.name}: {model.name}: the llama-quantize of {lock.llama_cpp.tag} has no type `{type_}`",
                nearest(type_, [each for each in known if not each.isdigit()]),
            )


def source_action(work: Work, lock: Lock) -> Action:
    """Get the locked converter tree, and see that it has the types and options that the job asks for."""

    def action(tell: Tell) -> str:
        before = work.store.has("source", lock.llama_cpp.key())
        preflight.check_job(work.job, lock.llama_cpp.tag, work.file.name, lock_tree.get_tree(work, lock.llama_cpp, tell))
        return "current" if before else "done"

    return action


def environment_action(work: Work, lock: Lock, log: Path) -> Action:
    """Build the locked environment, or probe the user's own."""

    def action(tell: Tell) -> str:
        if lock.environment is None:
            venv.own(work.folder(str(work.job.environment.path)), work.file)
            return "current"
        prove = functools.partial(_prove, work, lock, log, tell)
        status = _built(work, lock.environment.pin(), "the Python environment", log, tell, prove)
        prove(work.store.entry("environments", lock.environment.pin().digest()))  # another tag's scripts import more, perhaps
        return status

    return action


def _prove(work: Work, lock: Lock, log: Path, tell: Tell, entry: Path) -> None:
    """See that the scripts of the tag can import what they want in an environment, if that is not known yet."""
    tree, overrides = lock_tree.get_tree(work, lock.llama_cpp, tell), work.job.environment.overrides
    named = requirements.merged(requirements.upstream_requirements(tree, lock.llama_cpp.tag), overrides)
    env, overridden = pipeline_build.converter_env(work), requirements.merged((), overrides)
    imports.prove(entry, python_in(entry / "venv"), tree, frozenset(named), frozenset(overridden), env, log, tell)


def reference_step(work: Work, pin: EnvironmentPin, log: Path) -> Step:
    """The step that builds the locked environment with which outputs are compared."""
    return Step(name="reference", action=functools.partial(_built, work, pin.pin(), reference.TITLE, log), log=log)


def _built(work: Work, pin: Pin, what: str, log: Path, tell: Tell, prove: Callable[[Path], None] = lambda entry: None) -> str:
    before = work.store.has("environments", pin.digest())

    def make(dest: Path) -> None:
        if work.settings.index.index_urls:  # none: out of a bundle, with all wheels at hand
            work.online(what)
        venv.build(pin, work.job.environment.torch, work.settings, dest, log, tell)
        prove(dest)

    work.store.ensure("environments", pin.digest(), make, venv.unhealthy)
    return "current" if before else "done"


def binaries_step(work: Work, lock: Lock, log: Path, jobs: int = 0) -> Step:
    """The step that gets the programs; only a build has something to log."""
    return Step(name="binaries", action=binaries.action(work, lock, log, jobs), log=log if binaries.from_source(work) else None)


def fetch_action(work: Work, lock: Lock, pin: FilesPin, name: str) -> Action:
    """Bring files of a model or adapter here, examine them, and make the view that a converter is shown."""

    def action(tell: Tell) -> str:
        wanted = pin.wanted
        view = pipeline_build.view(work, pin, name)

        def unhealthy(entry: Path) -> str:
            sound = all(hub.sound(entry / name / file.path, file, work.store.sha256) for file in pin.files)
            return "" if sound else "files behind the view have gone, or are damaged"

        before = view.exists() and not unhealthy(view.parent)
        if before:
            pipeline_preflight.check_small_files(work, lock, wanted, view, tell)

        def show(entry: Path) -> None:
            def look(folder: Path, files: tuple[hub.HubFile, ...]) -> None:
                # The view grows as files arrive; what is in it is all that this tag will see of the model.
                models_view.make_view((file for file in files if not (entry / name / file.path).exists()), folder, entry / name)
                pipeline_preflight.check_small_files(work, lock, wanted, entry / name, tell)

            lock_resolve.origin(work, pin, tell, look)

        work.store.ensure("views", view.parent.name, show, unhealthy)
        return "current" if before else "done"

    return action
