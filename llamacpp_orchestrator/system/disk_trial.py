"""What a disk refuses: programs and libraries that may not run there, links and locks that it has not; tried with small files."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.disk import existing

ELSEWHERE = "choose a folder on another disk for the cache (ORCHESTRATE_CACHE_DIR)"
PREFIX = ".orchestrate-trial-"
LOCK_SECONDS, BUSY_SECONDS, BUSY_TURNS = 5.0, 0.1, 5
REFUSED = (errno.EACCES, errno.EPERM)


class Refusal(msgspec.Struct, frozen=True):
    """One thing that a disk does not do: its cause in one word, and what that means."""

    cause: str
    said: str


def check(folder: Path, links: bool = False) -> None:
    """Raise OrchestrateError where no program can run from a folder's disk, or it has not the `links` of an environment."""
    if refusals := tried(folder, programs=True, links=links):
        raise OrchestrateError(refusals[0].said, ELSEWHERE)


def tried(folder: Path, *, programs: bool = False, links: bool = False, locks: bool = False) -> list[Refusal]:
    """What the disk of a folder refuses, which need not be there yet; OSError where not even a small file can be written."""
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=existing(folder)))
    disk = kind(scratch)
    what = f"{folder}: its disk{f' ({disk})' if disk else ''}"
    try:
        file = scratch / "file"
        file.write_bytes(b"\0" * 8192)
        os.replace(file, scratch / "renamed")
        refusals = [_unlocked(scratch / "lock", what)] if locks else []
        refusals += [_unlinked(scratch / "link", what)] if links and os.name != "nt" else []
        refusals += [_unmapped(scratch / "renamed", what) or _not_started(scratch, what)] if programs else []
        return [refusal for refusal in refusals if refusal]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def kind(folder: Path) -> str:
    """The kind of disk that a folder lies on, as the system calls it; "" where it does not tell."""
    import psutil

    with contextlib.suppress(OSError):
        path = os.path.normcase(folder.resolve())
        mounts = [(os.path.normcase(part.mountpoint), part.fstype) for part in psutil.disk_partitions(all=True)]
        around = [mount for mount in mounts if path == mount[0] or path.startswith(mount[0].rstrip(os.sep) + os.sep)]
        return max(around, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return ""


def words(error: OSError) -> str:
    """What the system says of a failure."""
    return (error.strerror or str(error)).lower()


def _unlocked(file: Path, what: str) -> Refusal | None:
    from filelock import FileLock
    from filelock import Timeout

    try:
        with FileLock(file, timeout=LOCK_SECONDS):
            return None
    except (NotImplementedError, Timeout):
        return Refusal("locks", f"{what} has no locks, as some network disks")
    except OSError as error:
        return Refusal("locks", f"{what} has no locks, as some network disks ({words(error)})")


def _unlinked(link: Path, what: str) -> Refusal | None:
    """An environment has its Python as a symbolic link; files that cannot be linked hard are copied, so that does not matter."""
    try:
        link.symlink_to("renamed")
    except OSError as error:
        return Refusal("links", f"{what} has no symbolic links, which an environment needs ({words(error)})")
    return None


def _unmapped(file: Path, what: str) -> Refusal | None:
    """Libraries are mapped as programs are: a "failed to map segment" of NumPy is this."""
    import mmap

    if sys.platform == "win32":
        return None
    try:
        with file.open("rb") as source, mmap.mmap(source.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC):
            return None
    except OSError as error:
        return _noexec(error, what) if error.errno in REFUSED else None


def _not_started(scratch: Path, what: str) -> Refusal | None:
    program = scratch / ("program.cmd" if os.name == "nt" else "program")
    program.write_text("@exit /b 0\n" if os.name == "nt" else "#!/bin/sh\nexit 0\n", encoding="utf-8")
    program.chmod(0o700)
    for _ in range(BUSY_TURNS):
        try:
            process.capture(Command((str(program),), env=clean_env()))
        except CommandFailed as error:
            refusal = error.__cause__
            if isinstance(refusal, OSError) and refusal.errno == errno.ETXTBSY:  # a child that starts beside us holds it still
                time.sleep(BUSY_SECONDS)
                continue
            return _noexec(refusal, what) if isinstance(refusal, OSError) and refusal.errno in REFUSED else None
        return None
    return None


def _noexec(error: OSError, what: str) -> Refusal:
    return Refusal("noexec", f"{what} lets no program or library run (mounted noexec? {words(error)})")
