"""How an output is made: converted or quantized in a folder of its own, checked, and only then put into its place."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from filelock import FileLock
from filelock import Timeout

from llamacpp_orchestrator import admission
from llamacpp_orchestrator import artifact
from llamacpp_orchestrator import aside
from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import calls
from llamacpp_orchestrator import claims
from llamacpp_orchestrator import converter_view
from llamacpp_orchestrator import fence
from llamacpp_orchestrator import held
from llamacpp_orchestrator import imatrix
from llamacpp_orchestrator import levels
from llamacpp_orchestrator import quantize
from llamacpp_orchestrator import receipts
from llamacpp_orchestrator import rescale
from llamacpp_orchestrator import spec
from llamacpp_orchestrator import verify
from llamacpp_orchestrator.archive import look_for_stop
from llamacpp_orchestrator.asking import Run
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.spec import Output
from llamacpp_orchestrator.steps import NOTE
from llamacpp_orchestrator.steps import Action
from llamacpp_orchestrator.steps import Tell
from llamacpp_orchestrator.steps import log_of
from llamacpp_orchestrator.store import file_sha256
from llamacpp_orchestrator.store import remove
from llamacpp_orchestrator.work import Work


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """Where one run makes things: its log folder, its converter, the locks that it holds, and whether it may overwrite.

    `waiting` has for each temporary output what is still to be made of it, `notes` what a receipt is to tell, `hashes` the
    digests of tokenizers; `warm` begins to load what conversions need, where that can be done once for all; `memory` is how
    many bytes all that runs at a time may take.
    """

    work: Work
    lock: Lock
    logs: Path
    converter: Run
    held: dict[Path, FileLock]
    waiting: dict[Path, set[Path]] = {}
    notes: dict[Path, tuple[str, ...]] = {}
    force: bool = False
    hashes: dict[Path, str] = {}
    jobs: int = 0
    warm: Callable[[], None] | None = None
    memory: int = 0

    def log(self, step: str) -> Path:
        """The log file of one step."""
        return log_of(step, self.logs)


def convert_action(bench: Bench, build: Build) -> Action:
    """Run upstream's script into the stage folder; "current" when another run has just made the same."""

    def action(tell: Tell) -> str:
        if not _prepare(bench, build, tell):
            return "current"
        work, lock, log = bench.work, bench.lock, bench.log(f"convert {build.name}")
        asked = bench.log(f"tokenizer {build.name}")
        admission.check_tokenizer(work, lock, build, bench.hashes, bench.converter, asked)
        found = rescale.judge(work, lock, build)
        notes = (*admission.notes(work, lock, build), *found.notes)
        for note in notes:
            tell(f"{NOTE}{build.output.path.name}: {note}")
        rescale.stage(
            work, lock, build, found, lambda command: bench.converter(command, bench.log(f"rescale {build.name}"), tell)
        )
        try:
            command = converter_view.command(work, lock, build, rescale.command(work, lock, build, found))
            bench.converter(_fenced(bench, build, command), log, tell)
        finally:
            if notes and log.exists():
                with log.open("a", encoding="utf-8") as file:
                    file.writelines(f"{NOTE}{note}\n" for note in notes)
        return "done"

    return action


def _fenced(bench: Bench, build: Build, command: Command) -> Command:
    remote = build.output.model.trust_remote_code
    asked = msgspec.structs.replace(command, env=building.converter_env(bench.work))
    places = (build.stage, building.home(bench.work, remote))
    return fence.around(asked, claims.limits(bench.work.settings), write=places)


def quantize_action(bench: Bench, build: Build, tool: Callable[[], Path]) -> Action:
    """Run llama-quantize into the stage folder; "current" when another run has just made the same."""

    def action(tell: Tell) -> str:
        if not _prepare(bench, build, tell):
            return "current"
        assert build.of is not None
        shards = building.shards(build.of)
        draft = build.stage / build.output.path.name
        matrix, args = build.matrix, build.output.model.quantize_args
        if matrix:
            imatrix.lay(matrix, bench.work.store, build.stage)
        word = matrix.name if matrix else ""
        asked = calls.quantize_command(tool(), shards[0], draft, build.output.type, len(shards) > 1, args, word)
        asked = fence.around(asked, claims.limits(bench.work.settings), shards, (build.stage,))
        notes = quantize.run(asked, bench.log(f"quantize {build.name}"), tell)
        notes += _kept(bench, build, matrix) if matrix else ()
        bench.notes[build.output.path] = notes
        for note in bench.notes[build.output.path]:
            tell(f"note: {build.name}: {note}")
        return "done"

    return action


def _kept(bench: Bench, build: Build, matrix: imatrix.Matrix) -> tuple[str, ...]:
    path = build.output.path
    known = artifact.read(path)
    ours = [each.sha256 for each in known.inputs if each.name == matrix.name] if known else []
    ours += [file_sha256(path.parent / matrix.name)] if bench.force and (path.parent / matrix.name).is_file() else []
    return imatrix.keep(matrix, build.stage, path.parent, ours)


def imatrix_action(bench: Bench, build: Build, tool: Callable[[], Path]) -> Action:
    """Make the matrix that an output is quantized with, from the same file."""

    def action(tell: Tell) -> str:
        assert build.of is not None and build.matrix is not None
        log = bench.log(f"imatrix {build.origin}")
        source, limits = building.shards(build.of)[0], claims.limits(bench.work.settings)
        imatrix.make(build.matrix, bench.work.store, tool(), source, log, tell, limits)
        return "done"

    return action


