"""What a failed program's end tells: the line that says why, and what the machine refused."""

from __future__ import annotations

import re

from llamacpp_orchestrator.errors import FULL
from llamacpp_orchestrator.meanings import LONGEST
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table

# What a line says that tells of a failure; the traceback of one, and a summary of options, do so less.
TELLING = re.compile(r"(?i)\b(?:\w*error|\w*exception|fail\w*|fatal|abort\w*|cannot|could not|invalid|unknown|no such)\b")
KILLED = (-9, -15)
KILLED_HARD = (-9, 137)  # by the signal itself, or by a shell's or a container's word for it
PROGRESS = re.compile(r"\d+%\||^\[ *\d+/ *\d+\]|^\$ ")

MEMORY = "the system has likely run out of memory: close other programs, give the container more, or use --jobs 1"
OLD_PROCESSOR = "this processor lacks instructions that it uses: take a tag from b5276 on, or set `binaries.backend: source`"
SIGNALS = {
    4: OLD_PROCESSOR,
    7: f"a file that it reads was cut meanwhile, or a disk or /dev/shm is full: {FULL}",
    24: "a limit on processor time ended it: raise it (ulimit -t)",
    25: "a limit on the size of files ended it: raise it (ulimit -f)",
}
LATE = "took longer than"


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


def machine(code: int, said: str) -> tuple[str, str]:
    """What the machine refused a program, and what to do: by its signal or exit code, then by the errors of the system.

    To be asked before any table of a program's own words. Of a signal the cause is empty, for `ended` has it in words already.
    """
    if LATE in said:  # then we have killed it
        return "", ""
    if code in KILLED_HARD:
        return "", MEMORY
    if code < 0 and (remedy := SIGNALS.get(-code)):
        return "", remedy
    rows = (*table("system", "refusals", FULL=FULL), *table("system", "programs"), *table("system", "libraries"))
    return matched(said, rows, owner="llama.cpp's")
