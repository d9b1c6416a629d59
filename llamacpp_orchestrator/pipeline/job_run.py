"""One run of a pinned job: where its steps make things, and with what."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.placement import Locks
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.system.scheduler import log_of


class JobRun(msgspec.Struct, frozen=True, kw_only=True):
    """The record that the actions of a run take; the key of a step is a key of `builds`, `fetches` or `merges`.

    `builds` are outputs by name; `fetches` are sets of files to bring here, `merges` models to merge; `converter` runs a script
    in the environment, `judge` in the one of what is compared with, `importer` the one that tries imports; with `force` files
    that are not ours may be overwritten; `jobs` compilers run at a time, 0 for as many as fit; `memory` is how many bytes all
    that runs at a time may take.
    """

    pinned: PinnedJob
    logs: Path
    converter: Run
    judge: Run | None = None
    importer: Callable[..., None] = process.stream  # takes a `limit` of seconds besides
    locks: Locks
    builds: Mapping[str, Build] = {}
    fetches: Mapping[str, Ingredient] = {}
    merges: Mapping[str, Ingredient] = {}
    force: bool = False
    jobs: int = 0
    memory: int = 0

    def log(self, step: str) -> Path:
        """The log file of the step of a name."""
        return log_of(step, self.logs)

    def tool(self, name: str) -> Path:
        """A program of the tag by name, once they are here."""
        return binaries.tool(self.pinned, name)
