"""The quality of a job's files: llama-perplexity runs, and the report and its plot are kept up to date."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.convert import encoders
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.export import CarryOut
from llamacpp_orchestrator.export import quality_report
from llamacpp_orchestrator.export.quality_report import QualityJob
from llamacpp_orchestrator.export.quality_report import check as check
from llamacpp_orchestrator.export.quality_report import find as find
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.results import Measure
from llamacpp_orchestrator.results import PlannedStep
from llamacpp_orchestrator.results import Quality
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.disk import Need
from llamacpp_orchestrator.system.disk import check_space
from llamacpp_orchestrator.system.scheduler import CURRENT
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import NOTE
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.store import write_atomically
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import perplexity
from llamacpp_orchestrator.verify import plot

KEY = "quality"
TRIES = 3


class Measuring(msgspec.Struct, frozen=True, kw_only=True):
    """One report at work."""

    run: JobRun
    job: QualityJob
    force: bool

    @property
    def folder(self) -> Path:
        """Where the answers of the unquantized model lie meanwhile: gigabytes, which go afterwards."""
        return self.run.pinned.store.folder("downloads") / self.mark

    @property
    def mark(self) -> str:
        """What tells this report from every other on this machine."""
        return f"quality-{hashlib.sha256(str(self.job.path).encode()).hexdigest()[:16]}"

    def rows(self, outcomes: Outcomes) -> dict[str, Measure]:
        """What is known by now, by what decides it: by the report, unless it is made anew, and by the steps that have ended."""
        rows = {} if self.force else quality_report.measured(self.run.pinned, self.job)
        return rows | {row.key: row for outcome in outcomes.values() for row in outcome.value or () if isinstance(row, Measure)}


def needs(pinned: PinnedJob, jobs: Iterable[QualityJob], force: bool = False) -> tuple[Need, ...]:
    """What the largest of the reports needs on the disk while it is made: they are made one after the other."""
    left = [job for job in jobs if force or quality_report.stale(pinned, job)]
    folder = str(pinned.store.root / "downloads")
    found = [Need(folder, quality_report.estimate(job), f"measuring {job.base.output.model.name}", exact=False) for job in left]
    return tuple(sorted(found, key=lambda need: -need.bytes)[:1])


def reads(pinned: PinnedJob, jobs: Iterable[QualityJob], options: Options) -> Iterator[Build]:
    """The outputs that are still to be measured."""
    for job in filter(None, map(quality_report.finished, jobs)):
        yield from (job.base, *job.compared) if options.force else quality_report.stale(pinned, job)


def writes(jobs: Iterable[QualityJob]) -> Iterator[Path]:
    """The reports and their plots."""
    return (path for job in jobs for path in (job.path, job.plot))


def planned(pinned: PinnedJob, jobs: Iterable[QualityJob], current: frozenset[Path], force: bool) -> Iterator[PlannedStep]:
    """The measurements that a run would make."""
    for job in jobs:
        left = quality_report.stale(pinned, job)
        for build in (job.base, *job.compared):
            text = job.text if build == job.base else None
            command = perplexity.command(Path(perplexity.TOOL), build.output.path, job.settings, text)
            status = "run" if force or build in left or build.output.path not in current else "current"
            yield PlannedStep(name=f"quality {quality_report.key(build)}", status=status, command=str(command))


def export(run: JobRun, jobs: Iterable[QualityJob], options: Options, carry_out: CarryOut) -> list[Event]:
    """Measure one model after the other: each file of answers is large, and the tool uses every core by itself."""
    events: list[Event] = []
    for job in filter(None, map(quality_report.finished, jobs)):
        if not options.keep_going and any(event.status == "failed" for event in events):
            break
        measuring = Measuring(run=run, job=job, force=options.force)
        with _alone(measuring):
            events += carry_out(steps(measuring), functools.partial(_perform, measuring), 1)
    return events


def results(pinned: PinnedJob, jobs: Iterable[QualityJob], events: Iterable[Event]) -> tuple[Quality, ...]:
    """What a run says of its reports."""
    finished, named = filter(None, map(quality_report.finished, jobs)), pinned.context.named
    found = filter(None, (quality_report.result(pinned, job) for job in finished))
    return tuple(
        msgspec.structs.replace(one, report=named(Path(one.report)), plot=named(Path(one.plot)) if one.plot else "")
        for one in found
    )


@contextlib.contextmanager
def _alone(measuring: Measuring) -> Iterator[None]:
    with measuring.run.pinned.store.lock(measuring.mark):
        remove(measuring.folder)  # of a run that was killed
        measuring.folder.mkdir()
        try:
            yield
        finally:
            remove(measuring.folder)


def steps(measuring: Measuring) -> list[Step]:
    """Measure what is not measured yet, the unquantized file first, and write the report."""
    job, run = measuring.job, measuring.run
    builds = (job.base, *job.compared) if measuring.force else quality_report.stale(run.pinned, job)
    steps = [setup.steps(run.pinned, run.logs)["binaries"]] if builds and not binaries.ready(run.pinned) else []
    needs = tuple(step.name for step in steps)
    for build in builds:
        key = quality_report.key(build)
        steps.append(Step(kind="quality", key=key, needs=needs, heavy=True, log=run.log(f"quality {key}")))
        needs = (f"quality {quality_report.key(job.base)}",)
    return [*steps, Step(kind="quality", key=job.path.name, needs=tuple(step.name for step in steps))]


def _perform(measuring: Measuring, step: Step, outcomes: Outcomes, tell: Tell) -> Outcome:
    if step.kind == "binaries":
        return setup.programs(measuring.run, step.key, outcomes, tell)
    if step.key == measuring.job.path.name:
        return _finish(measuring, measuring.rows(outcomes), tell)
    builds = {quality_report.key(build): build for build in (measuring.job.base, *measuring.job.compared)}
    measure = _keep if builds[step.key] == measuring.job.base else _compare
    return measure(measuring, builds[step.key], outcomes, tell)


def _keep(measuring: Measuring, build: Build, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Keep the answers of the unquantized model, with which the others are compared."""
    job, run, shards = measuring.job, measuring.run, pipeline_build.shards(build.output)
    _row(measuring, build, shards)
    check_space(needs(run.pinned, [job], measuring.force))
    command = perplexity.command(run.tool("llama-perplexity"), shards[0], job.settings, job.text)
    log = run.log(f"quality {quality_report.key(build)}")
    words = _run(measuring, command, log, tell)
    if any(flaw := perplexity.flaw(measuring.folder / perplexity.LOGITS)):
        cause, hint = perplexity.explain(CommandFailed("", code=0, tail=words))
        cause, hint = (cause, hint) if cause else (f"{flaw[0]}: ", flaw[1])
        raise OrchestrateError(f"{cause}llama-perplexity said that it was done, but did not answer to all of it", hint, log)
    return DONE


