"""Folders of the user's own that a job names: what conversion reads of them, and whether that is what was locked."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import adapters
from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import modelfiles
from llamacpp_orchestrator import spec
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
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
    return FilesPin(wanted=wanted, files=found.files, unread=found.unread)


def unproven(work: Work, before: Lock | None, lock: Lock) -> Lock:
    """A lock without the folders that it has and `before` had not, and of which there is no output.

    What is wrong with such a folder is told only when it is converted. Once repaired, it is pinned as it is then.
    """
    known = {pin.wanted for pin in before.models} if before else set()
    for output in (build.output for build in building.builds(work, lock) if build.current):
        known |= {locks.base_wanted(output.model), *([locks.lora_wanted(output.lora)] if output.lora else [])}
    kept = tuple(pin for pin in lock.models if pin.wanted in known or not spec.is_folder(pin.wanted.source))
    return msgspec.structs.replace(lock, models=kept)


def unlock(work: Work, before: Lock | None, lock: Lock) -> None:
    """Take what is `unproven` out of the lock that a failed run has written; what another has written since is left alone."""
    path, left = locks.path_for(work.file), unproven(work, before, lock)
    with contextlib.suppress(OrchestrateError):
        if left != lock and locks.read(path) == lock:
            locks.write(path, left)


def drift(work: Work, lock: Lock) -> None:
    """Raise IntegrityError when a local folder no longer holds the locked content."""
    for wanted, folder in local_folders(work).items():
        now = {file.path: file.sha256 for file in listed(work, wanted).files}
        pinned = {file.path: file.sha256 for file in lock.files(wanted).files}
        for name in sorted(now.keys() | pinned.keys()):
            if now.get(name) != pinned.get(name):
                gone = "a file that is not read any more" if (folder / name).is_file() else "no such file"
                raise IntegrityError(
                    f"{folder / name} has changed since it was locked: "
                    f"locked {pinned.get(name, 'no such file')}, found {now.get(name, gone)}",
                    f"if the change is meant: {work.command('lock', '--upgrade')}",
                )


def check_pairs(work: Work) -> None:
    """Refuse adapters that do not belong to their base, as far as the folders at hand tell."""
    places = local_folders(work)
    for model in work.job.models:
        base = places.get(locks.base_wanted(model))
        for lora in model.loras:
            mine = places.get(locks.lora_wanted(lora))
            if base and mine:
                adapters.check(mine, base, lora.name, model.name)
