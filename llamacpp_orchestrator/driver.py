"""The whole job in one place: lock, run, set up; each a straight list of steps."""

from __future__ import annotations

import functools
import hashlib
import tempfile
import time
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llamacpp_orchestrator import artifact
from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import bundle
from llamacpp_orchestrator import claims
from llamacpp_orchestrator import convert
from llamacpp_orchestrator import download
from llamacpp_orchestrator import folders
from llamacpp_orchestrator import host
from llamacpp_orchestrator import leftovers
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import measuring
from llamacpp_orchestrator import neighbours
from llamacpp_orchestrator import ollama
from llamacpp_orchestrator import outputs
from llamacpp_orchestrator import pins
from llamacpp_orchestrator import plan
from llamacpp_orchestrator import preflight
from llamacpp_orchestrator import process
from llamacpp_orchestrator import programs
from llamacpp_orchestrator import quality
from llamacpp_orchestrator import stages
from llamacpp_orchestrator import summary
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.calls import tool_env
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import first
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.outputs import Bench
from llamacpp_orchestrator.pins import Found
from llamacpp_orchestrator.quality import Asked
from llamacpp_orchestrator.report import Handed
from llamacpp_orchestrator.report import Quality
from llamacpp_orchestrator.report import Reporter
from llamacpp_orchestrator.report import Result
from llamacpp_orchestrator.steps import Event
from llamacpp_orchestrator.steps import Step
from llamacpp_orchestrator.steps import run as run_steps
from llamacpp_orchestrator.store import Store
from llamacpp_orchestrator.store import remove
from llamacpp_orchestrator.work import Options
from llamacpp_orchestrator.work import Work


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
    plan.check_place(work)
    leftovers.sweep(work)
    before = locks.read(locks.path_for(work.file)) if options.write_lock else None
    lock, events, errors = settle(work, options, report)
    if lock is None:
        return summary.result(began, events, errors, [])
    result: Result | None = None
    try:
        result = _run(work, lock, options, report, began, events)
        return result
    finally:
        if options.write_lock and (result is None or result.errors):
            folders.unlock(work, before, lock)


def _run(work: Work, lock: Lock, options: Options, report: Reporter, began: float, events: list[Event]) -> Result:
    handed: tuple[Handed, ...] = ()
    measured: tuple[Quality, ...] = ()
    folders.drift(work, lock)
    made = _chosen(building.builds(work, lock, options.force), options.only)
    asked = [] if options.only else ollama.find(made)
    ollama.check(asked, options.force)
    comparing = [] if options.only else quality.find(work, made)
    quality.check(comparing, options.force)
    done, errors = _make(work, lock, made, options, report, frozenset(event.step for event in events))
    events += done
    if asked and (options.keep_going or not errors):
        asked = [each for each in asked if ollama.ready(each)]
        done = _carry_out(ollama.steps(work, lock, asked, _logs(work), options.ollama_create), options, report)
        events, errors = events + done, errors + _failures(done)
        handed = ollama.handed(work, lock, asked)
    if comparing and (options.keep_going or not errors):
        done, measured = _measure(work, lock, comparing, options, report, frozenset(event.step for event in events))
        events, errors = events + done, errors + _failures(done)
    kept = [build for build in made if not build.output.temporary]
    return msgspec.structs.replace(summary.result(began, events, errors, kept), ollama=handed, quality=measured)


def _chosen(made: list[Build], only: str) -> list[Build]:
    """All outputs, or the one of a name with what it is quantized from."""
    wanted = [build for build in made if build.output.path.name == only]
    return [build for build in made if build in wanted or build.output in [each.of for each in wanted]] if only else made


def settle(
    work: Work, options: Options, report: Reporter, binaries: bool = False
) -> tuple[Lock | None, list[Event], list[OrchestrateError]]:
    """The lock that says what the job asks, written beside it; None with the errors when a part could not be resolved.

    Raises LockError for `--locked` when the lock does not fit.
    """
    path = locks.path_for(work.file)
    old = locks.read(path) if options.read_lock else None
    stale = locks.stale_reasons(work.job, old) + pins.unpinned_reasons(work, old if options.locked else None)
    if options.locked and options.upgrade:
        raise JobError("--locked and --upgrade exclude each other", "leave one of them out")
    if options.locked and stale:
        raise LockError(
            f"{path.name} does not fit {work.file.name}: {'; '.join(stale)}",
            f"run `{work.command('lock')}` and commit the result",
        )
    if options.write_lock and old and (stale or options.upgrade):
        neighbours.check_lock(work.file)
    found = Found(**locks.fitting(work.job, old, options.upgrade))
    asked = pins.steps(work, found, binaries, options.downloads and not options.locked)
    events = _carry_out(asked, msgspec.structs.replace(options, keep_going=True), _quietly(report))
    errors = _failures(events)
    if errors:
        return None, events, errors
    lock = found.lock(work.job)
    folders.check_pairs(work)
    if options.write_lock:
        for change in (*stale, *locks.moved(old, lock)) if old else ():
            report(Event("lock", "note", change))
        locks.write(path, lock)
    return lock, events, []


