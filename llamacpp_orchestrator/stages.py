"""The steps of a run: they bring here what the lock names, and make the outputs of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator import admission
from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import claims
from llamacpp_orchestrator import environment
from llamacpp_orchestrator import hub
from llamacpp_orchestrator import imatrix
from llamacpp_orchestrator import imports
from llamacpp_orchestrator import inside
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import modelfiles
from llamacpp_orchestrator import outputs
from llamacpp_orchestrator import pins
from llamacpp_orchestrator import preflight
from llamacpp_orchestrator import programs
from llamacpp_orchestrator import quantize
from llamacpp_orchestrator import reference
from llamacpp_orchestrator import spec
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.calls import SCRIPTS
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.interpreter import Pin
from llamacpp_orchestrator.interpreter import python_in
from llamacpp_orchestrator.lock import EnvironmentPin
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.lock import Wanted
from llamacpp_orchestrator.outputs import Bench
from llamacpp_orchestrator.spec import Output
from llamacpp_orchestrator.steps import Action
from llamacpp_orchestrator.steps import Step
from llamacpp_orchestrator.steps import Tell
from llamacpp_orchestrator.work import Work
from llamacpp_orchestrator.yamltext import nearest

# What every tag's scripts have taken since b3878: with these and without options, downloads need not wait for the tree.
ALWAYS = {"model": {"f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"}, "adapter": {"f32", "f16", "bf16", "q8_0", "auto"}}


def check_types(work: Work, lock: Lock) -> None:
    """Raise JobError for a type that this tag's llama-quantize does not list, with the nearest that it does."""
    asking = [model for model in work.job.models if model.quantize]
    known = quantize.types(programs.tool(work, lock, "llama-quantize")) if asking else ()
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
        preflight.check_job(work.job, lock.llama_cpp.tag, work.file.name, pins.get_tree(work, lock.llama_cpp, tell))
        return "current" if before else "done"

    return action


def environment_action(work: Work, lock: Lock, log: Path) -> Action:
    """Build the locked environment, or probe the user's own."""

    def action(tell: Tell) -> str:
        if lock.environment is None:
            environment.own(work.folder(str(work.job.environment.path)), work.file)
            return "current"
        prove = functools.partial(_prove, work, lock, log, tell)
        status = _built(work, lock.environment.pin(), "the Python environment", log, tell, prove)
        prove(work.store.entry("environments", lock.environment.pin().digest()))  # another tag's scripts import more, perhaps
        return status

    return action


def _prove(work: Work, lock: Lock, log: Path, tell: Tell, entry: Path) -> None:
    """See that the scripts of the tag can import what they want in an environment, if that is not known yet."""
    tree, overrides = pins.get_tree(work, lock.llama_cpp, tell), work.job.environment.overrides
    named = environment.merged(environment.upstream_requirements(tree, lock.llama_cpp.tag), overrides)
    env, overridden = building.converter_env(work), environment.merged((), overrides)
    imports.prove(entry, python_in(entry / "venv"), tree, frozenset(named), frozenset(overridden), env, log, tell)


def reference_step(work: Work, pin: EnvironmentPin, log: Path) -> Step:
    """The step that builds the locked environment with which outputs are compared."""
    return Step(name="reference", action=functools.partial(_built, work, pin.pin(), reference.TITLE, log), log=log)


def _built(work: Work, pin: Pin, what: str, log: Path, tell: Tell, prove: Callable[[Path], None] = lambda entry: None) -> str:
    before = work.store.has("environments", pin.digest())

    def make(dest: Path) -> None:
        if work.settings.index.index_urls:  # none: out of a bundle, with all wheels at hand
            work.online(what)
        environment.build(pin, work.job.environment.torch, work.settings, dest, log, tell)
        prove(dest)

    work.store.ensure("environments", pin.digest(), make, environment.unhealthy)
    return "current" if before else "done"


