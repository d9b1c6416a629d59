"""Whether upstream's own script takes a model: asked with the job's arguments on its small files, before its weights come."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.convert import failures
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import view as models_view
from llamacpp_orchestrator.models.selection import HubFile
from llamacpp_orchestrator.models.weight_files import INDEX
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.preflight import subject
from llamacpp_orchestrator.pipeline.publish import Bench
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.scheduler import Action
from llamacpp_orchestrator.system.scheduler import Tell


def small(pin: FilesPin) -> FilesPin:
    """The same files without weights."""
    files = tuple(file for file in pin.files if not file.path.endswith(".safetensors"))
    return msgspec.structs.replace(pin, files=files)


def builds(stale: Iterable[Build], source: tuple[Wanted, str], pin: FilesPin) -> list[Build]:
    """One output of each kind that is to be tried: all that need weights which are still to come, and projectors in any case.

    With the weights at hand a conversion tells the same as soon; only that a model has no projector is told before the rest.
    """
    snapshot = hub.Snapshot(source=pin.wanted.source, commit=pin.commit, files=pin.files)
    come = not spec.is_folder(pin.wanted.source) and not set(hub.missing(snapshot)).issubset(small(pin).files)
    converted = [build for build in stale if not build.of and not build.output.lora and build.needs[0] == source]
    return list({build.output.kind: build for build in converted if come or build.output.kind == "mmproj"}.values())


def convert(bench: Bench, build: Build, command: Command, log: Path, tell: Tell) -> None:
    """Run upstream's script in its fence; a failure is told in the terms of the job."""
    try:
        bench.converter(command, log, tell)
    except CommandFailed as error:
        raise _refusal(bench, build, error) from error


def _refusal(bench: Bench, build: Build, error: CommandFailed) -> Exception:
    pin = bench.lock.files(build.needs[0][0])
    asked = subject(bench.work, bench.lock, build.output.model, pipeline_build.view(bench.work, pin, build.needs[0][1]))
    asked = msgspec.structs.replace(asked, mmproj=build.output.kind == "mmproj")
    name = (build.output.lora or build.output.model).name
    return preflight.refusal(asked, f"{bench.work.file.name}: {name}", error)


def action(bench: Bench, tried: list[Build], pin: FilesPin, log: Path) -> Action:
    """Let the script write the vocabulary of a model out of its small files, and raise what would fail with its weights too.

    What may be for want of weights alone, or for want of a vocabulary as in a projector, is left to the conversion.
    """

    def act(tell: Tell) -> str:
        for build in tried:
            view = pipeline_build.view(bench.work, pin, build.needs[0][1])
            with tempfile.TemporaryDirectory() as scratch:
                command = _command(bench, build, converter_view.folder(bench.work, bench.lock, view), Path(scratch))
                try:
                    bench.converter(command, log, tell)
                except CommandFailed as error:
                    if failures.is_certain(error.code, error.tail):
                        raise _refusal(bench, build, error) from error
        return "done"

    return act


def _command(bench: Bench, build: Build, shown: Path, scratch: Path) -> Command:
    # Without the index: b11434 goes by it to the weights.
    names = [path.relative_to(shown).as_posix() for path in sorted(shown.rglob("*")) if path.is_file() and path.name != INDEX]
    models_view.make_view((HubFile(path=name, size=0) for name in names), shown, scratch / shown.name)
    (scratch / "made").mkdir()
    command = commands.vocabulary_command(build.command, scratch / shown.name, scratch / "made" / "vocabulary.gguf")
    return converter_view.fenced(bench.work, build, command, scratch / "made")
