"""The result of the last run with nothing to do, kept: while nothing has changed that it looked at, the next one is the same.

It loads little, for that is all which a run with nothing to do spends its time on.
"""
# Without pathlib, which takes longer to load than all of this.
# ruff: noqa: PTH109, PTH116, PTH118, PTH120, PTH123

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from time import time
from typing import Any

import msgspec

from llamacpp_orchestrator import __version__
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.results import Made
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.results import StepResult

OURS = "ORCHESTRATE_"
# Of the environment all counts by which a job, this machine's settings or their checks may come out differently.
BEGINS = (OURS, "HF_", "HUGGINGFACE_", "HUGGING_", "UV_", "PIP_", "XDG_", "GITHUB_", "GH_", "HOME", "USER")
ENDS = ("_PROXY", "_CERT_FILE", "_CA_BUNDLE", "_CAINFO", "DATA")
RESTED_SECONDS = 2.0  # the coarsest that disks' clocks have: what is younger may change once more and keep its time
NAME = "llamacpp-orchestrator"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of which jobs, by which program in which surroundings, as a digest; `file` is where its result is kept.

    `variables` are the names of those of ours in the environment, `began` is when it was asked (seconds, by the system's clock).
    """

    digest: str
    cache: str
    file: str
    variables: tuple[str, ...]
    began: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A result, the digest of its question, all places that were looked at for it, and the digest of their states."""

    question: str
    places: tuple[str, ...]
    states: str
    steps: tuple[StepResult, ...]
    outputs: tuple[Made, ...]


def question(files: Sequence[str], flags: Mapping[str, Any], environ: Mapping[str, str]) -> Question:
    """The question of a run of some job files with some options."""
    cache = _cache(environ)
    jobs = list(map(os.path.abspath, files))
    names = sorted(name for name in environ if name.upper().startswith(BEGINS) or name.upper().endswith(ENDS))
    said = [f"{name}={environ[name]}" for name in names]
    program = [f"{path} {_state(path)}" for path in _program(os.path.dirname(__file__))]
    parts = [__version__, program, jobs, sorted(flags.items()), said, os.getcwd(), cache]
    return Question(
        digest=_digest(map(str, parts)),
        cache=cache,
        file=os.path.join(cache, "memo", f"run-{_digest(jobs)[:32]}"),
        variables=tuple(name for name in names if name.upper().startswith(OURS)),
        began=time(),
    )


def recall(asked: Question) -> Result | None:
    """The kept result of a question; None where there is none, or where anything has changed since that it was found by."""
    try:
        with open(asked.file, "rb") as file:
            kept = msgspec.json.decode(file.read(), type=Kept)
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    if kept.question != asked.digest or kept.states != _digest(map(_state, kept.places)):
        return None
    return Result(status="ok", seconds=round(time() - asked.began, 3), steps=kept.steps, outputs=kept.outputs)


def keep(asked: Question, present: Iterable[object], others: Iterable[object], result: Result) -> None:
    """Keep the result of a run with nothing to do: of the places that it looked at the first are there, the others may be.

    It is not kept where one of them had not rested before the run began. A variable of ours that was taken out meant nothing,
    which is told on every run: then nothing is kept either.
    """
    from contextlib import suppress
    from pathlib import Path

    from llamacpp_orchestrator.util.store import write_atomically

    needed = set(map(str, present))
    places = tuple(sorted(needed.union(map(str, others))))
    states = _digest(map(_state, places))
    changed = {path: _changed(path) for path in places}
    rested = max(changed.values()) < asked.began - RESTED_SECONDS
    if not (rested and all(map(changed.get, needed)) and all(name in os.environ for name in asked.variables)):
        return
    kept = Kept(question=asked.digest, places=places, states=states, steps=result.steps, outputs=result.outputs)
    with suppress(OrchestrateError, OSError):  # the next run is slower without it
        write_atomically(Path(asked.file), msgspec.json.encode(kept).decode())


def _cache(environ: Mapping[str, str]) -> str:
    """The cache's folder, if config.yaml does not say another."""
    if chosen := environ.get(f"{OURS}CACHE_DIR"):
        return os.path.abspath(os.path.expanduser(chosen))
    if sys.platform == "linux":  # as platformdirs has it, which takes a fifth of the time to load
        return os.path.join(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), NAME)
    import platformdirs

    return platformdirs.user_cache_dir(NAME, appauthor=False)


def _program(folder: str) -> Iterator[str]:
    """Our own sources: who changes them as a developer has the same version."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                yield entry.path
            elif "." not in entry.name and entry.name != "__pycache__" and entry.is_dir():
                yield from _program(entry.path)


def _state(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError as error:
        return str(error.errno)
    # The third time is the system's own: who sets the second back, as copying programs do, moves it.
    return f"{found.st_mode} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _changed(path: str) -> float:
    """When a place has changed last (seconds); 0 where nothing is."""
    try:
        found = os.stat(path)
    except OSError:
        return 0.0
    return max(found.st_mtime, found.st_ctime)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
