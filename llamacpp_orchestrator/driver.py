"""The whole job in one place: lock, run, set up; each a straight list of steps."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import artifact
from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import convert
from llamacpp_orchestrator import download
from llamacpp_orchestrator import environment
from llamacpp_orchestrator import host
from llamacpp_orchestrator import hub
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import pins
from llamacpp_orchestrator import quantize
from llamacpp_orchestrator import releases
from llamacpp_orchestrator import plan
from llamacpp_orchestrator import process
from llamacpp_orchestrator.build import Bench
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.lock import Wanted
from llamacpp_orchestrator.pins import Found
from llamacpp_orchestrator.pins import Work
from llamacpp_orchestrator.process import Command
from llamacpp_orchestrator.report import Reporter
from llamacpp_orchestrator.steps import Action
from llamacpp_orchestrator.steps import Event
from llamacpp_orchestrator.steps import Step
from llamacpp_orchestrator.steps import Tell
from llamacpp_orchestrator.steps import run as run_steps

# What every tag's scripts have taken since b3878: with these, nothing about the types needs the tree to be here first.
ALWAYS = {"model": {"f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"}, "adapter": {"f32", "f16", "bf16", "q8_0", "auto"}}

this_host = functools.lru_cache(maxsize=1)(host.detect)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to go about a job: the shared options of the commands."""

    locked: bool = False
    force: bool = False
    keep_going: bool = False
    jobs: int = 0
    write_lock: bool = True


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a job has made or found up to date."""

    path: str
    kind: str
    type: str
    size: int
    sha256: str
    status: str
    source: str


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one step ended."""

    name: str
    status: str
    seconds: float
    log: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to; `errors` are those of the failed steps, the first one first."""

    status: str
    seconds: float
    steps: tuple[StepResult, ...]
    outputs: tuple[Made, ...]
    errors: tuple[OrchestrateError, ...] = ()

    def document(self) -> dict[str, Any]:
        """The result as `--json` prints it."""
        plain = {name: msgspec.to_builtins(getattr(self, name)) for name in ("status", "seconds", "steps", "outputs")}
        return plain | ({"error": self.errors[0].lines()} if self.errors else {})


def run_all(works: Sequence[Work], options: Options, report: Reporter) -> Result:
    """Run jobs one after the other as if they were one; the first that fails is the last, unless told to keep going."""
    results: list[Result] = []
    for work in works:
        results.append(run(work, options, report))
        if results[-1].errors and not options.keep_going:
            break
    return Result(
        status="failed" if any(result.errors for result in results) else "ok",
        seconds=round(sum(result.seconds for result in results), 3),
        steps=tuple(step for result in results for step in result.steps),
        outputs=tuple(output for result in results for output in result.outputs),
        errors=tuple(error for result in results for error in result.errors),
    )


def run(work: Work, options: Options, report: Reporter) -> Result:
    """Do the whole job: pin, fetch, convert, quantize, verify; outputs that are up to date are left alone."""
    began = time.monotonic()
    lock, events, errors = settle(work, options, report)
    made: list[Build] = []
    if lock:
        pins.drift(work, lock)
        made = building.builds(work, lock, options.force)
        done, errors = _make(work, lock, made, options, report, frozenset(event.step for event in events))
        events += done
    return result(began, events, errors, made, work)


def settle(work: Work, options: Options, report: Reporter, binaries: bool = False) -> tuple[Lock | None, list[Event], list[OrchestrateError]]:
    """The lock that says what the job asks, written beside it; None with the errors when a part could not be resolved.

    Raises LockError for `--locked` when the lock does not fit.
    """
    path = locks.path_for(work.file)
    old = locks.read(path) if options.write_lock else None
    stale = locks.stale_reasons(work.job, old)
    if options.locked and stale:
        raise LockError(f"{path.name} does not fit {work.file.name}: {'; '.join(stale)}", f"run `orchestrate lock {work.file.name}` and commit the result")
    found = Found(**locks.fitting(work.job, old))
    events = _carry_out(pins.steps(work, found, binaries), msgspec.structs.replace(options, keep_going=True), _quietly(report))
    errors = [_error(event) for event in events if event.status == "failed"]
    if errors:
        return None, events, errors
    lock = found.lock(work.job)
    pins.check_pairs(work, pins.local_folders(work))
    if options.write_lock:
        for reason in stale if old else ():
            report(Event("lock", "note", reason))
        locks.write(path, lock)
    return lock, events, []


def _carry_out(steps: list[Step], options: Options, report: Reporter) -> list[Event]:
    try:
        return run_steps(steps, _jobs(options), options.keep_going, report)
    except BaseException:
        # Whatever ended us, a signal before all: no download and no child goes on behind our back.
        download.STOP.set()
        process.stop_all()
        raise


def _quietly(report: Reporter) -> Reporter:
    # Resolving is only the first half of these steps; their line comes when they are done.
    def show(event: Event) -> None:
        report(msgspec.structs.replace(event, status="ended") if event.status in ("done", "current") and event.step != "source" else event)

    return show


def _make(
    work: Work, lock: Lock, made: list[Build], options: Options, report: Reporter, ended: frozenset[str]
) -> tuple[list[Event], list[OrchestrateError]]:
    stale = [build for build in made if not build.current]
    for build in made:
        if build.current:
            report(Event(f"convert {build.name}", "current"))
    current = [Event(f"{_verb(build)} {build.name}", "current") for build in made if build.current]
    if not stale:
        return current, []
    warm = convert.Warm(str(building.python(work, lock)), building.tree(work, lock), _converter_env(work), _logs(work) / "converter.log")
    forks = convert.can_fork(host.system())
    bench = Bench(work=work, lock=lock, logs=_logs(work), converter=warm.convert if forks else convert.run_alone, held={}, force=options.force)
    for build in made:
        building.heal(bench, build)
    for build in stale:
        artifact.may_write(build.output.path, artifact.read(build.output.path), options.force)
    plan.check_space(plan.needs(work, lock, stale))
    try:
        events = _carry_out(_steps(bench, stale, ended), options, report)
    finally:
        warm.close()
        building.clean(bench, stale)
    return current + events, [_error(event) for event in events if event.status == "failed"]


def _steps(bench: Bench, stale: list[Build], ended: frozenset[str]) -> list[Step]:
    work, lock = bench.work, bench.lock
    made = [] if "source" in ended else [Step(name="source", action=_source(work, lock))]
    made += [Step(name="environment", action=environment_action(work, lock, bench.log("environment")), log=bench.log("environment"))]
    quantizing = [build for build in stale if build.of]
    if quantizing:
        made.append(Step(name="binaries", action=binaries_action(work, lock)))
    here = {step.name for step in made} | {build.name for build in stale}
    names = pins.step_names(work.job)
    after = () if "source" in ended or _ordinary(stale) else ("source",)
    for (wanted, name), step in _fetched(stale, names).items():
        made.append(Step(name=step, action=fetch_action(work, lock, wanted, name), needs=after))
    for build in stale:
        log = bench.log(f"{_verb(build)} {build.name}")
        if build.of:
            of = next((f"verify {other.name}" for other in stale if other.output == build.of), None)
            needs: Iterable[str] = ("binaries", *([of] if of else []))
            action = building.quantize_action(bench, build, functools.partial(tool, work, lock, "llama-quantize"))
        else:
            fetched = _fetched([build], names).values()
            needs = ("environment", *(["source"] if "source" in here else []), *fetched)
            action = building.convert_action(bench, build)
        step = f"{_verb(build)} {build.name}"
        made.append(Step(name=step, action=action, needs=tuple(needs), heavy=True, log=log))
        made.append(Step(name=f"verify {build.name}", action=building.verify_action(bench, build), needs=(step,), log=log))
    return made


def _fetched(stale: list[Build], names: dict[Wanted, str]) -> dict[tuple[Wanted, str], str]:
    pairs = dict.fromkeys(need for build in stale for need in build.needs)
    first = {wanted: name for wanted, name in reversed(pairs)}
    return {(wanted, name): f"fetch {names[wanted]}" + ("" if first[wanted] == name else f" as {name}") for wanted, name in pairs}


def _ordinary(stale: list[Build]) -> bool:
    return all(build.output.type in ALWAYS[build.output.kind] for build in stale if not build.of)


def check_outtypes(work: Work, tree: Path) -> None:
    """Raise JobError for a type that this tag's scripts do not have, with those that they do."""
    for model in work.job.models:
        asked = [("model", model.name, each) for each in model.outtype if each != "none"]
        asked += [("adapter", lora.name, each) for lora in model.loras for each in lora.outtype]
        for kind, name, outtype in asked:
            known = convert.outtypes(tree, kind)
            if known and outtype not in known:
                also = "; types such as Q4_K_M belong under `quantize`" if "_" in outtype and kind == "model" else ""
                raise JobError(
                    f"{work.file.name}: {name}: {work.job.llama_cpp.tag} has no outtype `{outtype}` for {kind}s",
                    f"it has {', '.join(known)}{also}",
                )


