"""What is stored at an address, and what is brought back from it: which steps a run takes besides, and what may go here then."""

from __future__ import annotations

import functools
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import export
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.export import CarryOut
from llamacpp_orchestrator.export import Export
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import actions
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import graph
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.build import Outputs
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.remote_outputs import mirror
from llamacpp_orchestrator.remote_outputs import transfer
from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.storage import remote
from llamacpp_orchestrator.system.disk import Need
from llamacpp_orchestrator.system.disk import check_space
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Perform
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell


def lacking(builds: Iterable[Build]) -> list[Build]:
    """Those of some outputs that lie at the address alone, or whose matrices do."""
    receipts = ((build, pipeline_receipt.read(build.output.path)) for build in builds)
    return [
        build
        for build, receipt in receipts
        if receipt and (not mirror.is_local(build.output.path, receipt) or transfer.matrix(build, receipt))
    ]


def users(pinned: PinnedJob, outputs: Outputs) -> dict[Path, list[str]]:
    """The outputs that others need, with the names of those: quantized ones need their source, adapters a base to be tried on."""
    found: dict[Path, list[str]] = {}
    for build in outputs.stale:
        tried = build.output.lora and pipeline_build.is_loaded(build, outputs.stale)
        base = actions.base_of(pinned, build) if tried else None
        for one in filter(None, (build.of, base)):
            found.setdefault(one.path, []).append(build.name)
    return found


def woven(steps: list[Step], pinned: PinnedJob, outputs: Outputs) -> list[Step]:
    """The steps of a run with those that bring here what others need, and that store what they make or have left."""
    if not pinned.context.address:
        return steps
    needed = users(pinned, outputs)
    brought = lacking(build for build in outputs.kept if build.output.path in needed and build.output.path in outputs.current)
    waiting = {f"imatrix {build.name}": [f"retrieve {build.name}"] for build in brought}
    for build in brought:
        for step in (f"{kind} {user}" for user in needed[build.output.path] for kind in ("quantize", "verify")):
            waiting.setdefault(step, []).append(f"retrieve {build.name}")
    result = [Step(kind="retrieve", key=build.name) for build in brought]
    result += [msgspec.structs.replace(step, needs=(*step.needs, *waiting.get(step.name, ()))) for step in steps]
    stale = [build.name for build in outputs.stale if not build.output.temporary]
    result += [Step(kind="store", key=name, needs=(f"verify {name}",)) for name in stale]
    return result + left(mirror.unsent(pinned.context, outputs))


def left(builds: Iterable[Build]) -> list[Step]:
    """The steps that store what is up to date, and was not stored by the run that made it."""
    return [Step(kind="store", key=build.name) for build in builds]


def spent(outputs: Outputs, needed: Mapping[Path, list[str]], ended: Collection[str], step: str) -> list[Path]:
    """The outputs that are stored and no longer needed here once a step has ended; `ended` has the names of all such steps."""
    kind, _, name = step.partition(" ")
    if kind not in ("store", "verify"):
        return []
    touched = [build for build in outputs.kept if build.name == name or name in needed.get(build.output.path, ())]
    return [
        build.output.path
        for build in touched
        if (build.output.path in outputs.current or f"store {build.name}" in ended)
        and all(f"verify {user}" in ended for user in needed.get(build.output.path, ()))
    ]


def performing(run: JobRun, builds: Iterable[Build]) -> Perform:
    """How the steps of a run are done, those about an address among them, for which it needs all outputs of the job."""
    by_name = {build.name: build for build in builds}

    def perform(step: Step, outcomes: Outcomes, tell: Tell) -> Outcome:
        action = transfer.ACTIONS.get(step.kind)
        return action(run, by_name[step.key], tell) if action else graph.perform(run, step, outcomes, tell)

    return perform


def freeing(report: Reporter, pinned: PinnedJob, outputs: Outputs, publish: bool) -> Reporter:
    """A reporter that also takes away here what is stored once nothing of the run needs it; exports need all of their models."""
    context = pinned.context
    if not context.address:
        return report
    keys, needed, ended = export.keys(context.job, publish), users(pinned, outputs), set[str]()
    kept = {build.output.path for build in outputs.kept if any(getattr(build.output.model, key) for key in keys)}

    def show(event: Event) -> None:
        report(event)
        if event.status in ("done", "current"):
            ended.add(event.step)
            mirror.free(context, [path for path in spent(outputs, needed, ended, event.step) if path not in kept])

    return show


def sources(pinned: PinnedJob, outputs: Outputs) -> list[Build]:
    """The outputs that are up to date and that others, which are not, need here."""
    needed = users(pinned, outputs) if pinned.context.address else {}
    return [build for build in outputs.kept if build.output.path in needed and build.output.path in outputs.current]


def exported(run: JobRun, module: Export, items: Sequence[Any], options: Options, carry_out: CarryOut) -> list[Event]:
    """Make of finished outputs what a module makes; from an address they are brought here first, and what is made is sent."""
    context, events = run.pinned.context, list[Event]()
    if context.address:
        needed = lacking(filter(pipeline_build.is_current, module.reads(run.pinned, items, options)))
        check_space(needs(needed))
        steps = [Step(kind="retrieve", key=build.name) for build in dict.fromkeys(needed)]
        events += carry_out(steps, performing(run, run.builds.values()), 0)
        if any(event.status != "done" for event in events):
            return events
    events += module.export(run, items, options, carry_out)
    if context.address:
        paths = [path for path in module.writes(items) if path.is_file() and not mirror.is_sent(path)]
        steps = [Step(kind="store", key=mirror.name(context, path)) for path in paths]
        events += carry_out(steps, functools.partial(transfer.store_small, context), 0)
    return events


def needs(builds: Iterable[Build]) -> tuple[Need, ...]:
    """What bringing outputs here writes to the disk."""
    receipts = ((build, pipeline_receipt.read(build.output.path)) for build in lacking(builds))
    return tuple(
        Need(str(build.output.path.parent), sum(file.size for file in receipt.files), f"{build.name}, from its address")
        for build, receipt in receipts
        if receipt
    )


def check(context: Context) -> None:
    """Raise what would keep us from writing to a job's address, before hours are spent on what goes there."""
    there, name = mirror.place(context), storage_address.draft("orchestrate", remote.RUN)
    transfer.put_small(context, there, b"orchestrate\n", name)
    remote.remove(there, name)
