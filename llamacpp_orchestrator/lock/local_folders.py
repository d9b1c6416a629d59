"""Folders of the user's own that a job names: the files that conversion reads of them, now and as locked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.models import nearby
from llamacpp_orchestrator.models import selection


def local_folders(context: Context) -> dict[Wanted, Path]:
    """The folders of those files that do not come from the hub."""
    return {wanted: context.folder(wanted.source) for wanted in records.all_wanted(context.job) if wanted.is_folder}


def listed(context: Context, wanted: Wanted) -> FilesPin:
    """Pin by content the files of a folder that conversion reads; unchanged files are not read again."""
    how: dict[str, Any] = {"kind": wanted.kind, "weights": wanted.weights, "remote_code": wanted.remote_code}
    snapshot = selection.list_folder(context.folder(wanted.source), sha256=context.store.sha256, **how)
    return FilesPin(wanted=wanted, files=snapshot.files, unread=snapshot.unread)


def check(context: Context) -> None:
    """Raise JobError for a folder that is not the one that is meant, IntegrityError for one whose files are not here."""
    for wanted, folder in local_folders(context).items():
        check_one(wanted, folder)


def check_one(wanted: Wanted, folder: Path) -> None:
    """Raise JobError for a folder that is not the one that is meant, IntegrityError for one whose files are not here."""
    nearby.check(folder, "adapter" if wanted.is_adapter else "model", wanted.weights)
    if folder.is_dir():
        selection.check_pointers(folder, kind=wanted.kind, weights=wanted.weights, remote_code=wanted.remote_code)


def drift(pinned: PinnedJob) -> None:
    """Raise IntegrityError when a local folder no longer holds the locked content."""
    for wanted in local_folders(pinned.context):
        drift_of(pinned, wanted)


def drift_of(pinned: PinnedJob, wanted: Wanted) -> None:
    """Raise IntegrityError when one folder no longer holds the locked content."""
    folder = pinned.context.folder(wanted.source)
    now = {file.path: file.sha256 for file in listed(pinned.context, wanted).files}
    locked = {file.path: file.sha256 for file in pinned.files(wanted).files}
    for name in sorted(now.keys() | locked.keys()):
        if now.get(name) != locked.get(name):
            gone = "a file that is not read any more" if (folder / name).is_file() else "no such file"
            raise IntegrityError(
                f"{folder / name} has changed since it was locked: "
                f"locked {locked.get(name, 'no such file')}, found {now.get(name, gone)}",
                f"if the change is meant: {pinned.context.command('lock', '--upgrade')}",
            )
