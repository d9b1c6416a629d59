"""From options to a run: a voice, an end in good order, the answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from typing import Any

import click

from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.errors import first

if TYPE_CHECKING:
    from llamacpp_orchestrator.console import Voice
    from llamacpp_orchestrator.context import Context
    from llamacpp_orchestrator.context import Options
    from llamacpp_orchestrator.last_result import Question
    from llamacpp_orchestrator.results import Result
    from llamacpp_orchestrator.system.scheduler import Reporter


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
    spoken = {name.lstrip("-").replace("-", "_") for names in cli_options.SPEAKING for name in names}
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

    chosen = cli_options.options(flags, kept)
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
