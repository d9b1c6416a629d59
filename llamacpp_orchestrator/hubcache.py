"""The hub library's cache: where the files of a snapshot lie in it, whether they are whole, and what must go."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

from llamacpp_orchestrator import download
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.modelfiles import HubFile
from llamacpp_orchestrator.modelfiles import Snapshot
from llamacpp_orchestrator.store import link


def cache_folder() -> Path:
    """Where the hub's library keeps its models; shared with everything else on this machine."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named or Path(home) / "hub").expanduser()


def repository(snapshot: Snapshot) -> Path:
    return cache_folder() / f"models--{snapshot.source.replace('/', '--')}"


def cached(snapshot: Snapshot, file: HubFile) -> Path:
    """Where a file of a snapshot lies, or would lie, in the hub's cache."""
    return repository(snapshot) / "snapshots" / snapshot.commit / file.path


def missing(snapshot: Snapshot) -> tuple[HubFile, ...]:
    """The files of a snapshot that are not in the hub's cache."""
    return tuple(file for file in snapshot.files if not whole(cached(snapshot, file), file))


def whole(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def forget(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def place(snapshot: Snapshot, file: HubFile, origin: Path) -> None:
    """Put a checked file into the hub's cache as the library would: a blob by its digest, and a link in the snapshot."""
    path, blob = cached(snapshot, file), repository(snapshot) / "blobs" / (file.sha256 or file.oid)
    link(origin, blob)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        link(blob, path)  # no symbolic links on this disk, or not for this user


def digest_of(path: Path, file: HubFile) -> str:
    """The digest of a file in the kind that its record has: sha256, or the sha1 that git gives a blob."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            if download.STOP.is_set():
                raise Stopped(signal.SIGINT)
            digest.update(chunk)
    return digest.hexdigest()
