"""Warm interpreters that outlive a run: one for each environment, lent to what tests would else start one for each."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.convert.warm_worker import Warm
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system.command import Command

# Each takes some 300 MB.
MOST = 3
# Each child is given all variables anew, and nothing that is imported before looks at these.
APART = ("PATH", "HOME")
Env = tuple[tuple[str, str], ...]
Key = tuple[str, tuple[int, ...], int, Env]


class Lender:
    """The interpreters of a session, the one used last at the end; called like Warm, it lends one of them."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._kept: dict[Key, Warm] = {}

    def __call__(self, python: str, tree: Path, env: Env, log: Path, scripts: Iterable[Path] = ()) -> Lent:
        given = tuple(scripts)
        return Lent(lambda: self._warm(python, tree, env, given if inside.path("transformers_logits") in given else ()))

    def _warm(self, python: str, tree: Path, env: Env, given: tuple[Path, ...] = ()) -> Warm:
        """The interpreter of an environment and a tree as they are now: one that has been made anew since has another."""
        own = tuple(pair for pair in env if pair[0] not in APART)
        key = (python, identity(Path(python).parents[1]), 0 if given else modules(tree), own)
        with self._lock:
            warm = self._kept.pop(key, None)
            if warm is None:
                for old in [*self._kept][: len(self._kept) + 1 - MOST]:
                    self._kept.pop(old).close()
                scripts = given or [*(tree / script for script in SCRIPTS.values()), inside.path("rendering")]
                warm = Warm(python, tree, env, self._log, scripts)
            self._kept[key] = warm
            return warm

    def close(self) -> None:
        """End all of them."""
        for warm in self._kept.values():
            warm.close()


class Lent:
    """A warm interpreter for one run: at the end of that it goes on, unless something of the run is still at work in it."""

    def __init__(self, find: Callable[[], Warm]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._running: dict[int, Warm] = {}

    def start(self) -> None:
        """Begin to import."""
        self._find().start()

    def load(self, command: Command, log: Path, tell: Callable[[str], None], limit: float = 0.0) -> None:
        """Import in the interpreter itself."""
        self._find().load(command, log, tell, limit)

    def convert(self, command: Command, log: Path, tell: Callable[[str], None]) -> None:
        """Run one script as a child."""
        warm = self._find()
        with self._lock:
            self._running[threading.get_ident()] = warm
        try:
            warm.convert(command, log, tell)
        finally:
            with self._lock:
                del self._running[threading.get_ident()]

    def close(self) -> None:
        """End what the run has left at work, with its interpreter."""
        with self._lock:
            running = [*self._running.values()]
        for warm in running:
            warm.close()


def modules(tree: Path) -> int:
    """What tells a tree from one with other modules, wherever it lies: an interpreter has them loaded."""
    files = [entry for place in ("", "conversion", "gguf-py/gguf") for entry in _sources(tree / place)]
    return hash(tuple(sorted((entry.name, entry.stat().st_size) for entry in files)))


def _sources(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [entry for entry in entries if entry.name.endswith(".py")]
    return []


def identity(venv: Path) -> tuple[int, ...]:
    """What tells an environment from another in its place; () where there is none."""
    try:
        status = (venv / "pyvenv.cfg").stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns
