"""What a run came to, as plain data: its steps, its outputs, its errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import export
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.build import Outputs
from llamacpp_orchestrator.results import Made
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.results import StepResult
from llamacpp_orchestrator.system.scheduler import Event


def result(
    began: float,
    events: list[Event],
    errors: list[OrchestrateError],
    outputs: Outputs | None = None,
    named: Callable[[Path], str] = str,
    **exports: tuple[Any, ...],
) -> Result:
    """What a run came to, as plain data; outputs by what they are `named`, `exports` by their keys."""
    merged: dict[str, Event] = {}
    for event in events:
        seconds = event.seconds + (merged[event.step].seconds if event.step in merged else 0.0)
        merged[event.step] = msgspec.structs.replace(event, seconds=seconds)
    ended = {event.step: event.status for event in merged.values()}
    files: list[Made] = []
    for build in outputs.kept if outputs else ():
        status = "current" if outputs and build.output.path in outputs.current else ended.get(f"verify {build.name}")
        # What was to be sent to an address, and was not, is not where it belongs.
        if status in ("done", "current") and ended.get(f"store {build.name}", status) in ("done", "current"):
            files += _files(build, "built" if status == "done" else status, named)
    return Result(
        status="failed" if errors else "ok",
        seconds=round(time.monotonic() - began, 3),
        steps=tuple(
            StepResult(
                name=event.step, status=event.status, seconds=round(event.seconds, 3), log=str(event.log) if event.log else None
            )
            for event in merged.values()
        ),
        outputs=tuple(files),
        errors=tuple(errors),
        **exports,
    )


def together(results: Sequence[Result]) -> Result:
    """The results of several jobs as one."""
    return Result(
        status="failed" if any(result.errors for result in results) else "ok",
        seconds=round(sum(result.seconds for result in results), 3),
        steps=tuple(step for result in results for step in result.steps),
        outputs=tuple(output for result in results for output in result.outputs),
        errors=tuple(error for result in results for error in result.errors),
        **{key: tuple(item for result in results for item in getattr(result, key)) for key in export.KEYS},
    )


def _files(build: Build, status: str, named: Callable[[Path], str]) -> list[Made]:
    output, receipt = build.output, pipeline_receipt.read(build.output.path)
    source = output.lora.source if output.lora else output.model.source
    return [
        Made(
            path=named(output.path.parent / file.name),
            kind=output.kind,
            type=output.type,
            size=file.size,
            sha256=file.sha256,
            status=status,
            source=source,
        )
        for file in (receipt.files if receipt else ())
    ]
