"""Publish what a job has made, or write what would be published down to look at."""

from __future__ import annotations

import functools
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llamacpp_orchestrator.card import merge as card_merge
from llamacpp_orchestrator.card import text as card_text
from llamacpp_orchestrator.commands import summary
from llamacpp_orchestrator.commands.execution import carry_out_export
from llamacpp_orchestrator.commands.execution import step_errors
from llamacpp_orchestrator.commands.setup import job_run
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.export import may_write
from llamacpp_orchestrator.export import publication
from llamacpp_orchestrator.export import publish
from llamacpp_orchestrator.export.publication import Publication
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.remote_outputs import mirror
from llamacpp_orchestrator.remote_outputs import store
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.store import write_atomically
from llamacpp_orchestrator.util.units import size


class PreviewFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that would be sent; size in bytes."""

    path: str
    size: int
    sha256: str


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What would go to one repository: the files, and where its card was written to look at, "" where it has none."""

    repo: str
    revision: str
    card: str
    files: tuple[PreviewFile, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same as text."""
        listed = [f"{size(file.size):>9}  {file.sha256[:12]}  {file.path}" for file in self.files]
        listed += [f"card     {self.card}"] if self.card else []
        return [f"{self.repo} ({self.revision})", *listed, *(f"note     {note}" for note in self.notes)]


def publish_job(context: Context, options: Options, report: Reporter) -> Result:
    """Send a job's outputs, which must be there and proven, to their repositories."""
    began = time.monotonic()
    with mirror.using(context):
        pinned, items = _publications(context)
        publish.check_job([context])
        publish.check(items, options.force)
        run = job_run(pinned, options, pipeline_build.outputs(pinned).kept)
        events = store.exported(run, publish, items, options, functools.partial(carry_out_export, options, report))
        mirror.free(context, [build.output.path for item in items for build in item.builds])
    errors = step_errors(events)
    return summary.result(began, events, errors, publish=publish.results(pinned, items, events))


def preview(context: Context, options: Options) -> list[Preview]:
    """What would be sent; the cards are written into the job's output folder, as they are without a README to keep."""
    pinned, items = _publications(context)
    return [_preview(pinned, item, card, options.force) for item, card in zip(items, _card_names(items), strict=True)]


def _publications(context: Context) -> tuple[PinnedJob, list[Publication]]:
    """The repositories of a job; JobError where it names none, or where one of their outputs is not there and proven."""
    publish.check_place(context)
    lock = lock_file.read(lock_file.path_for(context.file))
    if lock is None or diff.stale_reasons(context.job, lock):
        why = "has no lock" if lock is None else "has changed since it was locked"
        raise JobError(
            f"{context.file.name} {why}: only what is made and checked is published", f"first: {context.command('run')}"
        )
    pinned = PinnedJob(context, lock)
    local_folders.drift(pinned)
    mirror.look(context)
    items = publish.find(pinned, pipeline_build.outputs(pinned).kept)
    for item in items:
        publication.check(pinned, item)
    return pinned, items


def _card_names(items: Sequence[Publication]) -> list[str]:
    """What each card is called in the output folder: after the repository, with owner and branch where two are called alike."""
    short = [item.id.partition("/")[2] for item in items]
    taken = Counter(map(str.casefold, short))
    names = (
        name if taken[name.casefold()] == 1 else re.sub("[/@]", "-", item.name) for item, name in zip(items, short, strict=True)
    )
    return [f"{name}-card.md" for name in names]


def _preview(pinned: PinnedJob, item: Publication, card: str, force: bool) -> Preview:
    written, sources = "", publication.origins(pinned, item)
    if item.repository.publish.card != "none":
        root = fields.folder(pinned.context.job.output, pinned.context.file.parent)
        path = Path(os.path.normpath(root / card))
        may_write(path, card_merge.SECTION[0] in text_of(path), force)
        write_atomically(path, card_text.text(publication.facts(pinned, item, sources), item.repository.publish.card))
        written = str(path)
    files = (PreviewFile(path=file.path, size=file.size, sha256=file.sha256) for file in publication.files(pinned, item))
    notes = tuple(publish.notes(pinned, sources))
    return Preview(repo=item.id, revision=item.repository.publish.revision, card=written, files=tuple(files), notes=notes)
