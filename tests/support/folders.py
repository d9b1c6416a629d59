"""What lies in folders: the sums of files, and what a run must not leave."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

# Names of what is to become something else.
ENDINGS, BEGINNINGS = (".stage", ".part", ".incomplete", ".new"), (".git-",)
# The packages of an environment and what Python compiles: thousands of files, none of them ours.
SKIPPED = ("venv", "bytecode", "builds")


def sums(folder: Path, pattern: str = "*.gguf") -> dict[str, str]:
    """Name → sha256 of the outputs in a folder, or of other files."""
    files = (path for path in sorted(folder.glob(pattern)) if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def names(folder: Path) -> list[str]:
    """The names of all that lies below a folder, which need not be there."""
    return sorted(path.name for path in folder.rglob("*"))


def stages_of(output: Path) -> list[Path]:
    """The folders beside an output in which runs make it."""
    return list(output.parent.glob(f".{_key(output)}.*.stage"))


def former_stage_of(output: Path) -> Path:
    """Such a folder as versions before 2026-11-28 have left it, which a run must know."""
    return output.parent / f".{_key(output)}.stage"


def _key(output: Path) -> str:
    return hashlib.sha256(output.name.encode()).hexdigest()[:12]


def remains(*folders: Path, also: tuple[str, ...] = ()) -> list[Path]:
    """What lies half-made below folders, and what matches one of the patterns besides."""

    def left(path: Path) -> bool:
        return path.name.endswith(ENDINGS) or path.name.startswith(BEGINNINGS) or any(map(path.match, also))

    return sorted({path for folder in folders for path in _walk(folder) if left(path)})


def _walk(place: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(place):
        yield from (Path(folder) / name for name in (*folders, *files))
        folders[:] = [name for name in folders if name not in SKIPPED]
