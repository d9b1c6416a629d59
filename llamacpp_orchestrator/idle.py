"""Whether there is anything to do at all, by the job, its lock and the receipts alone: a run of a finished job ends here."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import folders
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import summary
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.report import Reporter
from llamacpp_orchestrator.report import Result
from llamacpp_orchestrator.steps import Event
from llamacpp_orchestrator.work import Options
from llamacpp_orchestrator.work import Work


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
        events = [Event(f"{building.verb(build)} {build.name}", "current") for build in made]
        for event in events:
            report(event)
        results.append(summary.result(began, events, [], made))
    return summary.together(results)


def finished(work: Work, options: Options) -> list[Build]:
    """The outputs of a job that needs nothing; [] for any other."""
    asked_more = options.force or options.upgrade or options.ollama_create or not options.read_lock
    if asked_more or any(model.ollama or model.quality for model in work.job.models):
        return []
    lock = locks.read(locks.path_for(work.file))
    # Whether a lock vouches for the programs of this machine is told only by looking at the machine.
    vouched = lock and not (options.locked and lock.assets)
    if lock is None or not vouched or locks.stale_reasons(work.job, lock):
        return []
    folders.drift(work, lock)
    made = building.builds(work, lock)
    done = all(build.current and not build.output.temporary for build in made) and not building.unneeded(work, made)
    return made if done else []
