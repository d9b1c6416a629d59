"""The hub library's cache: paths of a snapshot's files in it, checks of them, and removal of damaged ones."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from llamacpp_orchestrator.models.selection import HubFile
from llamacpp_orchestrator.models.selection import Snapshot
from llamacpp_orchestrator.util.hashing import file_digest
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import link

Sha256 = Callable[[Path], str]  # of a file; what has not changed since it was read last need not be read again


def cache_folder() -> Path:
    """The folder in which the hub's library keeps its models; shared with everything else on this machine."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named or Path(home) / "hub").expanduser()


def repository(snapshot: Snapshot) -> Path:
    """The folder of a snapshot's repository."""
    return cache_folder() / f"models--{snapshot.source.replace('/', '--')}"


def cached(snapshot: Snapshot, file: HubFile) -> Path:
    """The path that a file of a snapshot has, or would have, in the hub's cache."""
    return repository(snapshot) / "snapshots" / snapshot.commit / file.path


def _blob(snapshot: Snapshot, file: HubFile) -> Path:
    return repository(snapshot) / "blobs" / (file.sha256 or file.oid)


def missing(snapshot: Snapshot, sha256: Sha256 | None = None) -> tuple[HubFile, ...]:
    """The files of a snapshot that are not in the hub's cache; with `sha256` also those that are damaged there."""
    check = functools.partial(sound, sha256=sha256) if sha256 else whole
    return tuple(file for file in snapshot.files if not check(cached(snapshot, file), file))


def whole(path: Path, file: HubFile) -> bool:
    """Tell whether a file is there with all its bytes, as far as its size tells."""
    return path.is_file() and path.stat().st_size == file.size


def sound(path: Path, file: HubFile, sha256: Sha256) -> bool:
    """Tell whether a file is there and has the bytes that are expected; `sha256` may know it already."""
    try:
        return whole(path, file) and (sha256(path) == file.sha256 if file.sha256 else digest_of(path, file) == file.oid)
    except FileNotFoundError:
        return False  # another takes it away just now


def forget(snapshot: Snapshot, file: HubFile) -> None:
    """Let the library take a file for absent: it takes a blob of any size for whole, so that must go with the link to it."""
    path, blob = cached(snapshot, file), _blob(snapshot, file)
    target, homes = path.resolve(), {cache_folder().resolve(), repository(snapshot).resolve()}
    # Where the user has put a link to a file elsewhere, only the link is the cache's.
    for entry in (*([target] if homes.intersection(target.parents) else []), blob, path):
        entry.unlink(missing_ok=True)


def sweep(snapshot: Snapshot, file: HubFile) -> None:
    """Remove what killed runs have left of a file that is whole now, where it may: nobody will go on with these parts."""
    blob = _blob(snapshot, file)
    with contextlib.suppress(OSError):  # a cache that others share with us, and do not let us write to
        for part in blob.parent.glob(f"{blob.name}.*incomplete"):
            part.unlink(missing_ok=True)


def place(snapshot: Snapshot, file: HubFile, origin: Path) -> None:
    """Put a checked file into the hub's cache as the library would: a blob by its digest, and a link in the snapshot."""
    path, blob = cached(snapshot, file), _blob(snapshot, file)
    link(origin, blob)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        link(blob, path)  # no symbolic links on this disk, or not for this user


def digest_of(path: Path, file: HubFile) -> str:
    """The digest of a file in the kind that its record has: sha256, or the sha1 that git gives a blob."""
    if file.sha256:
        return file_sha256(path)
    return file_digest(path, hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False))
