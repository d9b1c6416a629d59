"""The actions of the steps that make an output: convert it or quantize it in a folder of its own, and check it there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.pipeline import adapter_staging
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline import preflight
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline import receipt_words
from llamacpp_orchestrator.pipeline import trial
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.publish import Bench
from llamacpp_orchestrator.pipeline.publish import drop_temporary
from llamacpp_orchestrator.pipeline.publish import prepare
from llamacpp_orchestrator.pipeline.publish import publish
from llamacpp_orchestrator.pipeline.publish import release
from llamacpp_orchestrator.system import limits as system_limits
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.scheduler import NOTE
from llamacpp_orchestrator.system.scheduler import Action
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util import background
from llamacpp_orchestrator.util.archive import look_for_stop
from llamacpp_orchestrator.util.store import file_sha256
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import held
from llamacpp_orchestrator.verify import levels


def convert_action(bench: Bench, build: Build) -> Action:
    """Run upstream's script into the stage folder; "current" when another run has just made the same."""

    def action(tell: Tell) -> str:
        if not prepare(bench, build, tell):
            return "current"
        work, lock, log = bench.work, bench.lock, bench.log(f"convert {build.name}")
        found = adapter_staging.judge(work, lock, build)
        notes = (*preflight.notes(work, lock, build), *found.notes)
        for note in notes:
            tell(f"{NOTE}{build.output.path.name}: {note}")
        adapter_staging.stage(
            work, lock, build, found, lambda command: bench.converter(command, bench.log(f"rescale {build.name}"), tell)
        )
        try:
            command = converter_view.command(work, lock, build, adapter_staging.command(work, lock, build, found))
            trial.convert(bench, build, converter_view.fenced(work, build, command, build.stage), log, tell)
        finally:
            if notes and log.exists():
                with log.open("a", encoding="utf-8") as file:
                    file.writelines(f"{NOTE}{note}\n" for note in notes)
        return "done"

    return action


def quantize_action(bench: Bench, build: Build, tool: Callable[[], Path]) -> Action:
    """Run llama-quantize into the stage folder; "current" when another run has just made the same."""

    def action(tell: Tell) -> str:
        if not prepare(bench, build, tell):
            return "current"
        assert build.of is not None
        shards = pipeline_build.shards(build.of)
        draft = build.stage / build.output.path.name
        matrix, args = build.matrix, build.output.model.quantize_args
        if matrix:
            imatrix.lay(matrix, bench.work.store, build.stage)
        word = matrix.name if matrix else ""
        asked = commands.quantize_command(tool(), shards[0], draft, build.output.type, len(shards) > 1, args, word)
        asked = sandbox.around(asked, system_limits.limits(bench.work.settings), shards, (build.stage,))
        notes = quantize.run(asked, bench.log(f"quantize {build.name}"), tell)
        notes += _kept(bench, build, matrix) if matrix else ()
        bench.notes[build.output.path] = notes
        for note in bench.notes[build.output.path]:
            tell(f"note: {build.name}: {note}")
        return "done"

    return action


def _kept(bench: Bench, build: Build, matrix: imatrix.Matrix) -> tuple[str, ...]:
    path = build.output.path
    known = pipeline_receipt.read(path)
    ours = [each.sha256 for each in known.inputs if each.name == matrix.name] if known else []
    ours += [file_sha256(path.parent / matrix.name)] if bench.force and (path.parent / matrix.name).is_file() else []
    return imatrix.keep(matrix, build.stage, path.parent, ours)


def imatrix_action(bench: Bench, build: Build, tool: Callable[[], Path]) -> Action:
    """Make the matrix that an output is quantized with, from the same file."""

    def action(tell: Tell) -> str:
        assert build.of is not None and build.matrix is not None
        log = bench.log(f"imatrix {build.origin}")
        source, limits = pipeline_build.shards(build.of)[0], system_limits.limits(bench.work.settings)
        imatrix.make(build.matrix, bench.work.store, tool(), source, log, tell, limits)
        return "done"

    return action