def binaries_step(work: Work, lock: Lock, log: Path, jobs: int = 0) -> Step:
    """The step that gets the programs; only a build has something to log."""
    return Step(name="binaries", action=programs.action(work, lock, log, jobs), log=log if programs.from_source(work) else None)


def fetch_action(work: Work, lock: Lock, wanted: Wanted, name: str) -> Action:
    """Bring the files of a model or adapter here, examine them, and make the view that a converter is shown."""

    def action(tell: Tell) -> str:
        pin = lock.files(wanted)
        view = building.view(work, pin, name)

        def unhealthy(entry: Path) -> str:
            sound = all(hub.sound(entry / name / file.path, file, work.store.sha256) for file in pin.files)
            return "" if sound else "files behind the view have gone, or are damaged"

        before = view.exists() and not unhealthy(view.parent)
        if before:
            admission.check_small_files(work, lock, wanted, view, tell)

        def show(entry: Path) -> None:
            def look(folder: Path, files: tuple[hub.HubFile, ...]) -> None:
                # The view grows as files arrive; what is in it is all that this tag will see of the model.
                modelfiles.make_view((file for file in files if not (entry / name / file.path).exists()), folder, entry / name)
                admission.check_small_files(work, lock, wanted, entry / name, tell)

            pins.origin(work, pin, tell, look)

        work.store.ensure("views", view.parent.name, show, unhealthy)
        return "current" if before else "done"

    return action


def scripts(work: Work, lock: Lock, stale: list[Build]) -> list[Path]:
    """All that the environment's Python will run to convert some outputs: upstream's scripts, and ours about a tokenizer."""
    converted = [build for build in stale if not build.of]
    kinds = sorted({"adapter" if build.output.lora else "model" for build in converted})
    names = [{file.path for file in lock.files(build.needs[0][0]).files} for build in converted]
    # Where there is a tokenizer.model it is read without transformers' tokenizers, which take long to load.
    asked = any("tokenizer.json" in each and "tokenizer.model" not in each for each in names)
    return [*(building.tree(work, lock) / SCRIPTS[kind] for kind in kinds), *([inside.path(admission.HASHER)] if asked else [])]


def of_run(bench: Bench, stale: list[Build], ended: frozenset[str]) -> list[Step]:
    """All that must be done to make some outputs; a step in `ended` has been done while the job was resolved."""
    work, lock = bench.work, bench.lock
    made = [] if "source" in ended else [Step(name="source", action=source_action(work, lock))]
    made += [
        Step(
            name="environment",
            action=environment_action(work, lock, bench.log("environment")),
            log=bench.log("environment"),
        )
    ]
    if bench.warm and not all(build.of for build in stale):
        made = _then(bench.warm, made)
    if any(map(building.needs_programs, stale)):
        made.append(_programs(bench))
        made += _matrices(bench, stale)
    if lock.reference and any(map(building.is_compared, stale)):
        made.append(reference_step(work, lock.reference, bench.log("reference")))
    here = {step.name for step in made} | {build.name for build in stale}
    names = locks.names(work.job)
    after: tuple[str, ...] = () if "source" in ended or _ordinary(stale) else ("source",)
    # A type that the tool may not have is told before gigabytes come for nothing.
    after += ("binaries",) if any(build.of and build.output.type.upper() not in quantize.ALWAYS for build in stale) else ()
    for (wanted, name), step in _fetched(stale, names).items():
        made.append(Step(name=step, action=fetch_action(work, lock, wanted, name), needs=after))
    for build in stale:
        log = bench.log(f"{building.verb(build)} {build.name}")
        if build.of:
            matrix = [f"imatrix {build.origin}"] if build.matrix and not imatrix.ready(build.matrix, work.store) else []
            needs: Iterable[str] = ("binaries", *_origin(build, stale), *matrix)
            action = outputs.quantize_action(bench, build, functools.partial(programs.tool, work, lock, "llama-quantize"))
        else:
            fetched = _fetched([build], names).values()
            needs = ("environment", *(["source"] if "source" in here else []), *fetched)
            action = outputs.convert_action(bench, build)
        step = f"{building.verb(build)} {build.name}"
        need = functools.partial(claims.of_build, work, lock, build)
        asked = Step(name=step, action=action, needs=tuple(needs), heavy=True, memory=need, log=log)
        made.append(claims.told(asked, bench.memory))
        made.append(_verified(bench, build, stale, Step(name=step, action=action, log=log)))
    return made


