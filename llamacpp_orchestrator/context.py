"""A job at work: what was asked, on which machine, and how to go about it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.system.command import ours
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.store import Store


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """One job on this machine: what was asked, relative to which file, with which settings and which cache.

    `folders` stand for what the job names, by its texts, where that lies elsewhere: in a bundle, or on a cluster's worker. Out of
    a bundle come `archives`, the only ones that may be chosen. Where the job's output is an `address`, the job at work has a
    folder of the cache in its place, the mirror of that address.
    """

    job: Job
    file: Path
    settings: Settings
    store: Store
    folders: dict[str, Path] = {}
    archives: frozenset[str] | None = None
    address: str = ""

    def folder(self, text: str) -> Path:
        """A folder or file as the job names it."""
        return self.folders.get(text) or spec.folder(text, self.file.parent)

    def named(self, path: Path) -> str:
        """A path of an output as a result names it: where it stays."""
        mirror = self.folder(self.job.output)
        return storage_address.join(self.address, path.relative_to(mirror).as_posix()) if self.address else str(path)

    def command(self, name: str, *options: str) -> str:
        """A command about this job, for a hint: as one types it in the current folder."""
        return ours(name, self.file, *options)

    def online(self, what: str) -> None:
        """Raise NetworkError if the network would have to be asked and may not."""
        if self.settings.offline:
            raise NetworkError(f"--offline: {what} is not on this machine", "run the same command once without --offline")


def at_work(job: Job, file: Path, settings: Settings) -> Context:
    """A job on this machine; `file` is where it lies, or would lie."""
    store, address = Store(settings.cache), job.output.rstrip("/") if storage_address.is_address(job.output) else ""
    if address:
        mirror = store.entry("outputs", storage_address.key(address))
        job = msgspec.structs.replace(job, output=str(mirror.absolute()))
    return Context(job=job, file=file, settings=settings, store=store, address=address)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to go about a job: the shared options of the commands.

    With `publish` its outputs are sent to the hub; `create` makes repositories, `yes` sends what others may not want sent. Of the
    outputs `only` those of these names are made; the workers of `scheduler` make them, where one is named, `workers_per_node`
    tasks at a time on one machine, 0 for any number.
    """

    locked: bool = False
    force: bool = False
    keep_going: bool = False
    upgrade: str = ""
    only: tuple[str, ...] = ()
    jobs: int = 0
    read_lock: bool = True
    write_lock: bool = True
    downloads: bool = True
    ollama_create: bool = False
    publish: bool = False
    create: bool = False
    yes: bool = False
    scheduler: str = ""
    workers_per_node: int = 0
