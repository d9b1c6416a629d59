"""The steps of a run and what each needs first: those that bring here what the lock names, and those that make outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.pipeline import actions
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import memory
from llamacpp_orchestrator.pipeline import trial
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.publish import Bench
from llamacpp_orchestrator.pipeline.setup import binaries_step
from llamacpp_orchestrator.pipeline.setup import check_types
from llamacpp_orchestrator.pipeline.setup import environment_action
from llamacpp_orchestrator.pipeline.setup import fetch_action
from llamacpp_orchestrator.pipeline.setup import reference_step
from llamacpp_orchestrator.pipeline.setup import source_action
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell

# What every tag's scripts have taken since b3878: with these and without options, downloads need not wait for the tree.
ALWAYS = {"model": {"f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"}, "adapter": {"f32", "f16", "bf16", "q8_0", "auto"}}


def scripts(work: Work, lock: Lock, stale: list[Build]) -> list[Path]:
    """What the environment's Python will run to convert some outputs: upstream's scripts, and ours that loads a tokenizer."""
    converted = [build for build in stale if not build.of]
    kinds = sorted({"adapter" if build.output.lora else "model" for build in converted})
    names = [{file.path for file in lock.files(build.needs[0][0]).files} for build in converted]
    # Where there is a tokenizer.model it is read without transformers' tokenizers, which take long to load.
    asked = any("tokenizer.json" in each and "tokenizer.model" not in each for each in names)
    return [
        *(pipeline_build.tree(work, lock) / SCRIPTS[kind] for kind in kinds),
        *([inside.path("rendering")] if asked else []),
    ]


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
    if any(map(pipeline_build.needs_programs, stale)):
        made.append(_programs(bench))
        made += _matrices(bench, stale)
    if lock.reference and any(map(pipeline_build.is_compared, stale)):
        made.append(reference_step(work, lock.reference, bench.log("reference")))
    here = {step.name for step in made} | {build.name for build in stale}
    names = records.names(work.job)
    after: tuple[str, ...] = () if "source" in ended or _ordinary(stale) else ("source",)
    # A type that the tool may not have is told before gigabytes come for nothing.
    after += ("binaries",) if any(build.of and build.output.type.upper() not in quantize.ALWAYS for build in stale) else ()
    for source, step in _fetched(stale, names).items():
        made += _brought(bench, stale, source, step, after)
    for build in stale:
        log = bench.log(f"{pipeline_build.verb(build)} {build.name}")
        if build.of:
            matrix = [f"imatrix {build.origin}"] if build.matrix and not imatrix.ready(build.matrix, work.store) else []
            needs: Iterable[str] = ("binaries", *_origin(build, stale), *matrix)
            action = actions.quantize_action(bench, build, functools.partial(binaries.tool, work, lock, "llama-quantize"))
        else:
            fetched = _fetched([build], names).values()
            needs = ("environment", *(["source"] if "source" in here else []), *fetched)
            action = actions.convert_action(bench, build)
        step = f"{pipeline_build.verb(build)} {build.name}"
        need = functools.partial(memory.of_build, work, lock, build)
        asked = Step(name=step, action=action, needs=tuple(needs), heavy=True, memory=need, log=log)
        made.append(memory.told(asked, bench.memory))
        made.append(_verified(bench, build, stale, Step(name=step, action=action, log=log)))
    return made


def _brought(bench: Bench, stale: list[Build], source: tuple[Wanted, str], step: str, after: tuple[str, ...]) -> list[Step]:
    """The steps that bring a source here; where weights must come, upstream is asked about its small files before."""
    work, lock, (wanted, name) = bench.work, bench.lock, source
    pin, title = lock.files(wanted), step.partition(" ")[2]
    tried = trial.builds(stale, source, pin)
    if not tried:
        return [Step(name=step, action=fetch_action(work, lock, pin, name), needs=after)]
    small, log = trial.small(pin), bench.log(f"check {title}")
    inspect = Step(name=f"inspect {title}", action=fetch_action(work, lock, small, name), needs=after)
    needs = ("environment", inspect.name)
    check = Step(name=f"check {title}", action=trial.action(bench, tried, small, log), needs=needs, heavy=True, log=log)
    return [inspect, check, Step(name=step, action=fetch_action(work, lock, pin, name), needs=(*after, check.name))]


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
            action = actions.imatrix_action(
                bench, build, functools.partial(binaries.tool, bench.work, bench.lock, "llama-imatrix")
            )
            needs = ("binaries", *_origin(build, stale))
            need = functools.partial(memory.of_matrix, build)
            asked = Step(name=name, action=action, needs=needs, heavy=True, memory=need, log=bench.log(name))
            made.setdefault(name, memory.told(asked, bench.memory))
    return list(made.values())


def _verified(bench: Bench, build: Build, stale: list[Build], after: Step) -> Step:
    """The step that checks an output; to be loaded it needs the programs, and an adapter its base."""
    model, needs, base = build.output.model, [after.name], None
    loads = model.verify in spec.RUNNING or (
        model.verify == "auto" and model.quantize and any(map(pipeline_build.needs_programs, stale))
    )
    if loads:
        needs.append("binaries")
        base = actions.base_of(bench, build) if build.output.lora else None
        needs += [f"verify {other.name}" for other in stale if base and other.output.path == base.path]
    if pipeline_build.is_compared(build):
        needs += ["reference", *_fetched([build], records.names(bench.work.job)).values()]
    find = functools.partial(binaries.tool, bench.work, bench.lock) if loads else None
    action = actions.verify_action(bench, build, find)
    need = functools.partial(memory.of_check, bench.work, bench.lock, build, base) if loads else 0
    heavy = pipeline_build.is_compared(build)
    asked = Step(name=f"verify {build.name}", action=action, needs=tuple(needs), heavy=heavy, memory=need, log=after.log)
    return memory.told(asked, bench.memory)


def _fetched(stale: list[Build], names: dict[Wanted, str]) -> dict[tuple[Wanted, str], str]:
    pairs = dict.fromkeys(need for build in stale for need in build.needs)
    first = dict(reversed(pairs))
    return {(wanted, name): f"fetch {names[wanted]}" + ("" if first[wanted] == name else f" as {name}") for wanted, name in pairs}


def _ordinary(stale: list[Build]) -> bool:
    def usual(output: Output) -> bool:
        return output.type in ALWAYS.get(output.kind, ()) and not (output.lora or output.model).args

    return all(usual(build.output) for build in stale if not build.of)
