"""What the commands share: their options, and how these become a job to work on, a voice and an end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from typing import TYPE_CHECKING
from typing import Any

import click

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.errors import first

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from llamacpp_orchestrator.console import Voice
    from llamacpp_orchestrator.context import Context
    from llamacpp_orchestrator.context import Options
    from llamacpp_orchestrator.job.spec import Job
    from llamacpp_orchestrator.last_result import Question
    from llamacpp_orchestrator.results import Checked
    from llamacpp_orchestrator.results import Result
    from llamacpp_orchestrator.system.scheduler import Reporter
    from llamacpp_orchestrator.system.settings import Settings


class Place(click.Path):
    """A path in the words of pathlib, which is loaded once there is one: a help does without."""

    def coerce_path_result(self, value: Any) -> Any:
        """The path that was typed."""
        from pathlib import Path

        return Path(os.fsdecode(value))


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


def places(context: click.Context, option: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """Files and folders that are there, and addresses, about which no disk is asked."""
    from llamacpp_orchestrator.storage import address

    there = click.Path(exists=True)
    return tuple(word if address.is_address(word) else str(there.convert(word, option, context)) for word in words)


def at_addresses(words: tuple[str, ...], closer: bool) -> tuple[list[Checked], list[Path]]:
    """What lies at those of some words that are addresses, or jobs with one, checked; and the other words as paths."""
    from llamacpp_orchestrator.job import loader
    from llamacpp_orchestrator.storage import address

    checked: list[Checked] = []
    files: list[Path] = []
    for word in words:
        is_job = Path(word).suffix in {".yaml", ".yml"} and not Path(word).stem.endswith(".lock")
        output = loader.load(Path(word), folders=False).output if is_job else word
        if not address.is_address(output):
            files.append(Path(word))
            continue
        if closer:
            raise click.UsageError("--deep and --level are for files on this machine; at an address it is sizes and bytes.")
        from llamacpp_orchestrator.export import readback

        checked += readback.check(output)
    return checked, files


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


def only_job(context: click.Context | None = None, option: click.Parameter | None = None, file: Path | None = None) -> Path:
    """The job that is named, or the only one in the current folder; UsageError where there are several or none."""
    if file is not None:
        return file
    from pathlib import Path

    from llamacpp_orchestrator.job import strangers

    files = strangers.jobs(Path())
    if len(files) == 1:
        click.echo(f"note: no JOB is named; {files[0]} is the only one in this folder", err=True)
        return files[0]
    none = "this folder has none (`orchestrate init` writes one)"
    raise click.UsageError(
        f"Name a JOB: this folder has several, {', '.join(map(str, files))}." if files else f"Name a JOB: {none}."
    )


def jobs(files: Sequence[str]) -> list[Path]:
    """The jobs that are named, or the only one in the current folder."""
    from pathlib import Path

    return [Path(file) for file in files] or [only_job()]


def check_new(file: Path, force: bool, way: str = "choose another name, or use --force") -> None:
    """Raise JobError where a file cannot be written: its folder is not there, or something that may not be replaced is."""
    if file.exists() and not file.is_file():
        raise JobError(f"{file} is a folder, a pipe or a device, where a file is to be written", "choose another name")
    if file.exists() and not force:
        raise JobError(f"{file} exists already", way)
    if not file.absolute().parent.is_dir():
        raise JobError(f"{file.parent} is not a folder", "make it first")


def complete_job(context: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """The job files that a shell may complete a word to, and the folders on the way to them."""
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from llamacpp_orchestrator.job import strangers

    folder = Path(begin if begin.endswith(os.sep) else os.path.dirname(begin) or os.curdir)  # noqa: PTH120 - Path drops "./"
    with suppress(OSError):
        paths = [path for path in sorted(folder.iterdir()) if path.is_dir() or strangers.is_job(path)]
        return [CompletionItem(f"{path}{os.sep if path.is_dir() else ''}") for path in paths if str(path).startswith(begin)]
    return []


def complete_outtype(context: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """The types that a model is converted to."""
    from click.shell_completion import CompletionItem

    from llamacpp_orchestrator.job.tensor_types import OUTTYPES

    names = (*OUTTYPES["model"], "none")
    return [CompletionItem(name) for name in names if name.startswith(begin.lower())]


def complete_quantize(context: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """The types that every tag's llama-quantize knows; a newer one may know more."""
    from click.shell_completion import CompletionItem

    from llamacpp_orchestrator.job import tensor_types

    names = sorted(filter(tensor_types.is_in_every_tag, tensor_types.FILE_TYPES))
    return [CompletionItem(name) for name in names if name.startswith(begin.upper())]


