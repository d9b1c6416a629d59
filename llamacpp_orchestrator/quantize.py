"""The tag's own `llama-quantize`: from one unquantized file to the types that were asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

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
    if "invalid ftype" in tail or "usage:" in tail:
        return "this tag's llama-quantize does not know the type: ", "see the list: orchestrate exec JOB -- llama-quantize"
    if re.search(r"(?i)importance matrix|missing importance|imatrix.*(required|missing)|requires.*imatrix", tail):
        return "this type needs an importance matrix: ", "choose a type that does not, for example Q4_K_M"
    if "No space left" in tail:
        return "the disk is full: ", "free some space and run again"
    return "", "the log holds the tool's whole output"
