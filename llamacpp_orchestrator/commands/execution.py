"""Run steps within the limits of the job and its options, and gather what failed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import first
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.scheduler import Bounds
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Perform
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import run as run_steps


def carry_out(
    steps: list[Step],
    perform: Perform,
    options: Options,
    report: Reporter,
    need: Callable[[Step], int] = lambda step: 0,
    memory: int = 0,
) -> list[Event]:
    """Run steps, as many at a time as the options or the processors allow and within `memory` bytes; the last event of each."""
    cores, known = host.resources()
    bounds = Bounds(jobs=options.jobs or (cores if known else 1), memory=memory, keep_going=options.keep_going)
    return run_steps(steps, perform, bounds, report, need, process.stop_all)


def carry_out_export(options: Options, report: Reporter, steps: list[Step], perform: Perform, jobs: int) -> list[Event]:
    """Run the steps of an export, so many heavy ones at a time; 0 for as many as the options or the processors allow."""
    return carry_out(steps, perform, msgspec.structs.replace(options, jobs=jobs or options.jobs), report)


def log_folder(context: Context) -> Path:
    """The folder of a job's logs, in the cache; made where there is none."""
    folder = context.store.folder("logs") / log_place(context).name
    folder.mkdir(exist_ok=True)
    return folder


def log_place(context: Context) -> Path:
    """Where the folder of a job's logs lies, or would lie."""
    key = hashlib.sha256(str(context.file.resolve()).encode()).hexdigest()[:8]
    return context.store.entry("logs", f"{context.file.stem}-{key}")


def step_errors(events: Iterable[Event]) -> list[OrchestrateError]:
    """The errors of the steps that failed; a bug of ours among them is raised as what it is."""
    errors = []
    for error in filter(None, (event.error for event in events)):
        if not isinstance(error, OrchestrateError):
            raise error
        errors.append(error)
    return errors


def complete(steps: list[Step], perform: Perform, options: Options, report: Reporter) -> None:
    """Run steps, and raise the first failure among them."""
    if failed := step_errors(carry_out(steps, perform, options, report)):
        raise first(failed)


def quietly(report: Reporter, told: Collection[str] = ()) -> Reporter:
    """A reporter that ends steps without a word where they went well, but for those that are `told`."""

    def show(event: Event) -> None:
        silent = event.status in ("done", "current") and event.step not in told
        report(msgspec.structs.replace(event, status="ended") if silent else event)

    return show
