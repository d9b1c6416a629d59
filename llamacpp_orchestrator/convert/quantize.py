"""The tag's own `llama-quantize`: from one unquantized file to the types that were asked for."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import tool_env

# How the tool says that a tensor gets another type than it should: now, and before 2026.
FALLBACKS = (
    r"required for type +(?P<wanted>\w+)\).*-> falling back to +(?P<used>\w+)",
    r"required for (?P<wanted>\w+) - using fallback quantization (?P<used>\w+)",
)

HELP_SECONDS = 60.0


def types(tool: Path) -> tuple[str, ...]:
    """The types that a tool lists in its help, which it ends with exit code 1, by name and by number; () when it lists none."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(CommandFailed):
        asked = Command((str(tool), "--help"), env=tool_env(tool))
        process.stream(asked, Path(scratch) / "log", lines.append, limit=HELP_SECONDS)
    return listed("\n".join(lines))


def listed(usage: str) -> tuple[str, ...]:
    """The types in such a help: "  15  or  Q4_K_M  : 4.58G", or without a number."""
    _, _, table = usage.lower().partition("allowed quantization types")
    begin = len(usage) - len(table)
    found = re.findall(r"^\s*(?:(\d+)\s+or\s+)?([A-Za-z]\w*)\s*:", usage[begin:] if table else "", re.MULTILINE)
    return (*(name for _, name in found), *(number for number, _ in found if number))


def unknown(asked: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """The types that a tool does not know; it compares without case, and takes the numbers of its list as well."""
    words = {word.lower().lstrip("0") for word in known}
    return [word for word in asked if words and word.lower().lstrip("0") not in words]


def fallbacks(lines: Iterable[str]) -> tuple[str, ...]:
    """What the tool said about tensors whose rows do not fit the type, one line for each type that stands in."""
    said = [found for line in lines for pattern in FALLBACKS if (found := re.search(pattern, line))]
    pairs = [(found["wanted"].lower(), found["used"].lower()) for found in said]
    return tuple(
        f"{pairs.count(pair)} tensor{'s have' if pairs.count(pair) > 1 else ' has'} rows that {pair[0]} cannot hold, "
        f"and {'are' if pairs.count(pair) > 1 else 'is'} {pair[1]} instead"
        for pair in dict.fromkeys(pairs)
    )


def run(asked: Command, log: Path, tell: Callable[[str], None]) -> tuple[str, ...]:
    """Quantize, and return what is to be noted; the tool counts its tensors as `[  12/ 201]`, which is the progress."""
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line.startswith("[") and "]" in line:
            tell(line[1 : line.index("]")].replace(" ", ""))

    try:
        process.stream(asked, log, on_line)
    except CommandFailed as error:
        # Where the tool does not like its arguments it says so first, and then its whole help.
        said = next((line.strip() for line in lines if re.search(r"^\S*: (invalid|malformed|missing|bad) ", line.strip())), "")
        words = "\n".join((error.message, said, error.tail))
        cause, hint = explain(words, asked.fence.memory if asked.fence else 0, error.code)
        message = diagnose.pointed(f"{cause}{error.message}", said or error.tail, error.code)
        raise error.retold(message, error.hint or hint, log) from error
    return fallbacks(lines)


def explain(tail: str, memory: int = 0, code: int = 1) -> tuple[str, str]:
    """What the tool's end and last words likely mean, and what to do; `memory` is what it was allowed to take."""
    starved = sandbox.starved(tail, memory)
    known = starved if starved[0] else diagnose.machine(code, tail)
    cause, hint = known if known[1] else matched(tail, table("convert", "llama_quantize"))
    return f"{cause}: " if cause else "", hint or "the log holds the tool's whole output"
