"""The tag's own `llama-quantize`: from one unquantized file to the types that were asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from llamacpp_orchestrator import explain as explaining
from llamacpp_orchestrator import process
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.process import Command


def command(tool: Path, source: Path, outfile: Path, quantized: str, split: bool) -> Command:
    """The call that makes one type of one file; always with all three arguments, or the tool picks a name by itself."""
    kept = ("--keep-split",) if split else ()
    return Command((str(tool), *kept, str(source), str(outfile), quantized), cwd=str(outfile.parent), env=tool_env(tool))


def tool_env(tool: Path) -> tuple[tuple[str, str], ...]:
    """The environment of a released program; some eras find their libraries only when told where."""
    library_path = os.pathsep.join(filter(None, (str(tool.parent), os.environ.get("LD_LIBRARY_PATH", ""))))
    return process.clean_env(LD_LIBRARY_PATH=library_path)


def run(asked: Command, log: Path, tell: Callable[[str], None]) -> None:
    """Quantize; the tool counts its tensors as `[  12/ 201]`, which is the progress."""

    def on_line(line: str) -> None:
        if line.startswith("[") and "]" in line:
            tell(line[1 : line.index("]")].replace(" ", ""))

    try:
        process.stream(asked, log, on_line)
    except CommandFailed as error:
        cause, hint = explain(error.tail)
        raise CommandFailed(
            f"{cause}{error.message}\n{error.tail}", code=error.code, tail=error.tail, hint=hint, log=log
        ) from error


def explain(tail: str) -> tuple[str, str]:
    """What the tool's last words likely mean, and what to do."""
    cause, hint = explaining.explain(tail, explaining.QUANTIZER)
    return f"{cause}: " if cause else "", hint or "the log holds the tool's whole output"
