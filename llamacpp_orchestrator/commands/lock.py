"""Resolve what a job does not pin yet, and write the lock."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llamacpp_orchestrator.commands.execution import carry_out
from llamacpp_orchestrator.commands.execution import quietly
from llamacpp_orchestrator.commands.execution import step_errors
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import first
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import neighbours
from llamacpp_orchestrator.lock import pairs
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.resolve import Resolution
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import performing


def settle(
    context: Context, options: Options, report: Reporter, binaries: bool = False
) -> tuple[Lock | None, list[Event], list[OrchestrateError]]:
    """The lock that says what the job asks, written beside it; None with the errors when a part could not be resolved.

    Raises LockError for `--locked` when the lock does not fit.
    """
    path = lock_file.path_for(context.file)
    old = lock_file.read(path) if options.read_lock else None
    stale = diff.stale_reasons(context.job, old)
    stale += lock_resolve.unpinned_reasons(PinnedJob(context, old)) if old and options.locked else []
    if options.locked and options.upgrade:
        raise JobError("--locked and --upgrade exclude each other", "leave one of them out")
    if options.locked and stale:
        raise LockError(
            f"{path.name} does not fit {context.file.name}: {'; '.join(stale)}",
            f"run `{context.command('lock')}` and commit the result",
        )
    if options.write_lock and old and (stale or options.upgrade):
        neighbours.check_lock(context.file)
    if not options.locked:
        local_folders.check(context)
    resolution = Resolution(
        context=context,
        partial=diff.fitting(context.job, old, options.upgrade),
        first_use=options.downloads and not options.locked and not context.settings.offline,
    )
    events = carry_out(
        lock_resolve.steps(resolution, binaries),
        performing(lock_resolve.ACTIONS, resolution),
        msgspec.structs.replace(options, keep_going=True),
        quietly(report, ("source",)),  # resolving is only the first half of these steps
    )
    errors = step_errors(events)
    if errors:
        return None, events, errors
    lock = lock_resolve.complete(resolution, {event.step: event.outcome for event in events if event.outcome})
    pairs.check(context)
    if options.write_lock:
        changes = (*stale, *diff.moved(old, lock)) if old else ()
        for change in changes or (("nothing has moved: the lock is as it was",) if old and options.upgrade else ()):
            report(Event("lock", "note", change))
        lock_file.write(path, lock)
    return lock, events, []


def write_lock(context: Context, options: Options, report: Reporter) -> Path:
    """Resolve a job and write its lock, nothing else; where it lies. Raises the failures of what could not be resolved."""
    settled(context, msgspec.structs.replace(options, downloads=False), report)
    return lock_file.path_for(context.file)


def settled(context: Context, options: Options, report: Reporter, binaries: bool = False) -> Lock:
    """The lock that says what the job asks; raises the first failure where a part could not be resolved."""
    lock, _, errors = settle(context, options, report, binaries)
    if lock is None:
        raise first(errors)
    return lock
