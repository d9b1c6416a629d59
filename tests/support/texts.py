"""Error texts on record, and how they are cut out of what a command says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import ROOT

TEXTS = ROOT / "tests" / "faults" / "texts"
MOST_LINES = 4


def error_of(err: str) -> str:
    """The last error in what a command said on stderr, from its first line on."""
    begins = [found.start() for found in re.finditer(r"^error: ", err, re.MULTILINE)]
    return err[begins[-1] :].rstrip() if begins else ""


def read(file: Path) -> dict[str, str]:
    """fault → text of a file of blocks, each below a line that begins with `== `."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    blocks = [block.partition("\n") for block in re.split(r"^== ", text, flags=re.MULTILINE)[1:]]
    return {name: body.strip("\n") for name, _, body in blocks}


def write(file: Path, texts: dict[str, str]) -> None:
    """Put texts on record, in the order of their numbers."""
    file.parent.mkdir(exist_ok=True)
    order = sorted(texts, key=lambda name: (int((re.match(r"\d+", name) or ["0"])[0]), name))
    file.write_text("\n".join(f"== {name}\n{texts[name]}\n" for name in order), encoding="utf-8", newline="\n")
