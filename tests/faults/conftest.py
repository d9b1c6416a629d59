"""What all faults have in common: an exit code of their class and a text of at most four lines with a way out.

Of each fault, one whole text for each way out is on record, under the name of a row; the words of the other rows are free.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.answer import Answer
from tests.support.texts import MOST_LINES
from tests.support.texts import TEXTS
from tests.support.texts import error_of
from tests.support.texts import read
from tests.support.texts import write

# Set to "write" to bring the record up to date; read the difference before you commit it. A test's world has no such variable.
WRITING = os.environ.get("ORCHESTRATE_TEXTS") == "write"
# What differs from run to run → what stands for it on record.
VARIABLE = (
    (r"http://(?:127\.0\.0\.1|localhost):\d+", "<server>"),
    (r"(?:127\.0\.0\.1|localhost):\d+", "<server>"),
    (r"<temp>/pytest-of-\S+/data\d+(?=/)", "<data>"),
    (r"\b[0-9a-f]{64}\b", "<sha256>"),
    (r"\b[0-9a-f]{40}\b", "<commit>"),
    (r"(?<=\.[0-9a-f]{12})\.[0-9a-f]{8}(?=\.stage)", ".<run>"),
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
    """Hold a failed command to its exit code, to at most four lines with a way out, and to its text if one is on record."""
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
        assert "hint: " in text, f"there is no way out:\n{text}"
        known = read(file)
        if WRITING and fault in known:
            write(file, known | {fault: text})
        else:
            assert known.get(fault, text) == text, f"{file.name} has for {fault}:\n{known[fault]}\nand now it says:\n{text}"
        return text

    return check