def _carry_out(steps: list[Step], options: Options, report: Reporter, memory: int = 0) -> list[Event]:
    cores, known = host.resources()
    return run_steps(steps, options.jobs or (cores if known else 1), options.keep_going, report, memory, _halt)


def _halt() -> None:
    """Let no download and no child go on behind our back, whatever it is that ends us."""
    download.STOP.set()
    process.stop_all()


def _quietly(report: Reporter) -> Reporter:
    # Resolving is only the first half of these steps; their line comes when they are done.
    def show(event: Event) -> None:
        report(
            msgspec.structs.replace(event, status="ended")
            if event.status in ("done", "current") and event.step != "source"
            else event
        )

    return show


def _make(
    work: Work, lock: Lock, made: list[Build], options: Options, report: Reporter, ended: frozenset[str]
) -> tuple[list[Event], list[OrchestrateError]]:
    stale = [build for build in made if not build.current]
    current = [
        Event(f"{building.verb(build)} {build.name}", "current") for build in made if build.current and not build.output.temporary
    ]
    for event in current:
        report(event)
    for folder in building.unneeded(work, made):
        remove(folder)
    if not stale:
        return current, []
    warm = convert.Warm(
        str(building.python(work, lock)),
        building.tree(work, lock),
        building.converter_env(work),
        _logs(work) / "converter.log",
        stages.scripts(work, lock, stale),
    )
    forks = convert.can_fork(host.system())
    bench = Bench(
        work=work,
        lock=lock,
        logs=_logs(work),
        converter=warm.convert if forks else convert.run_alone,
        warm=warm.start if forks else None,
        held={},
        waiting=building.waiting(stale),
        force=options.force,
        jobs=options.jobs,
        memory=claims.bound(work.settings),
    )
    for build in made:
        outputs.heal(bench, build)
    for build in stale:
        artifact.may_write(build.output.path, artifact.read(build.output.path), options.force)
    if "source" in ended:
        preflight.check_job(work.job, lock.llama_cpp.tag, work.file.name, building.tree(work, lock))
    plan.check_offline(work, lock, stale, any(map(building.needs_programs, stale)))
    if any(build.of for build in stale) and programs.ready(work, lock):
        stages.check_types(work, lock)
    plan.check_space(plan.needs(work, lock, stale) + plan.measuring(work, lock, quality.find(work, made)))
    try:
        events = _carry_out(stages.of_run(bench, stale, ended), options, report, bench.memory)
    finally:
        warm.close()
        outputs.clean(bench, stale)
    return current + events, _failures(events)


def _measure(
    work: Work, lock: Lock, asked: list[Asked], options: Options, report: Reporter, ended: frozenset[str]
) -> tuple[list[Event], tuple[Quality, ...]]:
    """Measure one model after the other: each file of answers is large, and the tool uses every core by itself."""
    events: list[Event] = []
    there = [each for each in map(quality.finished, asked) if each]
    for each in there:
        if not options.keep_going and any(event.status == "failed" for event in events):
            break
        with measuring.alone(work, each) as folder:
            desk = measuring.Desk(
                work=work,
                lock=lock,
                each=each,
                folder=folder,
                logs=_logs(work),
                tool=functools.partial(programs.tool, work, lock, "llama-perplexity"),
                space=functools.partial(plan.check_space, plan.measuring(work, lock, [each], options.force)),
                known={} if options.force else quality.measured(work, lock, each),
            )
            before = [] if "binaries" in ended else [stages.binaries_step(work, lock, _logs(work) / "binaries.log", options.jobs)]
            made = measuring.steps(desk, tuple(step.name for step in before), options.force)
            events += _carry_out([*before, *made] if len(made) > 1 else made, msgspec.structs.replace(options, jobs=1), report)
            ended |= {event.step for event in events if event.status in ("done", "current")}
    return events, tuple(filter(None, (quality.shown(work, lock, each) for each in there)))


