"""The steps that bring here the converter tree, the environments, the programs and the files of models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.environment import imports
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.environment import requirements
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.environment.imports import Import
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import view as models_view
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import preflight as pipeline_preflight
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.system import disk_trial
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.system.scheduler import CURRENT
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import log_of
from llamacpp_orchestrator.util import background
from llamacpp_orchestrator.util.yaml_reader import nearest

LOADED = ("source", "environment")  # the steps that bring what must be here to load what converts
SHARED = frozenset({*LOADED, "reference", "binaries"})  # those whose work does not depend on which outputs are made


def check_types(pinned: PinnedJob) -> None:
    """Raise JobError for a type that this tag's llama-quantize does not list, with the nearest that it does."""
    models = [model for model in pinned.context.job.models if model.quantize]
    known = quantize.types(binaries.tool(pinned, "llama-quantize")) if models else ()
    for model in models:
        for type_ in quantize.unknown(model.quantize, known):
            raise JobError(
                f"{pinned.context.file.name}: {model.name}: the llama-quantize of {pinned.tag} has no type `{type_}`",
                nearest(type_, [name for name in known if not name.isdigit()]),
            )


def source(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Get the locked converter tree, and see that it has the types and options that the job asks for."""
    context, pin = run.pinned.context, run.pinned.lock.llama_cpp
    outcome = CURRENT if context.store.has("source", pin.key()) else DONE
    preflight.check_job(context.job, pin.tag, context.file.name, lock_tree.get_tree(context, pin, tell))
    return outcome


def environment(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Build the locked environment, or probe the user's own."""
    context, pin = run.pinned.context, run.pinned.lock.environment
    if pin is None:
        venv.own(context.folder(str(context.job.environment.path)), context.file)
        return CURRENT
    log, tree = run.log("environment"), lock_tree.get_tree(context, run.pinned.lock.llama_cpp, tell)
    read: Callable[[], tuple[Import, ...]] = functools.partial(imports.external, tree)
    if not context.store.has("environments", pin.pin().digest()):
        read = background.begin(read)  # beside the installation
    prove = functools.partial(_prove, run, log, tell, tree, read)
    status = build_environment(context, pin, "the Python environment", log, tell, prove)
    prove(context.store.entry("environments", pin.pin().digest()))  # another tag's scripts import more, perhaps
    return Outcome(status)


def in_place(pinned: PinnedJob) -> bool:
    """Tell whether tree and environment are here and whole, so that what converts can be loaded beside their steps."""
    store, source, environment = pinned.store, pinned.lock.llama_cpp, pinned.lock.environment
    if environment is None:
        return False
    key = environment.pin().digest()
    try:
        if not (store.has("source", source.key()) and store.has("environments", key)):
            return False
        return not (lock_tree.unhealthy(store, source, pinned.tree) or venv.unhealthy(store.entry("environments", key)))
    except OSError:  # another makes it anew just now
        return False


def _prove(run: JobRun, log: Path, tell: Tell, tree: Path, read: Callable[[], tuple[Import, ...]], entry: Path) -> None:
    """See that the scripts of the tag can import what they want in an environment, if that is not known yet."""
    pinned = run.pinned
    overrides = pinned.context.job.environment.overrides
    named = requirements.merged(requirements.upstream_requirements(tree, pinned.tag), overrides)
    python, overridden = str(python_in(entry / "venv")), requirements.merged((), overrides)
    how = functools.partial(run.importer, limit=imports.LIMIT_SECONDS)
    interpreter = Interpreter(python=python, run=how, env=pinned.script_env, fenced=False, scratch=log.parent, log=log)
    statements = _statements(tree, pinned.lock.llama_cpp.key())
    imports.prove(entry, interpreter, statements, read, frozenset(named), frozenset(overridden), tell)


@functools.lru_cache(maxsize=2)
def _statements(tree: Path, key: str) -> frozenset[str]:
    """What a tree of a key imports: the runs of one process, of which a worker's child has many, read it once."""
    return imports.lines(tree)


def reference_environment(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Build the locked environment with which outputs are compared."""
    pin = run.pinned.lock.reference
    assert pin is not None
    return Outcome(build_environment(run.pinned.context, pin, reference.TITLE, run.log("reference"), tell))


def build_environment(
    context: Context, pin: EnvironmentPin, title: str, log: Path, tell: Tell, prove: Callable[[Path], None] = lambda entry: None
) -> str:
    """Build a locked environment where it is not there; "current" if it was. `prove` must pass before it is taken for whole."""
    key = pin.pin().digest()
    status = "current" if context.store.has("environments", key) else "done"

    def make(dest: Path) -> None:
        disk_trial.check(dest, links=True)
        if context.settings.index.index_urls:  # none: out of a bundle, with all wheels at hand
            context.online(title)
        venv.build(pin.pin(), context.job.environment.torch, context.settings, dest, log, tell)
        prove(dest)

    about = f"{context.job.llama_cpp.tag}: {title}, Python {pin.python}, torch {pin.torch}"
    context.store.ensure("environments", key, make, venv.unhealthy, about)
    return status


def programs(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Get the programs of the tag, and see that they have the types that are to be made."""
    status = binaries.bring(run.pinned, run.log("binaries"), run.jobs, tell)
    if run.builds:
        check_types(run.pinned)
    return Outcome(status)


def fetch(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Bring the files of a model or adapter here, with the view that a converter is shown."""
    need = run.fetches[key]
    return Outcome(bring(run.pinned, run.pinned.files(need.wanted), need.name, tell))


def bring(pinned: PinnedJob, pin: FilesPin, name: str, tell: Tell) -> str:
    """Bring files of a model or adapter here, examine them, and make their view; "current" if all was there."""
    wanted, view = pin.wanted, pinned.view_of(pin, name)

    def unhealthy(entry: Path) -> str:
        sound = all(hub.sound(entry / name / file.path, file, pinned.store.sha256) for file in pin.files)
        return "" if sound else "files behind the view have gone, or are damaged"

    shown = False

    def show(entry: Path) -> None:
        nonlocal shown
        shown = True

        def look(folder: Path, files: tuple[hub.HubFile, ...]) -> None:
            # The view grows as files arrive; what is in it is all that this tag will see of the model.
            models_view.make_view((file for file in files if not (entry / name / file.path).exists()), folder, entry / name)
            pipeline_preflight.check_small_files(pinned, wanted, entry / name)

        if pin == pinned.files(wanted):  # where small files come first, it is said once, with the rest
            lock_resolve.tell_moved(pinned.context, pin, tell)
        lock_resolve.origin(pinned.context, pin, tell, look)

    pinned.store.ensure("views", view.parent.name, show, unhealthy, about=wanted.source)
    if not shown:
        pipeline_preflight.check_small_files(pinned, wanted, view)
    return "done" if shown else "current"


def steps(pinned: PinnedJob, logs: Path) -> dict[str, Step]:
    """The steps by name that bring here what the lock names, but for models: each with a log if it has something to log."""
    from_source = binaries.from_source(pinned.context)
    steps = [
        Step(kind="source"),
        Step(kind="environment", log=log_of("environment", logs)),
        Step(kind="reference", log=log_of("reference", logs)),
        Step(kind="binaries", log=log_of("binaries", logs) if from_source else None),
    ]
    return {step.name: step for step in steps}


ACTIONS = {
    "source": source,
    "environment": environment,
    "reference": reference_environment,
    "binaries": programs,
    "fetch": fetch,
}