def _source(work: Work, lock: Lock) -> Action:
    def action(tell: Tell) -> str:
        before = work.store.has("source", lock.llama_cpp.key())
        check_outtypes(work, pins.get_tree(work, lock.llama_cpp, tell))
        return "current" if before else "done"

    return action


def environment_action(work: Work, lock: Lock, log: Path) -> Action:
    """Build the locked environment, or probe the user's own."""

    def action(tell: Tell) -> str:
        if lock.environment is None:
            environment.own(work.folder(str(work.job.environment.path)), work.file)
            return "current"
        pin = lock.environment.pin()
        before = work.store.has("environments", pin.digest())
        work.store.ensure(
            "environments",
            pin.digest(),
            lambda dest: environment.build(pin, work.job.environment.torch, work.settings, dest, log, tell),
            environment.unhealthy,
        )
        return "current" if before else "done"

    return action


def binaries_action(work: Work, lock: Lock) -> Action:
    """Fetch and unpack the release archive that fits this machine, and see that its programs start."""

    def action(tell: Tell) -> str:
        choice = choose(work, lock)
        key = binaries_key(choice)
        before = work.store.has("binaries", key)
        downloads = work.store.folder("downloads")
        tell(choice.reason)
        path = work.store.ensure(
            "binaries", key, lambda dest: releases.install(choice, dest, downloads, lambda done, total: tell(pins.progress(done, total)))
        )
        releases.probe(path, this_host())
        return "current" if before else "done"

    return action


