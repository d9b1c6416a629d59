"""Jobs beside each other: no two may pin themselves in one lock file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.lock import file as lock_file

ENDINGS = (".yaml", ".yml")


def check(contexts: Sequence[Context]) -> None:
    """Raise JobError where of jobs that run one after the other a later one would pin itself in an earlier one's lock."""
    files = dict[str, Path]()
    for context in contexts:
        other = files.setdefault(_same(lock_file.path_for(context.file)), context.file)
        if _same(other) != _same(context.file):
            raise _shared_lock(context.file, other)


def check_lock(file: Path) -> None:
    """Raise JobError where the lock of a job, which is about to change, is that of another job too."""
    for ending in ENDINGS:
        twin = file.with_suffix(ending)
        if twin.name.casefold() != file.name.casefold() and twin.is_file():
            raise _shared_lock(file, twin)


def _shared_lock(file: Path, other: Path) -> JobError:
    message = f"{file.name} and {other.name} would share one lock, {lock_file.path_for(file).name}"
    return JobError(message, "rename one of them, so that they differ before the dot")


def _same(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()
