"""The actions of the steps that make an output: convert it or quantize it in a folder of its own, and check it there."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.pipeline import adapter_staging
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline import preflight
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline import receipt_words
from llamacpp_orchestrator.pipeline import trial
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.pipeline.placement import MARK
from llamacpp_orchestrator.pipeline.placement import place
from llamacpp_orchestrator.pipeline.placement import prepare
from llamacpp_orchestrator.pipeline.placement import staged
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import limits as system_limits
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.scheduler import CURRENT
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import NOTE
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util import background
from llamacpp_orchestrator.util import disk
from llamacpp_orchestrator.util import tempfiles
from llamacpp_orchestrator.util.cancel import look_for_stop
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import link
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import held
from llamacpp_orchestrator.verify import levels

BESIDES = 512  # bytes that a script may write to what is no file: threads wake each other by eight at a time


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an output once it is made: notes for its receipt, and what reading it meanwhile has found."""

    notes: tuple[str, ...] = ()
    checks: gguf.Checks | None = None


def convert(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Run upstream's script into the stage folder; "current" when another run has just made the same."""
    pinned, build, log = run.pinned, run.builds[key], run.log(f"convert {key}")
    if not prepare(run.locks, build, run.force, tell):
        return CURRENT
    with staged(build):
        scales = adapter_staging.check_adapter(pinned, build)
        notes = (*preflight.notes(pinned, build), *scales.notes)
        for note in notes:
            tell(f"{NOTE}{build.output.path.name}: {note}")
        adapter_staging.stage(pinned, build, scales, log, tell)
        try:
            command = converter_view.command(pinned, build, adapter_staging.command(pinned, build, scales))
            read = _converted(run, build, converter_view.fenced(pinned, build, command, build.stage), tell)
        finally:
            if notes and log.exists():
                with log.open("a", encoding="utf-8") as file:
                    file.writelines(f"{NOTE}{note}\n" for note in notes)
    return Outcome("done", Made(notes=notes, checks=read))


def _converted(run: JobRun, build: Build, command: Command, tell: Tell) -> gguf.Checks | None:
    """Convert, and read the file of a model while it is written; None where it must be read again afterwards."""
    log, draft, written = run.log(f"convert {build.name}"), build.stage / build.output.path.name, threading.Event()
    if build.output.kind != "model" or not warm_worker.can_fork(host.system()):
        trial.convert(run, build, command, log, tell)
        return None
    followed = background.begin(functools.partial(gguf.follow, draft, written))
    background.begin(functools.partial(disk.write_back, draft, written))
    try:
        wrote = trial.convert(run, build, command, log, tell)
    finally:
        written.set()
    checks = followed()
    # As many bytes as it holds went into it, so none of those that were read has been written anew.
    more = wrote - checks.size if wrote and checks else -1
    return checks if 0 <= more <= log.stat().st_size + BESIDES else None


def keep(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Put a merged model into the stage folder, as links where the disk has them: its place in the cache goes."""
    build = run.builds[key]
    if not prepare(run.locks, build, run.force, tell):
        return CURRENT
    with staged(build):
        (merged,) = build.views
        for path in sorted(path for path in merged.rglob("*") if path.is_file()):
            link(path, build.stage / path.relative_to(merged))
    return Outcome("done", Made(notes=preflight.notes(run.pinned, build)))


def quantize_output(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Run llama-quantize into the stage folder; "current" when another run has just made the same. Learns notes."""
    build = run.builds[key]
    if not prepare(run.locks, build, run.force, tell):
        return CURRENT
    with staged(build):
        notes = _quantize(run, build, tell)
    for note in notes:
        tell(f"{NOTE}{key}: {note}")
    return Outcome("done", Made(notes=notes))


def _quantize(run: JobRun, build: Build, tell: Tell) -> tuple[str, ...]:
    assert build.of is not None
    shards = pipeline_build.shards(build.of)
    draft = build.stage / build.output.path.name
    matrix = build.matrix
    if matrix:
        imatrix.lay(matrix, run.pinned.store, build.stage)
    word, tool = matrix.name if matrix else "", run.tool("llama-quantize")
    command = commands.quantize_command(tool, shards[0], draft, build.output.type, build.output.model, len(shards) > 1, word)
    command = sandbox.around(command, system_limits.limits(run.pinned.context.settings), shards, (build.stage,))
    notes = quantize.run(command, run.log(f"quantize {build.name}"), tell)
    return notes + (_kept(run, build, matrix) if matrix else ())


def _kept(run: JobRun, build: Build, matrix: imatrix.Matrix) -> tuple[str, ...]:
    path = build.output.path
    receipt = pipeline_receipt.read(path)
    ours = [item.sha256 for item in receipt.inputs if item.name == matrix.name] if receipt else []
    ours += [file_sha256(path.parent / matrix.name)] if run.force and (path.parent / matrix.name).is_file() else []
    return imatrix.keep(matrix, build.stage, path.parent, ours)


def make_matrix(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Make the matrix that outputs are quantized with, from the same file."""
    build = first_of(run, key)
    assert build.of is not None and build.matrix is not None
    source, limits = pipeline_build.shards(build.of)[0], system_limits.limits(run.pinned.context.settings)
    tool, log = run.tool("llama-imatrix"), run.log(f"imatrix {key}")
    imatrix.make(build.matrix, run.pinned.store, tool, source, log, tell, limits)
    return DONE


def first_of(run: JobRun, origin: str) -> Build:
    """The first output that is quantized from the one of a name with a matrix."""
    return next(build for build in run.builds.values() if build.matrix and build.origin == origin)


def base_of(pinned: PinnedJob, build: Build) -> Output | None:
    """The first file that the job makes of an adapter's base, on which the adapter can be tried."""
    job = msgspec.structs.replace(pinned.context.job, models=(build.output.model,))
    outputs = (output for _, output in layout.placed(job, pinned.context.file.parent))
    return next((output for output in outputs if output.kind == "model" and not output.temporary), None)


def subject(pinned: PinnedJob, build: Build, files: list[Path], log: Path, find: Callable[[str], Path] | None) -> levels.Subject:
    """An output with all that the checks of it need; `find` finds a program of the tag, None where none is to be run."""
    views = build.views or (pinned.view(records.model_need(build.output.model)),)
    base, reference = base_of(pinned, build) if build.output.lora else None, pinned.lock.reference
    return levels.Subject(
        kind=build.output.kind,
        files=tuple(files),
        level=build.output.model.verify,
        args=pipeline_build.passed_on(build.output),
        views=views,
        translated=functools.partial(converter_view.folder, pinned, views[0]),
        of=tuple(pipeline_build.shards(build.of)) if build.of else (),
        base=tuple(pipeline_build.shards(base)) if base else (),
        python=str(pinned.python),
        tree=pinned.tree,
        env=pinned.script_env,
        limits=system_limits.limits(pinned.context.settings),
        remote=build.output.model.trust_remote_code,
        reference=str(pinned.python_of(reference)) if reference else "",
        scratch=files[0].parent,
        log=log,
        find=find,
    )


def verify(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Check what lies in the stage folder, rename it into its final place and write the receipt.

    What fails stays in the stage folder for a look; the next run replaces it.
    """
    build = run.builds[key]
    step = outcomes.get(f"{pipeline_build.verb(build)} {key}")
    if step == CURRENT:
        run.locks.release(build)
        return CURRENT
    with staged(build):
        _verify(run, build, step.value if step and step.value else Made(), tell)
    run.locks.release(build)
    return DONE


def _verify(run: JobRun, build: Build, made: Made, tell: Tell) -> None:
    path, kept = build.output.path, build.output.kind == "merged"
    found = build.stage.rglob("*") if kept else build.stage.glob("*.gguf")
    files = sorted(file for file in found if file.is_file() and file.name != MARK)
    if not files:
        message = f"upstream said that it was done, but wrote no {path.name}"
        raise OrchestrateError(message, "the log holds its output")
    flushed = background.begin(lambda: list(map(disk.flush, files)))  # a quota may be told only now
    verdict, checks = (_whole(files), ()) if kept else _checked(run, build, files, made, tell)
    known = pipeline_receipt.read(path)
    for file in files:
        pipeline_receipt.may_write(path.parent / file.name, known, run.force)
    flushed()
    digests = [one.sha256 for one in checks] or [""] * len(files)
    records = tuple(pipeline_receipt.record(file, build.stage, sha256) for file, sha256 in zip(files, digests, strict=True))
    written = receipt_words.receipt(run.pinned, build, records, (*made.notes, *verdict.notes), verdict.levels)
    pipeline_receipt.write(build.stage / path.name, written)
    run.locks.leave(build)
    place(path, build.stage)


def _whole(files: list[Path]) -> levels.Verdict:
    """Check a merged model by its headers: what its outputs are compared with is this itself."""
    for file in files:
        if file.suffix == ".safetensors":
            safetensors.check_safetensors(file)
    return levels.Verdict(levels=(check_levels.STRUCTURE,))


def _checked(
    run: JobRun, build: Build, files: list[Path], made: Made, tell: Tell
) -> tuple[levels.Verdict, tuple[gguf.Checks, ...]]:
    find = run.tool if pipeline_build.is_loaded(build, run.builds.values()) else None
    try:
        checks, contents = gguf.check_set(files, made.checks), gguf.contents(files)
        target = subject(run.pinned, build, files, tempfiles.renew(run.log(f"verify {build.name}")), find)
        target = msgspec.structs.replace(target, checks=checks, contents=contents, judge=run.judge)
        verdict = levels.check(target, run.converter, tell)
        # What the types are is not said twice: llama-quantize itself may have told of others.
        if not (build.of and any("instead" in note for note in made.notes)):
            types = held.notes(build.output.kind, build.output.type, contents)
            verdict = msgspec.structs.replace(verdict, notes=(*verdict.notes, *types))
    except OrchestrateError as error:
        look_for_stop()  # it failed because we are to end: then nothing is worth a look, and `clean` takes it away
        run.locks.release(build)
        error.hint += f"\nthe file is kept for a look, until the next run: {files[0]}"
        raise
    for note in verdict.notes:
        tell(f"{NOTE}{build.output.path.name}: {note}")
    return verdict, checks


ACTIONS = {"convert": convert, "keep": keep, "quantize": quantize_output, "imatrix": make_matrix, "verify": verify}