def _prepare(bench: Bench, build: Build, tell: Tell) -> bool:
    path, held = build.output.path, _lock(bench, build)
    try:
        held.acquire(timeout=0)
    except Timeout:
        tell("note: another run is making this file; waiting for it")
        while not held.is_locked:
            look_for_stop()
            with contextlib.suppress(Timeout):
                held.acquire(timeout=0.5)
    bench.held[path] = held
    publish(build)
    if not bench.force and artifact.is_current(artifact.read(path), build.recipe, path.parent):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(build.stage)
        build.stage.mkdir()
    except OSError as error:
        raise OrchestrateError(f"cannot write into {path.parent}: {error.strerror}", "check the folder's rights") from error
    return True


def _lock(bench: Bench, build: Build) -> FileLock:
    key = hashlib.sha256(os.path.normcase(build.output.path.resolve()).encode()).hexdigest()[:32]
    return FileLock(bench.work.store.folder("locks") / f"output-{key}.lock", thread_local=False, is_singleton=False)


def heal(bench: Bench, build: Build) -> None:
    """End what a killed run left half published, so that its files are known as ours."""
    if build.stage.exists():
        with _lock(bench, build):
            publish(build)


def base_of(bench: Bench, build: Build) -> Output | None:
    """The first file that the job makes of an adapter's base, on which the adapter can be tried."""
    model = build.output.model
    made = spec.placed(msgspec.structs.replace(bench.work.job, models=(model,)), bench.work.file.parent)
    return next((output for _, output in made if output.kind == "model" and not output.temporary), None)


def subject(bench: Bench, build: Build, files: list[Path], find: Callable[[str], Path] | None) -> levels.Subject:
    """An output with all that the checks of it need."""
    work, lock = bench.work, bench.lock
    views = [
        building.view(work, lock.files(wanted), name) for wanted, name in build.needs or building.source_of(build.output.model)
    ]
    base = base_of(bench, build) if build.output.lora else None
    return levels.Subject(
        kind=build.output.kind,
        files=tuple(files),
        level=build.output.model.verify,
        args=building.passed_on(build.output),
        views=tuple(views),
        shown=functools.partial(converter_view.folder, work, lock, views[0]) if views else None,
        of=tuple(building.shards(build.of)) if build.of else (),
        base=tuple(building.shards(base)) if base else (),
        python=str(building.python(work, lock)),
        tree=building.tree(work, lock),
        env=building.converter_env(work),
        limits=claims.limits(work.settings),
        remote=build.output.model.trust_remote_code,
        reference=str(building.python_of(work, lock.reference)) if lock.reference else "",
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
            _spare(bench, build)
            return "current"
        files = sorted(build.stage.glob("*.gguf"))
        if not files:
            raise OrchestrateError(
                f"upstream said that it was done, but wrote no {build.output.path.name}", "the log holds its output"
            )
        records = aside.begin(lambda: tuple(map(artifact.record, files)))
        verdict = _checked(bench, build, files, find, tell)
        known = artifact.read(path)
        for file in files:
            artifact.may_write(path.parent / file.name, known, bench.force)
        notes = (*bench.notes.get(path, ()), *verdict.notes)
        written = receipts.receipt(bench.work, bench.lock, build, records(), notes, verdict.levels)
        artifact.write(build.stage / path.name, written)
        publish(build)
        release(bench, build)
        _spare(bench, build)
        return "done"

    return action


def _spare(bench: Bench, build: Build) -> None:
    """Remove the temporary output that this one was made of, once nothing else is to be made of it."""
    path = build.of.path if build.of else build.output.path
    left = bench.waiting.get(path, set())
    left.discard(build.output.path)
    # Two may end at once; only one of them finds it in its place.
    if build.of and not left and bench.waiting.pop(path, None) is not None:
        remove(path.parent)


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
    """The same with what is to be said of the types that an output holds, unless the tool itself has told of others."""
    if any("instead" in note for note in bench.notes.get(build.output.path, ())):
        return verdict
    said = held.notes(build.output.kind, build.output.type, verify.contents(files))
    return msgspec.structs.replace(verdict, notes=(*verdict.notes, *said))


def publish(build: Build) -> None:
    """Rename a checked output into its final place, its receipt last.

    The receipt lies in the stage folder before the first rename: whoever finds it there, after a crash, ends the work.
    """
    path = build.output.path
    receipt = artifact.read(build.stage / path.name)
    if receipt is None:
        return
    known = artifact.read(path)
    for file in receipt.files:
        if (build.stage / file.name).exists():
            os.replace(build.stage / file.name, path.parent / file.name)
    artifact.write(path, receipt)
    for name in {file.name for file in known.files} - {file.name for file in receipt.files} if known else ():
        remove(path.parent / name)
    remove(build.stage)


def release(bench: Bench, build: Build) -> None:
    """Let other runs make this output."""
    if held := bench.held.pop(build.output.path, None):
        held.release()


def clean(bench: Bench, made: list[Build]) -> None:
    """Remove what an interrupted or failed run has left beside its outputs."""
    for build in made:
        if build.output.path in bench.held:
            publish(build)  # a signal between two renames: what was checked and half in its place goes all the way
            remove(build.stage)
            if build.output.temporary and artifact.read(build.output.path) is None:
                remove(build.output.path.parent)
            release(bench, build)
