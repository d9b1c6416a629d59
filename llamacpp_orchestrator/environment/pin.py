"""A Python environment as its pin names it, and the interpreter in it."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import msgspec


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved environment: the interpreter's minor version and every package with its hashes, for all platforms."""

    python: str
    requirements: str

    def digest(self) -> str:
        """The content key of this set, in hex."""
        return _digest(self.python, self.requirements)


@functools.lru_cache(maxsize=8)  # every output and every path into it names it, and it is long
def _digest(python: str, requirements: str) -> str:
    return hashlib.sha256(f"{python}\n{requirements}".encode()).hexdigest()


def python_in(venv: Path) -> Path:
    """The interpreter of a virtual or conda environment, in whichever of the three layouts."""
    layouts = (venv / "bin" / "python", venv / "Scripts" / "python.exe", venv / "python.exe")
    return next((path for path in layouts if path.exists()), layouts[os.name == "nt"])