def complete_kind(context: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """The kinds of entries in the cache."""
    from click.shell_completion import CompletionItem

    from llamacpp_orchestrator.util import store

    return [CompletionItem(kind) for kind in store.PRUNED if kind.startswith(begin)]


@contextmanager
def shown(flags: dict[str, Any]) -> Iterator[Reporter]:
    """A voice for what happens, as the options want it, while signals end it in good order."""
    from llamacpp_orchestrator import console

    with ending(), console.reporting(_manner(flags)) as show:
        yield show


@contextmanager
def ending() -> Iterator[None]:
    """Let a signal end a command in good order, with all that it has begun."""
    from llamacpp_orchestrator.system import process

    with process.stoppable():
        try:
            yield
        except Stopped:
            process.stop_all()
            raise


def _manner(flags: dict[str, Any]) -> Voice:
    from llamacpp_orchestrator import console

    quiet, verbose = flags.get("quiet", False), flags.get("verbose", False)
    progress = not flags.get("no_progress", False)
    return console.voice(sys.stderr, os.environ, quiet=quiet, verbose=verbose, progress=progress)


def question(files: Sequence[str], flags: dict[str, Any]) -> Question | None:
    """What is asked of the jobs that are named; how it is told does not count."""
    from llamacpp_orchestrator import last_result

    if not files:
        return None
    spoken = {name.lstrip("-").replace("-", "_") for names in SPEAKING for name in names}
    return last_result.question(files, {name: flags[name] for name in flags.keys() - spoken}, os.environ)


def repeat(asked: Question, flags: dict[str, Any]) -> bool:
    """Tell the result of the last run once more, where that found nothing to do and nothing has changed since."""
    from llamacpp_orchestrator import last_result

    result = last_result.recall(asked)
    if result:
        from llamacpp_orchestrator.system.scheduler import Event

        show = _teller(flags)
        for step in result.steps:
            show(Event(step.name, step.status))
        finish(result, flags)
    return result is not None


def _teller(flags: dict[str, Any]) -> Reporter:
    """How the steps are told of jobs with nothing to do: in lines."""
    from llamacpp_orchestrator import console

    manner = _manner(flags)
    return lambda event: console.plain(manner, event)


def run(contexts: list[Context], flags: dict[str, Any], kept: bool, asked: Question | None = None) -> None:
    """Do whole jobs, and end as they did; of jobs with nothing to do the result is kept for who asks the same."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import up_to_date
    from llamacpp_orchestrator.job import by_option
    from llamacpp_orchestrator.job import loader
    from llamacpp_orchestrator.results import Result

    chosen = options(flags, kept)
    if chosen.scheduler and (flags["jobs"] or flags["memory"]):
        raise click.UsageError("--jobs and --memory are for this machine; with --scheduler each worker has its own.")
    if chosen.workers_per_node and not chosen.scheduler:
        raise click.UsageError("--workers-per-node goes with --scheduler.")
    try:
        if len(contexts) > 1:
            loader.check_together([(context.job, context.file) for context in contexts])
        idle = up_to_date.result(contexts, chosen, _teller(flags), asked)
        result = idle or _worked(contexts, chosen, flags)
    except (OrchestrateError, Stopped) as error:
        if isinstance(error, OrchestrateError) and not kept:
            for failure in (error, *error.others):
                by_option.tell_by_option(failure, contexts[0].file)
        if flags["as_json"]:
            words = [str(error)] if isinstance(error, Stopped) else error.lines()
            failed = Result(status="failed", seconds=0.0, steps=(), outputs=()).document() | {"error": words}
            console.result(failed, (), as_json=True)
        raise
    for failure in result.errors if not kept else ():
        by_option.tell_by_option(failure, contexts[0].file)
    finish(result, flags)


def _worked(contexts: list[Context], chosen: Options, flags: dict[str, Any]) -> Result:
    from llamacpp_orchestrator.commands import run as commands_run

    with shown(flags) as show:
        return commands_run.run_all(contexts, chosen, show)


def finish(result: Result, flags: dict[str, Any]) -> None:
    """Show what came of a run; raises its failures."""
    from llamacpp_orchestrator import console

    console.result(result.document(), result.lines(created=flags.get("ollama_create", False)), flags["as_json"])
    if result.errors:
        raise first(result.errors)
