"""A run of whole jobs: the lock, the outputs, and what becomes of them, in this order."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import export
from llamacpp_orchestrator import inside
from llamacpp_orchestrator.commands import disk
from llamacpp_orchestrator.commands import summary
from llamacpp_orchestrator.commands.execution import carry_out
from llamacpp_orchestrator.commands.execution import carry_out_export
from llamacpp_orchestrator.commands.execution import log_folder
from llamacpp_orchestrator.commands.execution import log_place
from llamacpp_orchestrator.commands.execution import step_errors
from llamacpp_orchestrator.commands.lock import settle
from llamacpp_orchestrator.commands.setup import job_run
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.export import ollama_program
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import neighbours
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import graph
from llamacpp_orchestrator.pipeline import placement
from llamacpp_orchestrator.pipeline import receipt
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.pipeline.build import Outputs
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.remote_outputs import mirror
from llamacpp_orchestrator.remote_outputs import store
from llamacpp_orchestrator.report import run_record
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.disk import Need
from llamacpp_orchestrator.system.disk import check_space
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.util import tempfiles
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.tempfiles import sweep_folder

Lend = Callable[..., contextlib.AbstractContextManager[warm_worker.Warm]]  # as warm_worker.lent does


def run_all(contexts: Sequence[Context], options: Options, report: Reporter) -> Result:
    """Run jobs one after the other as if they were one; the first that fails is the last, unless told to keep going.

    What became of the steps of each is recorded beside its logs, also of one that fails or is stopped.
    """
    results: list[Result] = []
    neighbours.check(contexts)
    if options.ollama_create:
        ollama_program.check(contexts)
    if options.publish:
        from llamacpp_orchestrator.export import publish  # with all that a card is written with

        publish.check_job(contexts)
    for context in contexts:
        with run_record.recording(functools.partial(_record_place, context), report) as show:
            results.append(run(context, options, show))
        if results[-1].errors and not options.keep_going:
            break
    return summary.together(results)


def _record_place(context: Context, has_steps: bool) -> Path | None:
    """Where a run is recorded; a refusal before the first step makes no cache for it."""
    return log_folder(context) / run_record.NAME if has_steps or context.store.root.is_dir() else None


def run(context: Context, options: Options, report: Reporter) -> Result:
    """Do the whole job: pin, fetch, convert, quantize, verify; outputs that are up to date are left alone."""
    began = time.monotonic()
    disk.check_place(context)
    with mirror.using(context):
        mirror.look(context)
        sweep(context)
        return _settled(context, options, report, began)


def _settled(context: Context, options: Options, report: Reporter, began: float) -> Result:
    """Pin what is not pinned yet, and do the job."""
    before = lock_file.read(lock_file.path_for(context.file)) if options.write_lock else None
    lock, events, errors = settle(context, options, report)
    if lock is None:
        return summary.result(began, events, errors)
    pinned = PinnedJob(context, lock)
    result: Result | None = None
    try:
        ready = frozenset(event.step for event in events) & {"source"}  # of the others only what they bring has been told
        result = make_pinned(pinned, options, report, ready=ready, events=events)
        return msgspec.structs.replace(result, seconds=round(time.monotonic() - began, 3))
    finally:
        if options.write_lock and (result is None or result.errors):
            unlock(pinned, before)


def make_pinned(
    pinned: PinnedJob,
    options: Options,
    report: Reporter,
    lend: Lend = warm_worker.lent,
    ready: Collection[str] = (),
    events: Sequence[Event] = (),
) -> Result:
    """Make the outputs of a job that is pinned, without the steps that are `ready`; `events` tell what was done before."""
    with merges_kept(pinned):
        return _run(pinned, options, report, lend, ready, list(events))


def _run(
    pinned: PinnedJob, options: Options, report: Reporter, lend: Lend, ready: Collection[str], events: list[Event]
) -> Result:
    began = time.monotonic()
    local_folders.drift(pinned)
    outputs = _chosen(pipeline_build.outputs(pinned, options.force), options.only)
    if not options.force and placement.recognise(placement.Locks(pinned.store.folder("locks")), outputs.stale):
        outputs = _chosen(pipeline_build.outputs(pinned), options.only)
    modules = [] if options.only else export.wanted(pinned.context.job, options.publish)
    exports = [(module, module.find(pinned, outputs.builds)) for module in modules]
    for module, items in exports:
        module.check(items, options.force)
    space = tuple(need for module, items in exports for need in module.needs(pinned, items, options.force))
    done, errors = _make(pinned, outputs, space, options, report, lend, ready)
    events = events + done
    results: dict[str, tuple[Any, ...]] = {}
    for module, items in exports:
        if options.keep_going or not errors:
            run = job_run(pinned, options, outputs.builds)
            done = store.exported(run, module, items, options, functools.partial(carry_out_export, options, report))
            events, errors = events + done, errors + step_errors(done)
            results[module.KEY] = module.results(pinned, items, done)
    mirror.free(pinned.context, [build.output.path for build in outputs.kept])
    return summary.result(began, events, errors, outputs, pinned.context.named, **results)


def _chosen(outputs: Outputs, only: Collection[str]) -> Outputs:
    """All outputs, or those of some names, with what they are quantized from."""
    named = [build for build in outputs.builds if build.name in only]
    sources = [build.of for build in named]
    kept = tuple(build for build in outputs.builds if build in named or build.output in sources)
    return msgspec.structs.replace(outputs, builds=kept) if only else outputs


def _make(
    pinned: PinnedJob,
    outputs: Outputs,
    space: tuple[Need, ...],
    options: Options,
    report: Reporter,
    lend: Lend,
    ready: Collection[str],
) -> tuple[list[Event], list[OrchestrateError]]:
    """Make what is not up to date; the last events, and the errors among them. `space` is what is written to disks besides."""
    stale = outputs.stale
    up_to_date = (build for build in outputs.kept if build.output.path in outputs.current)
    current = [Event(f"{pipeline_build.verb(build)} {build.name}", "current") for build in up_to_date]
    for event in current:
        report(event)
    for folder in pipeline_build.unneeded(pinned.context, outputs) if not options.only else ():
        remove(folder)
    left = mirror.unsent(pinned.context, outputs)
    if not stale and not left:
        return current, []
    if pinned.context.address:
        store.check(pinned.context)
    if options.scheduler and stale:
        events = _by_cluster(pinned, outputs, options, report)
        mirror.look(pinned.context)  # the workers have stored what they made
        perform = store.performing(job_run(pinned, options), outputs.kept)
        events += carry_out(store.left(left), perform, options, report) if left else []
        return current + events, step_errors(events)
    log, scripts = tempfiles.renew(log_folder(pinned.context) / "converter.log"), graph.scripts(pinned, stale)
    run, forks = job_run(pinned, options, stale), warm_worker.can_fork(host.system())
    try:
        with lend(str(pinned.python), pinned.tree, pinned.script_env, log, scripts) as warm, _judge(lend, pinned, log) as judge:
            if forks:
                run = msgspec.structs.replace(run, converter=warm.convert, importer=warm.load, judge=judge)
            _check(run, outputs, space, ready)
            steps = store.woven(graph.steps(pinned, stale, run.logs, ready) if stale else [], pinned, outputs)
            loads = forks and not all(build.of for build in stale)
            begin = warm.start if loads else lambda: None
            if loads and (all(name in ready for name in setup.LOADED) or setup.in_place(pinned)):
                begin()
            perform, need = store.performing(run, outputs.kept), functools.partial(graph.need, run)
            tidying = _tidying(store.freeing(report, pinned, outputs, options.publish), steps, outputs, begin)
            events = carry_out(steps, perform, options, tidying, need, run.memory)
    finally:
        placement.clean(run.locks, stale)
    return current + events, step_errors(events)


@contextlib.contextmanager
def _judge(lend: Lend, pinned: PinnedJob, log: Path) -> Iterator[Run | None]:
    """What runs scripts in the environment that outputs are compared with, which loads for all of them once."""
    if pinned.lock.reference is None:
        yield None
        return
    python, script = str(pinned.python_of(pinned.lock.reference)), inside.path("transformers_logits")
    with lend(python, script.parent, pinned.script_env, log, [script]) as warm:
        yield warm.convert


def _by_cluster(pinned: PinnedJob, outputs: Outputs, options: Options, report: Reporter) -> list[Event]:
    """Let the workers of a cluster make what is not up to date."""
    from llamacpp_orchestrator.cluster import chains
    from llamacpp_orchestrator.cluster import driver
    from llamacpp_orchestrator.cluster.records import Chain
    from llamacpp_orchestrator.pipeline import memory

    stale = outputs.stale
    for build in stale:
        receipt.may_write(build.output.path, receipt.read(build.output.path), options.force)
    names = frozenset(
        f"{kind} {build.name}" for build in outputs.builds for kind in (pipeline_build.verb(build), "verify", "store")
    )

    def share(tasks: int) -> list[Chain]:
        need = functools.partial(memory.of_build, pinned)
        return chains.chains(stale, tasks, lambda build: pipeline_build.is_loaded(build, stale), need)

    return driver.make(pinned, share, names, options, report)


def _check(run: JobRun, outputs: Outputs, space: tuple[Need, ...], ready: Collection[str]) -> None:
    """Raise for what is in the way of a run, before anything is fetched or written."""
    pinned, stale = run.pinned, outputs.stale
    placement.finish_interrupted(run.locks, outputs.builds)
    for build in stale:
        receipt.may_write(build.output.path, receipt.read(build.output.path), run.force)
    if "source" in ready:
        preflight.check_job(pinned.context.job, pinned.tag, pinned.context.file.name, pinned.tree)
    disk.check_offline(pinned, stale, any(map(pipeline_build.needs_programs, stale)))
    if any(build.of for build in stale) and binaries.ready(pinned):
        setup.check_types(pinned)
    disk.check_sizes(pinned, stale)
    check_space(disk.needs(pinned, stale) + store.needs(store.sources(pinned, outputs)) + space)


def _tidying(report: Reporter, steps: list[Step], outputs: Outputs, begin: Callable[[], None]) -> Reporter:
    """A reporter that also removes temporary outputs once all is made of them, and begins to load what conversions need.

    That is done as soon as the scripts and their environment are there, while weights may still be on their way.
    """
    ended: set[str] = set()
    loading = {step.name for step in steps if step.kind in setup.LOADED}
    temporary = any(build.output.temporary for build in outputs.builds)

    def show(event: Event) -> None:
        report(event)
        if event.status not in ("done", "current"):
            return
        ended.add(event.step)
        if event.step in loading and loading <= ended:
            begin()
        for folder in placement.spent(outputs, ended) if temporary and event.step.startswith("verify ") else ():
            remove(folder)

    return show


@contextlib.contextmanager
def merges_kept(pinned: PinnedJob) -> Iterator[None]:
    """Keep what is merged while a run works; afterwards what nothing is left to be made of goes."""
    builds = pipeline_build.builds(pinned) if any(model.merge for model in pinned.context.job.models) else []
    merged = {need: pinned.merged_key(need) for need in graph.merges(builds).values()}
    with contextlib.ExitStack() as stack:
        for key in merged.values():
            stack.enter_context(pinned.store.using("merged", key))
        yield
        for need, key in merged.items():
            if all(
                map(pipeline_build.is_current, (build for build in builds if need in build.needs and not build.output.temporary))
            ):
                pinned.store.discard("merged", key)


def unproven(pinned: PinnedJob, before: Lock | None) -> Lock:
    """The lock without the folders that it has and `before` had not, and of which there is no output.

    What is wrong with such a folder is told only when it is converted. Once repaired, it is pinned as it is then.
    """
    known = {pin.wanted for pin in before.models} if before else set()
    for output in (build.output for build in filter(pipeline_build.is_current, pipeline_build.builds(pinned))):
        known |= {part.wanted for part in records.model_need(output.model).parts}
        known |= {records.lora_wanted(output.lora)} if output.lora else set()
    kept = tuple(pin for pin in pinned.lock.models if pin.wanted in known or not pin.wanted.is_folder)
    return msgspec.structs.replace(pinned.lock, models=kept)


def unlock(pinned: PinnedJob, before: Lock | None) -> None:
    """Take what is `unproven` out of the lock that a failed run has written; what another has written since is left alone."""
    path, left = lock_file.path_for(pinned.context.file), unproven(pinned, before)
    with contextlib.suppress(OrchestrateError):
        if left != pinned.lock and lock_file.read(path) == pinned.lock:
            lock_file.write(path, left)


def sweep(context: Context) -> None:
    """Remove the half-written small files of dead processes, wherever a run of this job writes some."""
    outputs = layout.outputs(context.job, context.file.parent)
    places = (context.file.parent, context.store.root / "memo", log_place(context), *(output.path.parent for output in outputs))
    for folder in dict.fromkeys(places):
        sweep_folder(folder)
