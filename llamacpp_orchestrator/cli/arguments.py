"""The words of a command line: files that must be there or not, job files, addresses; and what a shell completes them to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from typing import Any

import click

from llamacpp_orchestrator.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem


class Place(click.Path):
    """A path in the words of pathlib, which is loaded once there is one: a help does without."""

    def coerce_path_result(self, value: Any) -> Any:
        """The path that was typed."""
        from pathlib import Path

        return Path(os.fsdecode(value))


def places(context: click.Context, option: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """Files and folders that are there, and addresses, about which no disk is asked."""
    from llamacpp_orchestrator.storage import address

    there = click.Path(exists=True)
    return tuple(word if address.is_address(word) else str(there.convert(word, option, context)) for word in words)


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


FILE = Place(readable=False)  # what cannot be read is told where it is read
THERE = Place(exists=True)
WORD = click.Path(readable=False)  # as it was typed
JOB = click.argument("job", required=False, callback=only_job, type=FILE, shell_complete=complete_job)