def _logs(work: Work) -> Path:
    key = hashlib.sha256(str(work.file.resolve()).encode()).hexdigest()[:8]
    made = work.store.folder("logs") / f"{work.file.stem}-{key}"
    made.mkdir(exist_ok=True)
    return made


def _failures(events: Iterable[Event]) -> list[OrchestrateError]:
    """The errors of the steps that failed; a bug of ours among them is raised as what it is."""
    found = []
    for error in filter(None, (event.error for event in events)):
        if not isinstance(error, OrchestrateError):
            raise error
        found.append(error)
    return found


def _do(steps: list[Step], options: Options, report: Reporter) -> None:
    if failed := _failures(_carry_out(steps, options, report)):
        raise first(failed)


def write_lock(work: Work, options: Options, report: Reporter) -> Path:
    """Resolve a job and write its lock, nothing else; where it lies. Raises the failures of what could not be resolved."""
    _settled(work, msgspec.structs.replace(options, downloads=False), report)
    return locks.path_for(work.file)


def _settled(work: Work, options: Options, report: Reporter, binaries: bool = False) -> Lock:
    lock, _, errors = settle(work, options, report, binaries)
    if lock is None:
        raise first(errors)
    return lock


def setup(work: Work, options: Options, report: Reporter) -> Result:
    """Get everything ready that does not depend on a model: tree, environment, release binaries."""
    began = time.monotonic()
    lock, events, errors = settle(work, options, report, binaries=True)
    if lock:
        log = _logs(work) / "environment.log"
        made = [Step(name="environment", action=stages.environment_action(work, lock, log), log=log)]
        if lock.reference:
            made.append(stages.reference_step(work, lock.reference, _logs(work) / "reference.log"))
        if not any(event.step == "source" for event in events):
            made.append(Step(name="source", action=stages.source_action(work, lock)))
        if work.job.binaries.backend != "none":
            made.append(stages.binaries_step(work, lock, _logs(work) / "binaries.log", options.jobs))
        done = _carry_out(made, options, report)
        events, errors = events + done, _failures(done)
    return summary.result(began, events, errors, [])


def pack(work: Work, options: Options, platform: str, file: Path, report: Reporter) -> Path:
    """Pack all that the lock names for a platform into one file; where it lies. Raises the failures of what could not be had."""
    platform = platform or bundle.platform_of(pins.this_host())
    bundle.machine(platform)
    lock = bundle.pinned(work, _settled(work, options, report), platform, lambda text: report(Event("lock", "note", text)))
    with tempfile.TemporaryDirectory(dir=work.store.folder("downloads"), prefix="bundle-", ignore_cleanup_errors=True) as scratch:
        _do(bundle.steps(work, lock, platform, Path(scratch), file), options, report)
    return file


def preview(work: Work, options: Options, report: Reporter) -> plan.Plan:
    """What a run would do; what is not locked is resolved in a cache of its own, so that nothing is left behind."""
    lock = locks.read(locks.path_for(work.file))
    if lock is None or locks.stale_reasons(work.job, lock):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            aside = msgspec.structs.replace(work, store=Store(Path(scratch)))
            lock = _settled(aside, msgspec.structs.replace(options, write_lock=False, downloads=False), report)
            plan.check_job(aside, lock)
    return plan.make(work, lock, options.force)


def exec_command(work: Work, argv: tuple[str, ...], report: Reporter) -> Command:
    """The command that runs a script of the tree or a program of the release, once both are here."""
    (name, *rest), script = argv, argv[0].endswith(".py")
    lock = _settled(work, Options(), report, binaries=not script)
    log = _logs(work) / "environment.log"
    made = (
        Step(name="environment", action=stages.environment_action(work, lock, log), log=log)
        if script
        else stages.binaries_step(work, lock, _logs(work) / "binaries.log")
    )
    _do([made], Options(), report)
    if not script:
        program = programs.tool(work, lock, name)
        return Command((str(program), *rest), env=tool_env(program))
    tree = pins.get_tree(work, lock.llama_cpp, lambda text: None)
    if not (tree / name).is_file():
        raise JobError(
            f"{lock.llama_cpp.tag} has no script {name}", "it has " + ", ".join(sorted(path.name for path in tree.glob("*.py")))
        )
    return Command((str(building.python(work, lock)), str(tree / name), *rest), env=building.converter_env(work))
