"""Folders of the user's own that a job names: what conversion reads of them, and whether that is what was locked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import modelfiles
from llamacpp_orchestrator import spec
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.lock import FilesPin
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.lock import Wanted
from llamacpp_orchestrator.work import Work


def local_folders(work: Work) -> dict[Wanted, Path]:
    """Where the files lie that come from folders."""
    return {wanted: work.folder(wanted.source) for wanted in locks.all_wanted(work.job) if spec.is_folder(wanted.source)}


def listed(work: Work, wanted: Wanted) -> FilesPin:
    """What conversion reads of a folder, pinned by content; unchanged files are not read again."""
    how: dict[str, Any] = {"kind": wanted.kind, "weights": wanted.weights, "remote_code": wanted.remote_code}
    found = modelfiles.list_folder(work.folder(wanted.source), sha256=work.store.sha256, **how)
    return FilesPin(wanted=wanted, files=found.files)


def drift(work: Work, lock: Lock) -> None:
    """Raise IntegrityError when a local folder no longer holds the locked content."""
    for wanted, folder in local_folders(work).items():
        now = {file.path: file.sha256 for file in listed(work, wanted).files}
        pinned = {file.path: file.sha256 for file in lock.files(wanted).files}
        for name in sorted(now.keys() | pinned.keys()):
            if now.get(name) != pinned.get(name):
                raise IntegrityError(
                    f"{folder / name} has changed since it was locked: "
                    f"locked {pinned.get(name, 'no such file')}, found {now.get(name, 'no such file')}",
                    f"if the change is meant: orchestrate lock {work.file.name} --upgrade",
                )
