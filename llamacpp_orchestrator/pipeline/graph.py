"""The steps of a run and what each needs first: those that bring here what the lock names, and those that make outputs."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.job import tensor_types
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.pipeline import actions
from llamacpp_orchestrator.pipeline import adapter_staging
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import memory
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.pipeline import trial
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import log_of

ACTIONS = setup.ACTIONS | trial.ACTIONS | adapter_staging.ACTIONS | actions.ACTIONS


def perform(run: JobRun, step: Step, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Do a step; one whose program the system kills for want of memory says what it was taken to need."""
    try:
        return ACTIONS[step.kind](run, step.key, outcomes, tell)
    except CommandFailed as error:
        if error.code != memory.KILLED:
            raise
        raise memory.explain_oom(error, need(run, step), run.memory) from error


def need(run: JobRun, step: Step) -> int:
    """The bytes of memory that a step takes; 0 for little, or while what would tell is not here."""
    pinned, stale = run.pinned, run.builds.values()
    if step.kind in ("convert", "quantize"):
        return memory.of_build(pinned, run.builds[step.key])
    if step.kind == "merge":
        return memory.of_merge(pinned, run.merges[step.key])
    if step.kind == "imatrix":
        return memory.of_matrix(actions.first_of(run, step.key))
    if step.kind == "verify" and pipeline_build.is_loaded(build := run.builds[step.key], stale):
        return memory.of_check(pinned, build, actions.base_of(pinned, build))
    return 0


def scripts(pinned: PinnedJob, stale: list[Build]) -> list[Path]:
    """What the environment's Python will run to convert some outputs: upstream's scripts, and ours that loads a tokenizer."""
    converted = list(filter(pipeline_build.is_converted, stale))
    kinds = sorted({"adapter" if build.output.lora else "model" for build in converted})
    folders = [{file.path for file in pinned.files(build.needs[0].wanted).files} for build in converted]
    # Where there is a tokenizer.model it is read without transformers' tokenizers, which take long to load.
    tokenizers = any("tokenizer.json" in names and "tokenizer.model" not in names for names in folders)
    return [
        *(pinned.tree / SCRIPTS[kind] for kind in kinds),
        *([inside.path("rendering")] if tokenizers else []),
    ]


def steps(pinned: PinnedJob, stale: list[Build], logs: Path, ready: Collection[str] = ()) -> list[Step]:
    """All that must be done to make some outputs, but for the steps that are `ready`."""
    by_name = setup.steps(pinned, logs)
    steps = [by_name[name] for name in setup.LOADED]
    if any(map(pipeline_build.needs_programs, stale)):
        steps += [by_name["binaries"], *_matrices(pinned, stale, logs)]
    if pinned.lock.reference and any(map(pipeline_build.is_compared, stale)):
        steps.append(by_name["reference"])
    # By the tree small files are looked at, and types and options of the job.
    after: tuple[str, ...] = ("source",)
    # A type that the tool may not have is told before gigabytes come for nothing.
    after += ("binaries",) if any(build.of and not tensor_types.is_in_every_tag(build.output.type) for build in stale) else ()
    sources, models = fetches(pinned, stale), merges(stale)
    steps_of = {need: f"fetch {key}" for key, need in sources.items()} | {need: f"merge {key}" for key, need in models.items()}
    for key, source in sources.items():
        adapters = {steps_of[part] for need in models.values() if need.parts[0] == source for part in need.parts[1:]}
        steps += brought(pinned, stale, key, source, after, (*setup.LOADED, *sorted(adapters)), logs)
    for key, need in models.items():
        before = (*setup.LOADED, *(steps_of[part] for part in need.parts))
        steps.append(Step(kind="merge", key=key, needs=before, heavy=True, log=log_of(f"merge {key}", logs)))
    for build in stale:
        steps += _made(pinned, build, stale, logs, tuple(steps_of[need] for need in build.needs))
    return [_without(step, ready) for step in steps if step.name not in ready]


def _without(step: Step, ready: Collection[str]) -> Step:
    return msgspec.structs.replace(step, needs=tuple(need for need in step.needs if need not in ready)) if ready else step


def fetches(pinned: PinnedJob, stale: Iterable[Build]) -> dict[str, Ingredient]:
    """The sets of files that outputs are made of, each with the name of its view, by the key of the step that brings them."""
    names = records.names(pinned.context.job)
    parts = dict.fromkeys(part for build in stale for need in build.needs for part in need.parts)
    first = {part.wanted: part.name for part in reversed(parts)}
    return {names[part.wanted] + ("" if first[part.wanted] == part.name else f" as {part.name}"): part for part in parts}


def merges(stale: Iterable[Build]) -> dict[str, Ingredient]:
    """The models that outputs are made of once adapters are merged into them, by the key of the step that merges."""
    needs = dict.fromkeys(need for build in stale for need in build.needs if need.merged)
    first = {need.name: need for need in reversed(needs)}
    return {need.name if first[need.name] == need else f"{need.name} ({number})": need for number, need in enumerate(needs)}


def brought(
    pinned: PinnedJob,
    stale: list[Build],
    key: str,
    source: Ingredient,
    after: tuple[str, ...] = (),
    before_check: tuple[str, ...] = (),
    logs: Path = Path(),
) -> list[Step]:
    """The steps that bring a source here; where its weights must come, its small files first, about which upstream is asked."""
    if not trial.builds(stale, source, pinned.files(source.wanted)):
        return [Step(kind="fetch", key=key, needs=after)]
    inspect = Step(kind="inspect", key=key, needs=after)
    check = Step(kind="check", key=key, needs=(*before_check, inspect.name), heavy=True, log=log_of(f"check {key}", logs))
    return [inspect, check, Step(kind="fetch", key=key, needs=(*after, check.name))]


def _made(pinned: PinnedJob, build: Build, stale: list[Build], logs: Path, fetched: tuple[str, ...]) -> tuple[Step, Step]:
    """The step that makes an output out of what is `fetched`, and the one that checks it."""
    needs: list[str] = []
    if build.of:
        needs += ["binaries", *_checked(build.of, stale)]
        needs += [f"imatrix {build.origin}"] if build.matrix and not imatrix.ready(build.matrix, pinned.store) else []
    else:
        needs += [*setup.LOADED, *fetched]
    kind, name = pipeline_build.verb(build), build.name
    log = log_of(f"{kind} {name}", logs)
    making = Step(kind=kind, key=name, needs=tuple(needs), heavy=True, log=log)
    needs = [making.name]
    if pipeline_build.is_loaded(build, stale):
        # To be loaded an adapter needs its base.
        base = actions.base_of(pinned, build) if build.output.lora else None
        needs += ["binaries", *(_checked(base, stale) if base else ())]
    if pipeline_build.is_compared(build):
        needs += ["reference", *fetched]
    return making, Step(kind="verify", key=name, needs=tuple(needs), heavy=pipeline_build.is_compared(build), log=log)


def _checked(output: Output, stale: list[Build]) -> list[str]:
    return [f"verify {build.name}" for build in stale if build.output.path == output.path]


def _matrices(pinned: PinnedJob, stale: list[Build], logs: Path) -> list[Step]:
    """A step for each matrix that must be made first."""
    keys = {
        build.origin: ("binaries", *_checked(build.of, stale))
        for build in stale
        if build.of and build.matrix and not imatrix.ready(build.matrix, pinned.store)
    }
    return [
        Step(kind="imatrix", key=key, needs=needs, heavy=True, log=log_of(f"imatrix {key}", logs)) for key, needs in keys.items()
    ]