def _then(act: Callable[[], None], steps: list[Step]) -> list[Step]:
    """The same steps; the last of them to end well does one thing more."""
    left = {step.name for step in steps}

    def extended(step: Step) -> Step:
        def action(tell: Tell) -> str:
            status = step.action(tell)
            left.discard(step.name)
            if not left:
                act()
            return status

        return msgspec.structs.replace(step, action=action)

    return [extended(step) for step in steps]


def _origin(build: Build, stale: list[Build]) -> list[str]:
    return [f"verify {other.name}" for other in stale if other.output == build.of]


def _programs(bench: Bench) -> Step:
    step = binaries_step(bench.work, bench.lock, bench.log("binaries"), bench.jobs)

    def action(tell: Tell) -> str:
        status = step.action(tell)
        check_types(bench.work, bench.lock)
        return status

    return msgspec.structs.replace(step, action=action)


def _matrices(bench: Bench, stale: list[Build]) -> list[Step]:
    """A step for each matrix that must be made first."""
    store, made = bench.work.store, dict[str, Step]()
    for build in stale:
        if build.of and build.matrix and not imatrix.ready(build.matrix, store):
            name = f"imatrix {build.origin}"
            action = outputs.imatrix_action(
                bench, build, functools.partial(programs.tool, bench.work, bench.lock, "llama-imatrix")
            )
            needs = ("binaries", *_origin(build, stale))
            need = functools.partial(claims.of_matrix, build)
            asked = Step(name=name, action=action, needs=needs, heavy=True, memory=need, log=bench.log(name))
            made.setdefault(name, claims.told(asked, bench.memory))
    return list(made.values())


def _verified(bench: Bench, build: Build, stale: list[Build], after: Step) -> Step:
    """The step that checks an output; to be loaded it needs the programs, and an adapter its base."""
    model, needs, base = build.output.model, [after.name], None
    loads = model.verify in spec.RUNNING or (
        model.verify == "auto" and model.quantize and any(map(building.needs_programs, stale))
    )
    if loads:
        needs.append("binaries")
        base = outputs.base_of(bench, build) if build.output.lora else None
        needs += [f"verify {other.name}" for other in stale if base and other.output.path == base.path]
    if building.is_compared(build):
        needs += ["reference", *_fetched([build], locks.names(bench.work.job)).values()]
    find = functools.partial(programs.tool, bench.work, bench.lock) if loads else None
    action = outputs.verify_action(bench, build, find)
    need = functools.partial(claims.of_check, bench.work, bench.lock, build, base) if loads else 0
    heavy = building.is_compared(build)
    asked = Step(name=f"verify {build.name}", action=action, needs=tuple(needs), heavy=heavy, memory=need, log=after.log)
    return claims.told(asked, bench.memory)


def _fetched(stale: list[Build], names: dict[Wanted, str]) -> dict[tuple[Wanted, str], str]:
    pairs = dict.fromkeys(need for build in stale for need in build.needs)
    first = dict(reversed(pairs))
    return {(wanted, name): f"fetch {names[wanted]}" + ("" if first[wanted] == name else f" as {name}") for wanted, name in pairs}


def _ordinary(stale: list[Build]) -> bool:
    def usual(output: Output) -> bool:
        return output.type in ALWAYS.get(output.kind, ()) and not (output.lora or output.model).args

    return all(usual(build.output) for build in stale if not build.of)
