"""Whether there is anything to do at all, by the job, its lock and the receipts alone: a run of a finished job ends here."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llamacpp_orchestrator.commands import summary
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter


def result(works: Sequence[Work], options: Options, report: Reporter) -> Result | None:
    """What a run of finished jobs comes to; None when something must be done or looked at more closely.

    Raises LockError for a damaged lock, IntegrityError for a folder that is not what was locked.
    """
    began = time.monotonic()
    found = [finished(work, options) for work in works]
    if not all(found):
        return None
    results = []
    for made in found:
        events = [Event(f"{pipeline_build.verb(build)} {build.name}", "current") for build in made]
        for event in events:
            report(event)
        results.append(summary.result(began, events, [], made))
    return summary.together(results)


def finished(work: Work, options: Options) -> list[Build]:
    """The outputs of a job that needs nothing; [] for any other."""
    asked_more = options.force or options.upgrade or options.ollama_create or not options.read_lock
    if asked_more or any(model.ollama or model.quality for model in work.job.models):
        return []
    lock = lock_file.read(lock_file.path_for(work.file))
    # Whether a lock vouches for the programs of this machine is told only by looking at the machine.
    vouched = lock and not (options.locked and lock.assets)
    if lock is None or not vouched or diff.stale_reasons(work.job, lock):
        return []
    local_folders.drift(work, lock)
    made = pipeline_build.builds(work, lock)
    done = all(build.current and not build.output.temporary for build in made) and not pipeline_build.unneeded(work, made)
    return made if done else []
