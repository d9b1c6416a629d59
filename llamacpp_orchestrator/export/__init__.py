"""What becomes of finished outputs, by the key of a model that asks for it: each is a module with the functions of `Export`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol
from typing import cast

from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.results import PlannedStep
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Perform
from llamacpp_orchestrator.system.scheduler import Step

if TYPE_CHECKING:
    from llamacpp_orchestrator.lock.pinned_job import PinnedJob
    from llamacpp_orchestrator.pipeline.build import Build
    from llamacpp_orchestrator.pipeline.job_run import JobRun
    from llamacpp_orchestrator.system.disk import Need

KEYS = ("ollama", "quality", "publish")  # in the order in which they are made; each is a field of `results.Result`, too
CarryOut = Callable[[list[Step], Perform, int], list[Event]]  # runs steps, so many heavy ones at a time, 0 for as many as fit


class Export(Protocol):
    """One kind of thing that is made of finished outputs; its items are records of its own."""

    KEY: str

    def find(self, pinned: PinnedJob, builds: Iterable[Build]) -> list[Any]:
        """What a job asks for, as items."""

    def check(self, items: Iterable[Any], force: bool) -> None:
        """Raise JobError for what is in the way."""

    def needs(self, pinned: PinnedJob, items: Iterable[Any], force: bool) -> tuple[Need, ...]:
        """What is written to the disk meanwhile."""

    def reads(self, pinned: PinnedJob, items: Iterable[Any], options: Options) -> Iterable[Build]:
        """The outputs whose bytes it needs here, where these lie at an address."""

    def writes(self, items: Iterable[Any]) -> Iterable[Path]:
        """The files that it makes beside the outputs."""

    def planned(self, pinned: PinnedJob, items: Iterable[Any], current: frozenset[Path], force: bool) -> Iterable[PlannedStep]:
        """The steps that a run would take, where the outputs in `current` are up to date."""

    def export(self, run: JobRun, items: Iterable[Any], options: Options, carry_out: CarryOut) -> list[Event]:
        """Make it of those outputs that are there."""

    def results(self, pinned: PinnedJob, items: Iterable[Any], events: Iterable[Event]) -> tuple[Any, ...]:
        """What a run says of it, whose steps came to some events: records with `lines`."""


def keys(job: Job, publish: bool = False) -> list[str]:
    """What a job asks to be made of its outputs; they are sent only where that is asked for, too."""
    return [key for key in KEYS if (publish or key != "publish") and any(getattr(model, key) for model in job.models)]


def wanted(job: Job, publish: bool = False) -> list[Export]:
    """The modules that make of a job's outputs what it asks for."""
    return [cast(Export, importlib.import_module(f"{__name__}.{key}")) for key in keys(job, publish)]


def may_write(path: Path, ours: bool, force: bool) -> None:
    """Raise JobError for a file that is in the way and not ours, unless forced, and for what is no file at all."""
    if path.exists() and not (path.is_file() and (ours or force)):
        way = "move it away, or use --force" if path.is_file() else "move it away"
        raise JobError(f"{path} exists already, and orchestrate did not write it", way)
