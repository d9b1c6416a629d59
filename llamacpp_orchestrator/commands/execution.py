"""Run steps within the limits of the job and its options, and gather what failed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import first
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import run as run_steps


def carry_out(steps: list[Step], options: Options, report: Reporter, memory: int = 0) -> list[Event]:
    """Run steps, as many at a time as the options or the processors allow; answers the last event of each."""
    cores, known = host.resources()
    return run_steps(steps, options.jobs or (cores if known else 1), options.keep_going, report, memory, process.stop_all)


def log_folder(work: Work) -> Path:
    """The folder of a job's logs, in the cache; made where there is none."""
    key = hashlib.sha256(str(work.file.resolve()).encode()).hexdigest()[:8]
    made = work.store.folder("logs") / f"{work.file.stem}-{key}"
    made.mkdir(exist_ok=True)
    return made


def step_errors(events: Iterable[Event]) -> list[OrchestrateError]:
    """The errors of the steps that failed; a bug of ours among them is raised as what it is."""
    found = []
    for error in filter(None, (event.error for event in events)):
        if not isinstance(error, OrchestrateError):
            raise error
        found.append(error)
    return found


def complete(steps: list[Step], options: Options, report: Reporter) -> None:
    """Run steps, and raise the first failure among them."""
    if failed := step_errors(carry_out(steps, options, report)):
        raise first(failed)