def choose(work: Work, lock: Lock) -> releases.Choice:
    """The archive of the locked release for this machine; OrchestrateError when none fits, with what would."""
    asked = work.job.binaries
    if asked.backend == "none":
        raise JobError(f"{work.file.name}: `quantize` needs the release binaries, and binaries.backend is none", "set `backend: cpu`")
    return releases.choose(work.job.llama_cpp.tag, lock.assets, this_host(), asked.backend, asked.cuda)


def binaries_key(choice: releases.Choice) -> str:
    """The store key of an installed choice: a digest over its archives."""
    parts = [choice.archive.sha256 or choice.archive.name, (choice.runtime.sha256 or choice.runtime.name) if choice.runtime else ""]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def tool(work: Work, lock: Lock, name: str) -> Path:
    """An installed program of the release, by name."""
    return releases.find_tool(work.store.entry("binaries", binaries_key(choose(work, lock))), name, this_host().system)


def fetch_action(work: Work, lock: Lock, wanted: Wanted, name: str) -> Action:
    """Bring the files of a model or adapter here, examine them, and make the view that a converter is shown."""

    def action(tell: Tell) -> str:
        pin = lock.files(wanted)
        view = building.view(work, pin, name)
        sizes = {file.path: file.size for file in pin.files}

        def unhealthy(entry: Path) -> str:
            whole = all((entry / name / path).is_file() and (entry / name / path).stat().st_size == size for path, size in sizes.items())
            return "" if whole else "files behind the view have gone"

        before = view.exists() and not unhealthy(view.parent)
        work.store.ensure("views", view.parent.name, lambda entry: _fill(work, pin, entry / name, tell), unhealthy)
        return "current" if before else "done"

    return action


def _fill(work: Work, pin: locks.FilesPin, view: Path, tell: Tell) -> None:
    wanted = pin.wanted
    if wanted in pins.local_folders(work):
        origin = work.folder(wanted.source)
    else:
        light = tuple(file for file in pin.files if not file.path.endswith(".safetensors"))
        for files in (light, pin.files):
            snapshot = hub.Snapshot(source=wanted.source, commit=pin.commit, files=files)
            origin = hub.fetch(snapshot, work.settings, lambda done, total: tell(pins.progress(done, total)))
            pins.examine(origin, wanted, files)
    hub.make_view(pin.files, origin, view)


def result(began: float, events: list[Event], errors: list[OrchestrateError], made: list[Build], work: Work) -> Result:
    """What a run came to, as plain data."""
    merged: dict[str, Event] = {}
    for event in events:
        seconds = event.seconds + (merged[event.step].seconds if event.step in merged else 0.0)
        merged[event.step] = msgspec.structs.replace(event, seconds=seconds)
    ended = {event.step: event.status for event in merged.values()}
    outputs: list[Made] = []
    for build in made:
        status = "current" if build.current or ended.get(f"verify {build.name}") == "current" else "built"
        if build.current or ended.get(f"verify {build.name}") in ("done", "current"):
            outputs += _outputs(build, status)
    return Result(
        status="failed" if errors else "ok",
        seconds=round(time.monotonic() - began, 3),
        steps=tuple(
            StepResult(name=event.step, status=event.status, seconds=round(event.seconds, 3), log=str(event.log) if event.log else None)
            for event in merged.values()
        ),
        outputs=tuple(outputs),
        errors=tuple(errors),
    )


