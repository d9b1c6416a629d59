"""What one worker of a session has made, the others only copy; of an environment, with what Python has compiled of it, links.

A test may take files of an environment away, or put others in their place, but change none: those of uv are links as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import TypeVar

from filelock import FileLock

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.util.store import beside

T = TypeVar("T")
Build = Callable[..., str]
Copy = Callable[[str, str], object]


def once(kept: Path, parts: Mapping[str, Path], make: Callable[[], T], copy: Copy = shutil.copy2) -> T | None:
    """What `make` returns, which makes some files and folders, kept by name; None where they were kept, and are there again."""
    kept.parent.mkdir(exist_ok=True)
    with FileLock(kept.with_name(f"{kept.name}.lock"), thread_local=False):
        if kept.exists():
            for name, place in parts.items():
                spread(kept / name, place, copy)
            return None
        made = make()
        draft = kept.with_name(f"{kept.name}.draft")
        for name, place in parts.items():
            spread(place, draft / name, copy)
        draft.rename(kept)
        return made


def spread(source: Path, dest: Path, copy: Copy) -> None:
    """Put a file, or all of a folder, into another place too; nothing where there is nothing."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, dest, symlinks=True, copy_function=copy, dirs_exist_ok=True)
    elif source.exists():
        copy(str(source), str(dest))


def link(source: str, dest: str) -> None:
    """Let a file lie in another place too; what lies there already stays."""
    with contextlib.suppress(FileExistsError):
        os.link(source, dest)


def sharing(build: Build, cache: Path, shared: Path) -> Build:
    """The same as `build`, which begins (context, pin, ...), for the cache of a session; another cache gets one of its own."""

    def build_environment(context: Context, pin: EnvironmentPin, *rest: Any) -> str:
        key = pin.pin().digest()
        entry = context.store.entry("environments", key)
        if context.store.root != cache or entry.exists():
            return build(context, pin, *rest)
        made = once(shared / "environments" / key, parts(cache, entry), lambda: build(context, pin, *rest), link)
        return made or build(context, pin, *rest)

    return build_environment


def parts(cache: Path, entry: Path) -> dict[str, Path]:
    """What there is of an environment: its entry with its mark, and what Python has compiled, of the cache and of itself."""
    bytecode, standard = cache / "home" / "bytecode", Path(sysconfig.get_path("stdlib"))
    compiled = {
        "cache": bytecode / cache.relative_to(cache.anchor),
        "standard": bytecode / standard.relative_to(standard.anchor),
    }
    return {**compiled, "entry": entry, "mark": beside(entry)}
