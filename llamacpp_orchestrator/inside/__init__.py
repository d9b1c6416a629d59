"""Scripts that the environment's own Python runs, with the packages that lie there; nothing of ours imports them."""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> Path:
    """The file of a script, by its name without an ending."""
    return Path(__file__).with_name(f"{name}.py")