def _compare(measuring: Measuring, build: Build, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Compare an output with the answers of the unquantized model; learns the rows of both."""
    job, run, shards = measuring.job, measuring.run, pipeline_build.shards(build.output)
    rows = [_row(measuring, build, shards), _row(measuring, job.base, pipeline_build.shards(job.base.output))]
    command = perplexity.command(run.tool("llama-perplexity"), shards[0], job.settings)
    numbers = _table(measuring, command, run.log(f"quality {quality_report.key(build)}"), tell)
    base = {name: numbers.pop(f"base_{name}") for name in ("ppl", "ppl_error") if f"base_{name}" in numbers}
    measures = tuple(msgspec.structs.replace(row, **values) for row, values in zip(rows, (numbers, base), strict=True))
    # What took hours must not be lost with the next measurement.
    _write(measuring, measuring.rows(outcomes) | {row.key: row for row in measures})
    return Outcome("done", measures)


def _table(measuring: Measuring, command: Command, log: Path, tell: Tell) -> dict[str, float]:
    """What the tool finds out; asked again where it ended before its own logger had written all, as today's tags may."""
    for left in reversed(range(TRIES)):
        words = _run(measuring, command, log, tell)
        numbers = perplexity.parse(words)
        if numbers.keys() >= perplexity.WORDS.keys():
            return numbers
        cause, hint = perplexity.explain(CommandFailed("", code=0, tail=words))
        if cause or not left:
            break
        tell(f"{NOTE}llama-perplexity ended before its result was written; asking again")
    raise OrchestrateError(f"{cause}llama-perplexity said that it was done, but its result is not whole", hint, log)


def _row(measuring: Measuring, build: Build, shards: list[Path]) -> Measure:
    """What is known of a file before it is measured; OrchestrateError for an encoder."""
    contents = gguf.contents(shards)
    architecture = str(contents.metadata.get("general.architecture", ""))
    if encoders.ENCODERS.fullmatch(architecture) or contents.metadata.get(f"{architecture}.attention.causal") is False:
        raise OrchestrateError(
            f"{build.name} is an encoder ({architecture}): it guesses no next word, so it has no perplexity",
            "leave `quality` out for this model",
        )
    size = sum(path.stat().st_size for path in shards)
    key = quality_report.row_key(measuring.run.pinned, measuring.job, build)
    file = Path(os.path.relpath(shards[0], measuring.job.path.parent)).as_posix()
    return Measure(file=file, type=build.output.type, size=size, bits=gguf.bits_per_weight(contents, size), ppl=0.0, key=key)


def _run(measuring: Measuring, command: Command, log: Path, tell: Tell) -> str:
    lines: list[str] = []
    minutes, total = measuring.job.settings.minutes, ""

    def on_line(line: str) -> None:
        nonlocal total
        lines.append(line)
        if chunks := re.search(r"over (\d+) chunks", line):
            total = chunks[1]
        if now := perplexity.progress_of(line, total):
            tell(now)

    tell(f"computing, for at most {minutes} minutes")
    bounds, folder = limits.limits(measuring.run.pinned.context.settings), measuring.folder
    command = sandbox.around(msgspec.structs.replace(command, cwd=str(folder)), bounds, write=(folder,))
    try:
        process.stream(command, log, on_line, limit=minutes * 60.0)
    except CommandFailed as error:
        cause, hint = perplexity.explain(error)
        raise error.retold(diagnose.pointed(f"{cause}{error.message}", error.tail, error.code), hint, log) from error
    return "\n".join(lines)


def _write(measuring: Measuring, rows: Mapping[str, Measure]) -> Outcome:
    """Write what is known by now; "current" when that changes nothing."""
    job, pinned = measuring.job, measuring.run.pinned
    base, *others = (rows.get(quality_report.row_key(pinned, job, build)) for build in (job.base, *job.compared))
    assert base is not None
    report = quality_report.Report(
        made_by=quality_report.MAKER,
        format=1,
        model=job.base.output.model.name,
        tag=pinned.tag,
        text=job.text.name,
        text_sha256=pinned.store.sha256(job.text),
        command=perplexity.command(Path(perplexity.TOOL), Path("{model}"), job.settings, Path("{text}")).argv,
        unquantized=base,
        types=tuple(filter(None, others)),
    )
    text = msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"
    changed = text_of(job.path) != text
    if changed:
        write_atomically(job.path, text)
    if report.types and (changed or not job.plot.exists()):
        points = [(row.type, row.bits, row.kld or 0.0) for row in report.types]
        if drawn := plot.svg(f"{report.model}: what quantizing has cost", points):
            write_atomically(job.plot, drawn)
            return DONE
        job.plot.unlink(missing_ok=True)  # it would show other numbers
    return DONE if changed else CURRENT


def _finish(measuring: Measuring, rows: Mapping[str, Measure], tell: Tell) -> Outcome:
    outcome = _write(measuring, rows)
    if not measuring.job.plot.exists():
        tell(f"{NOTE}{plot.ABSENT}")
    return outcome
