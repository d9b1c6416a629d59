"""Whether there is anything to do at all, by the job, its lock and the receipts alone: a run of a finished job ends here."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path

from llamacpp_orchestrator import export
from llamacpp_orchestrator import last_result
from llamacpp_orchestrator.commands import summary
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.last_result import Question
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.models import selection
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Outputs
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system import surroundings
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter


def result(contexts: Sequence[Context], options: Options, report: Reporter, asked: Question | None = None) -> Result | None:
    """What a run of finished jobs comes to, kept for who asks the same; None when something must be done or looked at closely.

    Raises LockError for a damaged lock, IntegrityError for a folder that is not what was locked.
    """
    began = time.monotonic()
    finished_jobs = [(context, outputs) for context in contexts if (outputs := finished(context, options))]
    if len(finished_jobs) < len(contexts):
        return None
    results = []
    for context, outputs in finished_jobs:
        events = [Event(f"{pipeline_build.verb(build)} {build.name}", "current") for build in outputs.builds]
        for event in events:
            report(event)
        results.append(summary.result(began, events, [], outputs, context.named))
    answer = summary.together(results)
    if asked and all(not context.address and str(context.settings.cache) == asked.cache for context in contexts):
        present, others = zip(*map(places, contexts), strict=True)
        last_result.keep(asked, itertools.chain(*present), itertools.chain(*others), answer)
    return answer


def finished(context: Context, options: Options) -> Outputs | None:
    """The outputs of a job that needs nothing; None for any other."""
    closer = options.force or options.upgrade or options.ollama_create or options.publish or not options.read_lock
    if closer or export.keys(context.job):
        return None
    lock = lock_file.read(lock_file.path_for(context.file))
    # Whether a lock vouches for the programs of this machine is told only by looking at the machine.
    vouched = lock and not (options.locked and lock.assets)
    if lock is None or not vouched or diff.stale_reasons(context.job, lock):
        return None
    pinned = PinnedJob(context, lock)
    local_folders.drift(pinned)
    if context.address:
        from llamacpp_orchestrator.remote_outputs import mirror

        mirror.look(context)
    outputs = pipeline_build.outputs(pinned)
    merged = {need for build in outputs.builds for need in build.needs if need.merged}
    # What a killed run has left goes with the next run.
    left = pipeline_build.unneeded(context, outputs) or any(pinned.merged(need).parent.is_dir() for need in merged)
    left = left or (bool(context.address) and _unsent(context, outputs))
    return outputs if not outputs.stale and not left else None


def places(context: Context) -> tuple[list[Path], list[Path]]:
    """All that `finished` looks at for a job that is: what is there, and what may be there."""
    job, base = context.job, context.file.parent
    present, others = [context.file, lock_file.path_for(context.file)], list(settings.files(os.environ))
    others += [Path(os.environ[name]) for name in surroundings.CERTIFICATES if name in os.environ]
    for wanted in records.all_wanted(job):
        folder = context.folder(wanted.source) if wanted.is_folder else base / wanted.source
        (present if wanted.is_folder else others).append(folder)
        if wanted.is_folder:
            present += [folder / name for name in selection.names_in(folder)]
            others += [path for path in folder.iterdir() if path.is_dir()]
    for model in job.models:
        matrix = model.imatrix
        named = (commands.metadata(model.args)[1], matrix and matrix.file, matrix and matrix.text, job.environment.path)
        others += [spec.folder(name, base) for name in named if name]
    for _, output in layout.placed(job, base):
        if output.temporary:
            others.append(pipeline_build.hidden(output).path.parent)
            continue
        receipt = pipeline_receipt.read(output.path)
        present += [pipeline_receipt.receipt_path(output.path)]
        present += [output.path.parent / file.name for file in (receipt.files if receipt else ())]
    return present, others


def _unsent(context: Context, outputs: Outputs) -> bool:
    from llamacpp_orchestrator.remote_outputs import mirror

    return bool(mirror.unsent(context, outputs))
