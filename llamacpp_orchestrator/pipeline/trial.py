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
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.merge import check as merge_check
from llamacpp_orchestrator.models import view as models_view
from llamacpp_orchestrator.models.selection import HubFile
from llamacpp_orchestrator.models.weight_files import INDEX
from llamacpp_orchestrator.pipeline import adapter_staging
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.pipeline.preflight import subject
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Tell


def builds(stale: Iterable[Build], source: Ingredient, pin: FilesPin) -> list[Build]:
    """One output of each kind that is to be tried: all that need weights which are still to come, and projectors in any case.

    With the weights at hand a conversion tells the same as soon; only that a model has no projector is told before the rest.
    """
    if source.wanted.is_adapter:  # of which there may be hundreds
        return []
    come = not set(lock_resolve.missing(pin)).issubset(pin.small.files)
    converted = [
        build
        for build in stale
        if pipeline_build.is_converted(build) and not build.output.lora and build.needs[0].parts[0] == source
    ]
    return list({build.output.kind: build for build in converted if come or build.output.kind == "mmproj"}.values())


def inspect(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Bring the small files of a model here, with a view of them alone."""
    need = run.fetches[key]
    return Outcome(setup.bring(run.pinned, run.pinned.files(need.wanted).small, need.name, tell))


def check(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Let the script write the vocabulary of a model out of its small files, and raise what would fail with its weights too.

    What may be for want of weights alone, or for want of a vocabulary as in a projector, is left to the conversion.
    """
    source = run.fetches[key]
    pin = run.pinned.files(source.wanted)
    view = run.pinned.view_of(pin.small, source.name)
    for need in (need for need in run.merges.values() if need.parts[0] == source):
        merge_check.check(view, source.wanted.source, adapter_staging.adapters(run.pinned, need))
    for build in builds(run.builds.values(), source, pin):
        with tempfile.TemporaryDirectory() as scratch:
            command = _command(run, build, converter_view.folder(run.pinned, view), Path(scratch))
            try:
                run.converter(command, run.log(f"check {key}"), tell)
            except CommandFailed as error:
                if failures.is_certain(error.code, error.tail):
                    raise _refusal(run, build, view, error) from error
    return DONE


def convert(run: JobRun, build: Build, command: Command, log: Path, tell: Tell) -> int | None:
    """Run upstream's script in its fence, which answers as `Run` does; a failure is told in the terms of the job."""
    try:
        return run.converter(command, log, tell)
    except CommandFailed as error:
        raise _refusal(run, build, build.views[0], error) from error


def _refusal(run: JobRun, build: Build, view: Path, error: CommandFailed) -> Exception:
    seen = subject(run.pinned, build.output.model, view)
    seen = msgspec.structs.replace(seen, mmproj=build.output.kind == "mmproj")
    name = (build.output.lora or build.output.model).name
    return preflight.refusal(seen, f"{run.pinned.context.file.name}: {name}", error)


def _command(run: JobRun, build: Build, view: Path, scratch: Path) -> Command:
    # Without the index: b11434 goes by it to the weights.
    names = [path.relative_to(view).as_posix() for path in sorted(view.rglob("*")) if path.is_file() and path.name != INDEX]
    models_view.make_view((HubFile(path=name, size=0) for name in names), view, scratch / view.name)
    (scratch / "made").mkdir()
    command = commands.vocabulary_command(build.command, scratch / view.name, scratch / "made" / "vocabulary.gguf")
    return converter_view.fenced(run.pinned, build, command, scratch / "made")


ACTIONS = {"inspect": inspect, "check": check}
