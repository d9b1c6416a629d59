"""What lies at an address, as it was last seen: noted beside the place where each file of it would lie on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from llamacpp_orchestrator.util.store import write_atomically


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One file there: bytes, its version as the store tells it, and what is known of it.

    `ours` tells that a receipt there vouches for it, or that we are sending it; `sha256` is that of a small file, which is here.
    """

    address: str
    size: int
    version: str
    ours: bool = False
    sha256: str = ""


def note(path: Path) -> Path:
    """Where it is noted what lies at the address for a path."""
    return path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:24]}.stored")


def read(path: Path) -> Stored | None:
    """What lies at the address for a path; None where nothing was seen, as of every path without an address."""
    try:
        return msgspec.json.decode(note(path).read_bytes(), type=Stored)
    except (OSError, msgspec.DecodeError):
        return None


def write(path: Path, stored: Stored | None) -> None:
    """Note what lies there now, None for nothing."""
    if stored is None:
        note(path).unlink(missing_ok=True)
    elif read(path) != stored:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note(path), msgspec.json.encode(stored).decode())
