"""What all faults have in common: an exit code of their class, a text of at most four lines, and that text on record."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Answer

TEXTS = Path(__file__).parent / "texts"
# Set to "write" to put what is said now on record; read the difference before you commit it. A test's world has no such variable.
WRITING = os.environ.get("ORCHESTRATE_TEXTS") == "write"
MOST_LINES = 4
NOBODY = 65534
# What differs from run to run → what stands for it on record.
VARIABLE = (
    (r"http://(?:127\.0\.0\.1|localhost):\d+", "<server>"),
    (r"(?:127\.0\.0\.1|localhost):\d+", "<server>"),
    (r"<temp>/pytest-of-\S+/data\d+(?=/)", "<data>"),
    (r"\b[0-9a-f]{64}\b", "<sha256>"),
    (r"\b[0-9a-f]{40}\b", "<commit>"),
    (r"-[0-9a-f]{8}/(?=[^/\s]+\.log)", "-<key>/"),
    (r"\b\d+(?:\.\d+)? (?:s|ms)\b", "<time>"),
    (r"\b\d+(?:\.\d+)? GB free\b", "<space> free"),
    (r"\b\d+ bytes are kept\b", "<count> bytes are kept"),
    (r"\b\d+(?:\.\d+)? [KMGT]?B(?= of the| that may be used)", "<size>"),
    (r"(?<=for Python )3\.\d+(?=; uv says)", "<version>"),
    (r"(?<=it works with )3\.\d+(?:, 3\.\d+)*", "<versions>"),
)


@pytest.fixture
def told(request: pytest.FixtureRequest, world: Path, shared_cache: Path) -> Callable[..., str]:
    """Hold a failed command to its class of exit code, to at most four lines, and to the text on record for a fault."""
    file = TEXTS / f"{Path(str(request.node.fspath)).stem.removesuffix('_test')}.txt"

    def check(fault: str, answer: Answer, code: int = 1) -> str:
        assert answer.code == code, f"exit {answer.code}, expected {code}:\n{answer.err}"
        assert "Traceback" not in answer.err
        text = error_of(answer.err)
        assert text, f"no error was told:\n{answer.err}"
        for place, name in (
            (world, "<work>"),
            (world.parent, "<tmp>"),
            (shared_cache, "<cache>"),
            (tempfile.gettempdir(), "<temp>"),
        ):
            text = text.replace(str(place), name)
        for pattern, name in VARIABLE:
            text = re.sub(pattern, name, text)
        assert len(text.splitlines()) <= MOST_LINES, f"{len(text.splitlines())} lines:\n{text}"
        known = read(file)
        if WRITING:
            write(file, known | {fault: text})
        else:
            assert known.get(fault) == text, f"{file.name} has for {fault}:\n{known.get(fault)}\nand now it says:\n{text}"
        return text

    return check


@contextmanager
def somebody() -> Iterator[None]:
    """Have no more rights than others, for a while; root may do everything."""
    mine = os.geteuid() == 0
    if mine:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if mine:
            os.setresuid(0, 0, 0)


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