def _outputs(build: Build, status: str) -> list[Made]:
    output = build.output
    receipt = artifact.read(output.path)
    source = output.lora.source if output.lora else output.model.source
    return [
        Made(path=str(output.path.parent / file.name), kind=output.kind, type=output.type, size=file.size, sha256=file.sha256, status=status, source=source)
        for file in (receipt.files if receipt else ())
    ]


def _verb(build: Build) -> str:
    return "quantize" if build.of else "convert"


def _jobs(options: Options) -> int:
    if options.jobs:
        return options.jobs
    # A conversion needs about 2 GB besides the pages of the model, which the system may drop.
    cores, memory = host.resources()
    return max(1, min(cores, memory // 3_000_000_000))


def _logs(work: Work) -> Path:
    key = hashlib.sha256(str(work.file.resolve()).encode()).hexdigest()[:8]
    made = work.store.folder("logs") / f"{work.file.stem}-{key}"
    made.mkdir(exist_ok=True)
    return made


def _converter_env(work: Work) -> tuple[tuple[str, str], ...]:
    return convert.environment(work.store.folder("home"))


def _error(event: Event) -> OrchestrateError:
    if isinstance(event.error, OrchestrateError):
        return event.error
    assert event.error is not None
    raise event.error


def setup(work: Work, options: Options, report: Reporter) -> Result:
    """Get everything ready that does not depend on a model: tree, environment, release binaries."""
    began = time.monotonic()
    lock, events, errors = settle(work, options, report, binaries=True)
    if lock:
        log = _logs(work) / "environment.log"
        made = [Step(name="environment", action=environment_action(work, lock, log), log=log)]
        if not any(event.step == "source" for event in events):
            made.append(Step(name="source", action=_source(work, lock)))
        if work.job.binaries.backend != "none":
            made.append(Step(name="binaries", action=binaries_action(work, lock)))
        done = _carry_out(made, options, report)
        events, errors = events + done, [_error(event) for event in done if event.status == "failed"]
    return result(began, events, errors, [], work)


def preview(work: Work, options: Options, report: Reporter) -> tuple[plan.Plan | None, list[OrchestrateError]]:
    """What a run would do; resolves what is not locked, and writes nothing beside the job."""
    lock, _, errors = settle(work, msgspec.structs.replace(options, keep_lock=True), report)
    return (plan.make(work, lock, options.force) if lock else None), errors


def exec_command(work: Work, argv: tuple[str, ...], report: Reporter) -> tuple[Command | None, list[OrchestrateError]]:
    """The command that runs a script of the tree or a program of the release, once both are here."""
    name, *rest = argv
    script = name.endswith(".py")
    options = Options()
    lock, _, errors = settle(work, options, report, binaries=not script)
    if lock is None:
        return None, errors
    log = _logs(work) / "environment.log"
    made = Step(name="environment", action=environment_action(work, lock, log), log=log) if script else Step(name="binaries", action=binaries_action(work, lock))
    failed = [_error(event) for event in _carry_out([made], options, report) if event.status == "failed"]
    if failed:
        return None, failed
    if not script:
        return Command((str(tool(work, lock, name)), *rest), env=quantize.tool_env(tool(work, lock, name))), []
    tree = pins.get_tree(work, lock.llama_cpp, lambda text: None)
    if not (tree / name).is_file():
        raise JobError(f"{lock.llama_cpp.tag} has no script {name}", "it has " + ", ".join(sorted(path.name for path in tree.glob("*.py"))))
    return Command((str(building.python(work, lock)), str(tree / name), *rest), env=_converter_env(work)), []


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One output and what is wrong with it."""

    path: str
    complaints: tuple[str, ...]


def verify(paths: Sequence[Path]) -> list[Checked]:
    """Re-check outputs, or all outputs in folders, against their receipts; JobError when a path holds none of ours."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(receipt.with_name(receipt.name.removesuffix(artifact.SUFFIX)) for receipt in path.rglob(f"*{artifact.SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise JobError(f"{path} holds no output with a receipt", "name a GGUF file that orchestrate has made, or the folder of it")
        found += inside
    return [Checked(path=str(path), complaints=tuple(artifact.recheck(path))) for path in found]
