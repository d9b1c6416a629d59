"""A run of whole jobs: the lock, the outputs, what Ollama needs of them, and the reports on quality, in this order."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence

import msgspec

from llamacpp_orchestrator.commands import disk
from llamacpp_orchestrator.commands import summary
from llamacpp_orchestrator.commands.execution import carry_out
from llamacpp_orchestrator.commands.execution import log_folder
from llamacpp_orchestrator.commands.execution import step_errors
from llamacpp_orchestrator.commands.lock import settle
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.export import measure
from llamacpp_orchestrator.export import ollama
from llamacpp_orchestrator.export import quality
from llamacpp_orchestrator.export.quality import Asked
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import neighbours
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import graph
from llamacpp_orchestrator.pipeline import publish
from llamacpp_orchestrator.pipeline import receipt
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.publish import Bench
from llamacpp_orchestrator.results import Handed
from llamacpp_orchestrator.results import Quality
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.tempfiles import sweep_folder


def run_all(works: Sequence[Work], options: Options, report: Reporter) -> Result:
    """Run jobs one after the other as if they were one; the first that fails is the last, unless told to keep going."""
    results: list[Result] = []
    neighbours.check(works)
    if options.ollama_create:
        ollama.check_program(works)
    for work in works:
        results.append(run(work, options, report))
        if results[-1].errors and not options.keep_going:
            break
    return summary.together(results)


def run(work: Work, options: Options, report: Reporter) -> Result:
    """Do the whole job: pin, fetch, convert, quantize, verify; outputs that are up to date are left alone."""
    began = time.monotonic()
    disk.check_place(work)
    sweep(work)
    before = lock_file.read(lock_file.path_for(work.file)) if options.write_lock else None
    lock, events, errors = settle(work, options, report)
    if lock is None:
        return summary.result(began, events, errors, [])
    result: Result | None = None
    try:
        result = _run(work, lock, options, report, began, events)
        return result
    finally:
        if options.write_lock and (result is None or result.errors):
            unlock(work, before, lock)


def _run(work: Work, lock: Lock, options: Options, report: Reporter, began: float, events: list[Event]) -> Result:
    handed: tuple[Handed, ...] = ()
    measured: tuple[Quality, ...] = ()
    local_folders.drift(work, lock)
    made = _chosen(pipeline_build.builds(work, lock, options.force), options.only)
    asked = [] if options.only else ollama.find(made)
    ollama.check(asked, options.force)
    comparing = [] if options.only else quality.find(work, made)
    quality.check(comparing, options.force)
    done, errors = _make(work, lock, made, options, report, frozenset(event.step for event in events))
    events += done
    if asked and (options.keep_going or not errors):
        asked = [each for each in asked if ollama.ready(each)]
        done = carry_out(ollama.steps(work, lock, asked, log_folder(work), options.ollama_create), options, report)
        events, errors = events + done, errors + step_errors(done)
        handed = ollama.handed(work, lock, asked)
    if comparing and (options.keep_going or not errors):
        done, measured = _measure(work, lock, comparing, options, report, frozenset(event.step for event in events))
        events, errors = events + done, errors + step_errors(done)
    kept = [build for build in made if not build.output.temporary]
    return msgspec.structs.replace(summary.result(began, events, errors, kept), ollama=handed, quality=measured)


def _chosen(made: list[Build], only: str) -> list[Build]:
    """All outputs, or the one of a name with what it is quantized from."""
    wanted = [build for build in made if build.output.path.name == only]
    return [build for build in made if build in wanted or build.output in [each.of for each in wanted]] if only else made


def _make(
    work: Work, lock: Lock, made: list[Build], options: Options, report: Reporter, ended: frozenset[str]
) -> tuple[list[Event], list[OrchestrateError]]:
    stale = [build for build in made if not build.current]
    current = [
        Event(f"{pipeline_build.verb(build)} {build.name}", "current")
        for build in made
        if build.current and not build.output.temporary
    ]
    for event in current:
        report(event)
    for folder in pipeline_build.unneeded(work, made):
        remove(folder)
    if not stale:
        return current, []
    warm = warm_worker.Warm(
        str(pipeline_build.python(work, lock)),
        pipeline_build.tree(work, lock),
        pipeline_build.converter_env(work),
        log_folder(work) / "converter.log",
        graph.scripts(work, lock, stale),
    )
    forks = warm_worker.can_fork(host.system())
    bench = Bench(
        work=work,
        lock=lock,
        logs=log_folder(work),
        converter=warm.convert if forks else warm_worker.run_alone,
        warm=warm.start if forks else None,
        held={},
        waiting=pipeline_build.waiting(stale),
        force=options.force,
        jobs=options.jobs,
        memory=limits.bound(work.settings),
    )
    for build in made:
        publish.heal(bench, build)
    for build in stale:
        receipt.may_write(build.output.path, receipt.read(build.output.path), options.force)
    if "source" in ended:
        preflight.check_job(work.job, lock.llama_cpp.tag, work.file.name, pipeline_build.tree(work, lock))
    disk.check_offline(work, lock, stale, any(map(pipeline_build.needs_programs, stale)))
    if any(build.of for build in stale) and binaries.ready(work, lock):
        setup.check_types(work, lock)
    disk.check_space(disk.needs(work, lock, stale) + disk.measuring(work, lock, quality.find(work, made)))
    try:
        events = carry_out(graph.of_run(bench, stale, ended), options, report, bench.memory)
    finally:
        warm.close()
        publish.clean(bench, stale)
    return current + events, step_errors(events)


def _measure(
    work: Work, lock: Lock, asked: list[Asked], options: Options, report: Reporter, ended: frozenset[str]
) -> tuple[list[Event], tuple[Quality, ...]]:
    """Measure one model after the other: each file of answers is large, and the tool uses every core by itself."""
    events: list[Event] = []
    there = [each for each in map(quality.finished, asked) if each]
    for each in there:
        if not options.keep_going and any(event.status == "failed" for event in events):
            break
        with measure.alone(work, each) as folder:
            desk = measure.Desk(
                work=work,
                lock=lock,
                each=each,
                folder=folder,
                logs=log_folder(work),
                tool=functools.partial(binaries.tool, work, lock, "llama-perplexity"),
                space=functools.partial(disk.check_space, disk.measuring(work, lock, [each], options.force)),
                known={} if options.force else quality.measured(work, lock, each),
            )
            before = (
                [] if "binaries" in ended else [setup.binaries_step(work, lock, log_folder(work) / "binaries.log", options.jobs)]
            )
            made = measure.steps(desk, tuple(step.name for step in before), options.force)
            events += carry_out([*before, *made] if len(made) > 1 else made, msgspec.structs.replace(options, jobs=1), report)
            ended |= {event.step for event in events if event.status in ("done", "current")}
    return events, tuple(filter(None, (quality.shown(work, lock, each) for each in there)))


def unproven(work: Work, before: Lock | None, lock: Lock) -> Lock:
    """A lock without the folders that it has and `before` had not, and of which there is no output.

    What is wrong with such a folder is told only when it is converted. Once repaired, it is pinned as it is then.
    """
    known = {pin.wanted for pin in before.models} if before else set()
    for output in (build.output for build in pipeline_build.builds(work, lock) if build.current):
        known |= {records.base_wanted(output.model), *([records.lora_wanted(output.lora)] if output.lora else [])}
    kept = tuple(pin for pin in lock.models if pin.wanted in known or not spec.is_folder(pin.wanted.source))
    return msgspec.structs.replace(lock, models=kept)


def unlock(work: Work, before: Lock | None, lock: Lock) -> None:
    """Take what is `unproven` out of the lock that a failed run has written; what another has written since is left alone."""
    path, left = lock_file.path_for(work.file), unproven(work, before, lock)
    with contextlib.suppress(OrchestrateError):
        if left != lock and lock_file.read(path) == lock:
            lock_file.write(path, left)


def sweep(work: Work) -> None:
    """Remove the half-written small files of dead processes, wherever a run of this job writes some."""
    made = layout.outputs(work.job, work.file.parent)
    for folder in dict.fromkeys((work.file.parent, work.store.root / "memo", *(output.path.parent for output in made))):
        sweep_folder(folder)
