"""The fence around a program that reads other people's files, as a value: what it may touch, by its own command line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import Fence
from llamacpp_orchestrator.system.command import Limits
from llamacpp_orchestrator.util.units import size

LAYER = inside.path("sandbox")
SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}(\.\w+)")
STARVED = re.compile(r"MemoryError|[Uu]nable to allocate|not enough memory|[Cc]an(?:'t|not) allocate memory|bad_alloc")
LONGER = "if it needs more, raise the limit: ORCHESTRATE_LIMIT_MINUTES, or `limit_minutes` in config.yaml"
MORE = "if this machine has more, raise the limit: ORCHESTRATE_LIMIT_MEMORY, or `limit_memory` in config.yaml"


def around(command: Command, limits: Limits, read: Iterable[Path] = (), write: Iterable[Path] = ()) -> Command:
    """The same call in a fence: it may read what its arguments name and `read`, and write to `write` alone."""
    paths = dict.fromkeys(str(path) for path in (*_named(command), *read))
    fence = Fence(read=tuple(paths), write=tuple(map(str, write)), memory=limits.memory, seconds=limits.seconds)
    return msgspec.structs.replace(command, fence=fence)


def is_python(command: Command) -> bool:
    """Whether a call is one of a Python, which knows itself where its parts lie."""
    return Path(command.argv[0]).name.startswith("python")


def laid(command: Command, system: str) -> tuple[str, ...]:
    """The words that really start a call: where there is a fence, another program puts it up first."""
    if command.fence is None or system != "linux":
        return command.argv
    python = command.argv[0] if is_python(command) else sys.executable
    return (python, "-I", str(LAYER), msgspec.json.encode(command.fence).decode(), *command.argv)


def starved(words: str, memory: int) -> tuple[str, str]:
    """What a program means that ended for want of memory in a fence with a limit, and what to do; nothing for other ends."""
    if not memory or not STARVED.search(words):
        return "", ""
    return f"it wanted more than the {size(memory)} of memory that one step may take", MORE


def said(landlock: int, seccomp: bool) -> str:
    """What kernel and processor have for a fence, in words."""
    files = f"its own folders only (Landlock {landlock})" if landlock else "all that you may (this kernel has no Landlock)"
    net = "no network (seccomp)" if seccomp else "no TCP (Landlock)" if landlock >= 4 else "the network, if it asked for it"
    return f"a converter sees {files}, {net}, none of your tokens"


def _named(command: Command) -> Iterator[Path]:
    """The paths that a call cannot do without: its program's folder, a script's, and what is named in full; parts bring all."""
    if not is_python(command):
        tool = Path(command.argv[0])
        yield from (tool.parent, tool.resolve().parent)
    for folder in dict(command.env).get("LD_LIBRARY_PATH", "").split(os.pathsep):
        yield from [Path(folder)] if folder else []
    if home := dict(command.env).get("HF_HOME"):
        # Versions of transformers from 2024 read a file there while they are imported, if they have written it before.
        yield Path(home) / "hub"
    for word in command.argv[1:]:
        path = Path(word.partition("=")[2] if word.startswith("-") else word)
        if not path.is_absolute():
            continue
        if part := SHARD.fullmatch(path.name):
            yield from sorted(path.parent.glob(f"{part[1]}-*-of-*{part[2]}"))
        yield path.parent if path.suffix == ".py" else path
