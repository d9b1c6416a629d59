"""The lines of a failed program's output that tell why it failed."""

from __future__ import annotations

import re

LONGEST = 300
# What a line says that tells of a failure; the traceback of one, and a summary of options, do so less.
TELLING = re.compile(r"(?i)\b(?:\w*error|\w*exception|fail\w*|fatal|abort\w*|cannot|could not|invalid|unknown|no such)\b")
KILLED = (-9, -15)
PROGRESS = re.compile(r"\d+%\||^\[ *\d+/ *\d+\]|^\$ ")


def point(said: str) -> str:
    """The one line of a program's last words that says most: the last that tells of a failure, or else the last at all."""
    lines = [" ".join(line.split()) for line in said.splitlines()]
    # torch advises to load pickles unsafely.
    lines = [line for line in lines if line and not PROGRESS.search(line) and "weights_only" not in line]
    told = [line for line in lines if TELLING.search(line)]
    line = (told or lines or [""])[-1]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def pointed(message: str, said: str, code: int = 1) -> str:
    """What happened, with the point of a program's last words behind it; one that was ended from outside had none to say."""
    words = point(said) if code not in KILLED else ""
    return f"{message}: {words}" if words else message
