"""The only voice: events become live progress or plain lines on stderr, results become text or JSON on stdout."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from typing import Any
from typing import TextIO

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import masked
from llamacpp_orchestrator.system.scheduler import ENDED
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.progress import TaskID

COLOURS = {"done": "32", "current": "2", "failed": "31", "blocked": "33"}
# What a terminal would obey, or show in another order or not at all: names and texts of others must not speak to it.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """How to speak: quiet says only failures, verbose also each turn of the progress, live redraws a terminal."""

    quiet: bool = False
    verbose: bool = False
    live: bool = False
    colour: bool = False


def plain_text(text: str) -> str:
    """A text without logins and with its control characters written out, so that it can be shown on any terminal."""
    return OBEYED.sub(lambda found: ascii(found[0])[1:-1], masked(text))


def voice(stream: TextIO, environ: Iterable[str], *, quiet: bool, verbose: bool, progress: bool) -> Voice:
    """The manner that fits a stream: colours and redrawing only on a terminal that wants them."""
    terminal = stream.isatty()
    return Voice(
        quiet=quiet,
        verbose=verbose,
        live=terminal and progress and not quiet and os.environ.get("TERM") != "dumb",
        colour=terminal and "NO_COLOR" not in environ,
    )


@contextmanager
def reporting(manner: Voice) -> Iterator[Reporter]:
    """A function that shows events as they come, until the block ends."""
    if manner.live:
        with _progress() as bars:
            yield _once(_live(manner, bars))
    else:
        yield _once(lambda event: plain(manner, event))


def _once(show: Reporter) -> Reporter:
    """A reporter that shows a note only the first time: several steps may meet the same."""
    notes: set[str] = set()

    def show_new(event: Event) -> None:
        if event.status != "note" or event.text not in notes:
            notes.update([event.text] if event.status == "note" else [])
            show(event)

    return show_new


def as_data(event: Event) -> None:
    """Tell an event as a line of JSON on stdout, for a program that reads it."""
    import json  # here, as not each run tells in it

    error = event.error
    lines = (error.message, error.hint) if isinstance(error, OrchestrateError) else (masked(str(error)), "") if error else None
    words = {"step": masked(event.step), "status": event.status, "text": masked(event.text)}
    log = getattr(error, "log", None) or event.log
    fields = {**words, "seconds": event.seconds, "memory": event.memory, "error": lines, "log": str(log or "")}
    print(json.dumps(fields), flush=True)


def say(text: str, manner: Voice) -> None:
    """One line that is neither a result nor a step."""
    if not manner.quiet:
        print("\n".join(_whole_words([plain_text(text)], sys.stderr)), file=sys.stderr, flush=True)


def result(value: Any, lines: Iterable[str], as_json: bool = False) -> None:
    """What was asked for, on stdout: lines of text, or the same as the one JSON document of a command."""
    if as_json:
        import json

        text = masked(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))
        text = OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    else:
        text = plain_text("\n".join(lines))
    if text:
        print(text, flush=True)


def complain(error: OrchestrateError, manner: Voice) -> None:
    """An error as the user reads it: what happened, what to do, where the log is; the first of several stands last."""
    for failure in (*reversed(error.others), error):
        first, *rest = map(plain_text, failure.lines())
        lines = _whole_words([f"error: {first}", *rest], sys.stderr)
        lines[0] = _paint("error:", "31", manner) + lines[0].removeprefix("error:")
        print("\n".join(lines), file=sys.stderr, flush=True)


def _whole_words(lines: list[str], stream: TextIO) -> list[str]:
    """Lines broken between words where a terminal would break them anywhere; paths and commands stay whole."""
    if not stream.isatty():
        return lines
    import shutil  # it brings all of Python's archive formats along

    width = max(shutil.get_terminal_size().columns, 20)
    how: dict[str, Any] = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return [part for line in lines for part in textwrap.wrap(line, width, **how) or [""]]


def line_of(event: Event) -> str:
    """An ended step as one plain line: what, how it ended, how long it took."""
    seconds = f" ({event.seconds:.1f} s)" if event.status in ("done", "failed") else ""
    text = f" {event.text.splitlines()[0]}" if event.text and event.status == "blocked" else ""  # a failure is told at the end
    return plain_text(f"{event.status:<8}{event.step}{seconds}{text}")


def plain(manner: Voice, event: Event) -> None:
    """Show an event in one line, if the manner wants it told."""
    if event.status == "note":
        say(f"note: {event.text}", manner)
    elif event.status in ENDED:
        if not manner.quiet or event.status == "failed":
            print(_painted(event, manner), file=sys.stderr, flush=True)
    elif manner.verbose and event.text:
        say(f"        {event.step}: {event.text}", manner)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import Progress
    from rich.progress import SpinnerColumn
    from rich.progress import TextColumn
    from rich.progress import TimeElapsedColumn
    from rich.table import Column

    # Names may hold brackets, which are no markup; one line for each step, also when the terminal is made narrower.
    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    return Progress(SpinnerColumn(), text, TimeElapsedColumn(), console=Console(stderr=True), transient=True)


def running(step: str, now: str, columns: int) -> str:
    """A running step in one line beside spinner and time: where it is too long, what it waits for stays and its name is cut."""
    width = max(columns - len("⠋ ") - len(" 0:00:00"), 0)
    room = width - len(now) - 1
    name = step if len(step) <= room or not now else step[: max(room - 1, 0)] + "…"
    return f"{name} {now}".rstrip()


def _live(manner: Voice, bars: Progress) -> Reporter:
    tasks: dict[str, TaskID] = {}

    def text(event: Event) -> str:
        return running(plain_text(event.step), plain_text("".join(event.text.splitlines()[:1])), bars.console.width)

    def show(event: Event) -> None:
        if event.status == "started":
            tasks[event.step] = bars.add_task(text(event), total=None)
        elif event.status == "note":
            note = plain_text(f"note: {event.text}")
            bars.console.out("\n".join(_whole_words([note], sys.stderr)), highlight=False)
        elif event.status == "progress":
            bars.update(tasks[event.step], description=text(event))
        else:
            if event.step in tasks:
                bars.remove_task(tasks.pop(event.step))
            if event.status in ENDED:
                bars.console.out(_painted(event, manner), highlight=False)

    return show


def _painted(event: Event, manner: Voice) -> str:
    line = "\n".join(_whole_words([line_of(event)], sys.stderr))
    return _paint(line[:8], COLOURS[event.status], manner) + line[8:]


def _paint(text: str, colour: str, manner: Voice) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if manner.colour else text