def base_of(bench: Bench, build: Build) -> Output | None:
    """The first file that the job makes of an adapter's base, on which the adapter can be tried."""
    model = build.output.model
    made = layout.placed(msgspec.structs.replace(bench.work.job, models=(model,)), bench.work.file.parent)
    return next((output for _, output in made if output.kind == "model" and not output.temporary), None)


def subject(bench: Bench, build: Build, files: list[Path], find: Callable[[str], Path] | None) -> levels.Subject:
    """An output with all that the checks of it need."""
    work, lock = bench.work, bench.lock
    views = [
        pipeline_build.view(work, lock.files(wanted), name)
        for wanted, name in build.needs or pipeline_build.source_of(build.output.model)
    ]
    base = base_of(bench, build) if build.output.lora else None
    return levels.Subject(
        kind=build.output.kind,
        files=tuple(files),
        level=build.output.model.verify,
        args=pipeline_build.passed_on(build.output),
        views=tuple(views),
        shown=functools.partial(converter_view.folder, work, lock, views[0]) if views else None,
        of=tuple(pipeline_build.shards(build.of)) if build.of else (),
        base=tuple(pipeline_build.shards(base)) if base else (),
        python=str(pipeline_build.python(work, lock)),
        tree=pipeline_build.tree(work, lock),
        env=pipeline_build.converter_env(work),
        limits=system_limits.limits(work.settings),
        remote=build.output.model.trust_remote_code,
        reference=str(pipeline_build.python_of(work, lock.reference)) if lock.reference else "",
        scratch=files[0].parent,
        log=bench.log(f"verify {build.name}"),
        find=find,
    )


def verify_action(bench: Bench, build: Build, find: Callable[[str], Path] | None = None) -> Action:
    """Check what lies in the stage folder, rename it into its final place and write the receipt.

    What fails stays in the stage folder for a look; the next run replaces it.
    """

    def action(tell: Tell) -> str:
        path = build.output.path
        if not build.stage.exists():
            release(bench, build)
            drop_temporary(bench, build)
            return "current"
        files = sorted(build.stage.glob("*.gguf"))
        if not files:
            raise OrchestrateError(
                f"upstream said that it was done, but wrote no {build.output.path.name}", "the log holds its output"
            )
        records = background.begin(lambda: tuple(map(pipeline_receipt.record, files)))
        verdict = _checked(bench, build, files, find, tell)
        known = pipeline_receipt.read(path)
        for file in files:
            pipeline_receipt.may_write(path.parent / file.name, known, bench.force)
        notes = (*bench.notes.get(path, ()), *verdict.notes)
        written = receipt_words.receipt(bench.work, bench.lock, build, records(), notes, verdict.levels)
        pipeline_receipt.write(build.stage / path.name, written)
        publish(build)
        release(bench, build)
        drop_temporary(bench, build)
        return "done"

    return action


def _checked(bench: Bench, build: Build, files: list[Path], find: Callable[[str], Path] | None, tell: Tell) -> levels.Verdict:
    try:
        verdict = levels.check(subject(bench, build, files, find), bench.converter, tell)
        verdict = _with_types(bench, build, files, verdict)
    except OrchestrateError as error:
        look_for_stop()  # it failed because we are to end: then nothing is worth a look, and `clean` takes it away
        release(bench, build)
        error.hint += f"\nthe file is kept for a look, until the next run: {files[0]}"
        raise
    for note in verdict.notes:
        tell(f"{NOTE}{build.output.path.name}: {note}")
    return verdict


def _with_types(bench: Bench, build: Build, files: list[Path], verdict: levels.Verdict) -> levels.Verdict:
    """A verdict with what is to be said of the types that an output holds, unless the tool itself has told of others."""
    if any("instead" in note for note in bench.notes.get(build.output.path, ())):
        return verdict
    said = held.notes(build.output.kind, build.output.type, gguf.contents(files))
    return msgspec.structs.replace(verdict, notes=(*verdict.notes, *said))
