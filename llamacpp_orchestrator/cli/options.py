"""What the commands share: their options, and how these become a job to work on, a voice and an end."""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any

import click

if TYPE_CHECKING:
    from pathlib import Path

    from llamacpp_orchestrator.context import Context
    from llamacpp_orchestrator.context import Options
    from llamacpp_orchestrator.job.spec import Job
    from llamacpp_orchestrator.system.settings import Settings


def _count(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    from llamacpp_orchestrator.util import units

    return units.count(text, f"--{option.name}") if text is not None else None


# The options that several commands have. A command takes all of its group, and shows those that mean something to it.
WORKING: dict[tuple[str, ...], dict[str, Any]] = {
    ("--locked",): {"is_flag": True, "help": "The lock must exist and fit the job; nothing is resolved anew."},
    ("--offline",): {"is_flag": True, "help": "Ask no server; say what is missing on this machine."},
    ("--force",): {"is_flag": True, "help": "Make everything anew, and overwrite files that are not ours."},
    ("--jobs",): {"callback": _count, "metavar": "N", "help": "At most N conversions at a time."},
    ("--memory",): {"metavar": "SIZE", "help": "At most so much memory at a time, such as 8G; by default what is free."},
    ("--keep-going",): {"is_flag": True, "help": "After a failure, go on with what does not depend on it."},
}
SPEAKING: dict[tuple[str, ...], dict[str, Any]] = {
    ("--json", "as_json"): {"is_flag": True, "help": "One JSON document on stdout."},
    ("--quiet", "-q"): {"is_flag": True, "help": "Say only what fails."},
    ("--verbose", "-v"): {"is_flag": True, "help": "Also say how each step proceeds."},
    ("--no-progress",): {"is_flag": True, "help": "Plain lines, no redrawing."},
}

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def shared(*idle: str) -> Decorator:
    """The options that every command which works on a job has; those that are `idle` in this one are taken, but not shown."""
    return _taking(WORKING | SPEAKING, idle)


def speaking(*idle: str) -> Decorator:
    """The options about output alone, of which the `idle` ones are not shown."""
    return _taking(SPEAKING, idle)


def publishing(command: Callable[..., None]) -> Callable[..., None]:
    """The options of what publishes."""
    sent = click.option("--yes", is_flag=True, help="Send also what is made of gated sources, or under licences that forbid it.")
    made = click.option("--create", is_flag=True, help="Make repositories, and branches, that are not there.")
    return made(sent(command))


def on_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a run on a cluster."""
    place = "Let the workers of a Dask cluster do it: tcp://HOST:8786, or a scheduler file."
    most = "With --scheduler: at most N tasks at a time on one machine."
    command = click.option("--workers-per-node", callback=_count, metavar="N", help=most)(command)
    return click.option("--scheduler", default="", metavar="ADDRESS", help=place)(command)


def _taking(options: dict[tuple[str, ...], dict[str, Any]], idle: tuple[str, ...]) -> Decorator:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for names, how in reversed(options.items()):
            command = click.option(*names, **how, hidden=names[0] in idle)(command)
        return command

    return decorate


def load(file: Path, flags: dict[str, Any], folders: bool = True) -> Context:
    """The job in a file, on this machine, where its `folders` must be."""
    from llamacpp_orchestrator.job import loader

    return context(loader.load(file, folders), file.absolute(), flags)


def context(job: Job, file: Path, flags: dict[str, Any]) -> Context:
    """A job on this machine; `file` is where it lies, or would lie."""
    import msgspec

    from llamacpp_orchestrator.context import at_work
    from llamacpp_orchestrator.util import units

    machine = here(flags)
    if flags.get("memory"):
        machine = msgspec.structs.replace(machine, memory=units.parse(flags["memory"], "--memory"))
    return at_work(job, file, machine)


def here(flags: Mapping[str, Any]) -> Settings:
    """This machine's settings; the environment that libraries and programs will read is put right for them first."""
    import msgspec

    from llamacpp_orchestrator.system import settings
    from llamacpp_orchestrator.system import surroundings
    from llamacpp_orchestrator.util import cancel

    for note in surroundings.settle(os.environ):
        if not flags.get("quiet"):
            click.echo(f"note: {note}", err=True)
    machine = settings.load(os.environ)
    surroundings.share_certificates(os.environ, machine)
    cancel.longest = machine.wait
    return msgspec.structs.replace(machine, offline=flags.get("offline", False))


def options(flags: dict[str, Any], kept: bool = True, upgrade: str = "") -> Options:
    """How to go about a job; one without a file (`kept` false) has no lock beside it."""
    from llamacpp_orchestrator.context import Options

    chosen = {name: flags[name] for name in ("locked", "force", "keep_going")}
    more = {name: flags.get(name, False) for name in ("ollama_create", "publish", "create", "yes")}
    more |= {"scheduler": flags.get("scheduler", ""), "workers_per_node": flags.get("workers_per_node") or 0}
    return Options(**chosen, jobs=flags["jobs"] or 0, read_lock=kept, write_lock=kept, upgrade=upgrade, **more)
