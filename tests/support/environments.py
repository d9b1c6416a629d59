"""One environment for all workers of a session: what one has built, and Python has compiled of it, the others only link.

A test may take files of an environment away, or put others in their place, but change none: those of uv are links as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.util.store import beside

Build = Callable[..., str]


def sharing(build: Build, cache: Path, shared: Path) -> Build:
    """The same as `build`, which begins (context, pin, ...), for the cache of a session; another cache gets one of its own."""

    def once(context: Context, pin: EnvironmentPin, *rest: Any) -> str:
        key = pin.pin().digest()
        entry = context.store.entry("environments", key)
        if context.store.root != cache or entry.exists():
            return build(context, pin, *rest)
        kept, parts = shared / "environments" / key, places(cache, entry)
        kept.parent.mkdir(exist_ok=True)
        with FileLock(kept.with_name(f"{key}.lock"), thread_local=False):
            if kept.exists():
                for name, place in parts.items():
                    link(kept / name, place)
                return build(context, pin, *rest)
            status = build(context, pin, *rest)
            draft = kept.with_name(f"{key}.draft")
            for name, place in parts.items():
                link(place, draft / name)
            draft.rename(kept)
            return status

    return once


def places(cache: Path, entry: Path) -> dict[str, Path]:
    """What there is of an environment: its entry with its mark, and what Python has compiled of what the cache and it hold."""
    bytecode, standard = cache / "home" / "bytecode", Path(sysconfig.get_path("stdlib"))
    return {
        "compiled": bytecode / cache.relative_to(cache.anchor),
        "standard": bytecode / standard.relative_to(standard.anchor),
        "entry": entry,
        "mark": beside(entry),
    }


def link(source: Path, dest: Path) -> None:
    """Let the files of a folder, or a file, lie in another place too; what lies there already stays."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, dest, symlinks=True, copy_function=_link, dirs_exist_ok=True)
    elif source.exists():
        _link(str(source), str(dest))


def _link(source: str, dest: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.link(source, dest, follow_symlinks=False)
