"""Get everything ready that does not depend on a model."""

from __future__ import annotations

import time

from llamacpp_orchestrator.commands import summary
from llamacpp_orchestrator.commands.execution import carry_out
from llamacpp_orchestrator.commands.execution import log_folder
from llamacpp_orchestrator.commands.execution import step_errors
from llamacpp_orchestrator.commands.lock import settle
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.pipeline import setup as pipeline_setup
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step


def setup(work: Work, options: Options, report: Reporter) -> Result:
    """Get everything ready that does not depend on a model: tree, environment, release binaries."""
    began = time.monotonic()
    lock, events, errors = settle(work, options, report, binaries=True)
    if lock:
        log = log_folder(work) / "environment.log"
        made = [Step(name="environment", action=pipeline_setup.environment_action(work, lock, log), log=log)]
        if lock.reference:
            made.append(pipeline_setup.reference_step(work, lock.reference, log_folder(work) / "reference.log"))
        if not any(event.step == "source" for event in events):
            made.append(Step(name="source", action=pipeline_setup.source_action(work, lock)))
        if work.job.binaries.backend != "none":
            made.append(pipeline_setup.binaries_step(work, lock, log_folder(work) / "binaries.log", options.jobs))
        done = carry_out(made, options, report)
        events, errors = events + done, step_errors(done)
    return summary.result(began, events, errors, [])
