"""Get everything ready that does not depend on a model."""

from __future__ import annotations

import time
from collections.abc import Iterable

from llamacpp_orchestrator.commands import summary
from llamacpp_orchestrator.commands.execution import carry_out
from llamacpp_orchestrator.commands.execution import log_folder
from llamacpp_orchestrator.commands.execution import step_errors
from llamacpp_orchestrator.commands.lock import settle
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import graph
from llamacpp_orchestrator.pipeline import setup as pipeline_setup
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.pipeline.placement import Locks
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import performing


def setup(context: Context, options: Options, report: Reporter) -> Result:
    """Get everything ready that does not depend on a model: tree, environment, release binaries."""
    began = time.monotonic()
    lock, events, errors = settle(context, options, report, binaries=True)
    if lock:
        run = job_run(PinnedJob(context, lock), options)
        ready = pipeline_setup.steps(run.pinned, run.logs)
        names = ["environment", *(["reference"] if lock.reference else [])]
        names += [] if any(event.step == "source" for event in events) else ["source"]
        names += [] if context.job.binaries.backend == "none" else ["binaries"]
        done = carry_out([ready[name] for name in names], performing(pipeline_setup.ACTIONS, run), options, report)
        events, errors = events + done, step_errors(done)
    return summary.result(began, events, errors)


def job_run(pinned: PinnedJob, options: Options, builds: Iterable[Build] = (), converter: Run = warm_worker.run_alone) -> JobRun:
    """What the actions of a run work with that makes or uses some outputs, by default none."""
    builds = list(builds)
    return JobRun(
        pinned=pinned,
        logs=log_folder(pinned.context),
        converter=converter,
        locks=Locks(pinned.store.folder("locks")),
        builds={build.name: build for build in builds},
        fetches=graph.fetches(pinned, builds),
        merges=graph.merges(builds),
        force=options.force,
        jobs=options.jobs,
        memory=limits.bound(pinned.context.settings),
    )
