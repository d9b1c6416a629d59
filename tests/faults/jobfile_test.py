"""Faults of the job file, 1 to 17: each is told with its place and the way out, before anything is made or downloaded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer

Orchestrate = Callable[..., Answer]
Told = Callable[..., str]

HEAD = "version: 1\nllama_cpp: {tag: b11434}\n"
GOOD = HEAD + "models: [./model]\n"
MODEL = HEAD + "models:\n  - source: ./model\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
LONGEST_TEXT = 400  # what a message with all its hints may have: no value of the file is told at length

ELSEWHERE = {
    6: "quantize_test.py::test_many_types_from_a_temporary_file_with_a_matrix",  # a number in quotes is the number
    10: "spec_test.py::test_the_whole_of_a_job",  # a byte order mark is no fault
}

TEXTS = {
    "1 empty file": "",
    "1 only comments": "# nothing yet\n\n  # nor here\n",
    "1 only blanks": " \n\n",
    "1 only a mark": "---\n",
    "2 a list": "- source: ./model\n",
    "2 plain text": "models\n",
    "3 tab": MODEL + "\tname: x\n",
    "3 tab before a value": "version: 1\nllama_cpp:\n\ttag: b11434\n",
    "4 key twice": MODEL + "    quantize: [Q8_0]\n    name: x\n    quantize: [Q4_0]\n",
    "4 key twice in one line": HEAD + "models: [{source: ./model, name: x, name: y}]\n",
    "6 threads": MODEL + "    threads: 1e3\n",
    "6 an exponent": MODEL + "    quantize: [Q8_0]\n    imatrix: {text: words.txt, chunks: 1e3}\n",
    "6 an underscore": MODEL + "    quantize: [Q8_0]\n    imatrix: {text: words.txt, chunks: 1_0}\n",
    "6 a leading zero": MODEL + "    quantize: [Q8_0]\n    quality: {text: words.txt, minutes: 010}\n",
    "6 a fraction": "version: 1.0\n" + GOOD.partition("\n")[2],
    "7 unknown key": MODEL + "    quantz: [Q8_0]\n",
    "7 unknown key at the top": HEAD + "modles: [./model]\n",
    "8 alias bomb": BOMB,
    "8 circle": "a: &a [*a]\n",
    "9 nested brackets": "version: " + "[" * 3000,
    "9 a long number": "version: " + "1" * 5000 + "\n" + GOOD.partition("\n")[2],
    "9 a date": "version: 2024-13-45\n" + GOOD.partition("\n")[2],
    "9 a bracket left open": HEAD + "models: [./model\n",
    "9 too large": GOOD + "#" * 70_000,
    "9 a control character": GOOD + "output: \x07\n",
    "10 utf-16": GOOD.encode("utf-16"),
    "10 latin-1": (GOOD + "output: caf\xe9\n").encode("latin-1"),
    "11 two documents": GOOD + "---\n" + GOOD,
    "12 python tag": "version: !!python/object/apply:os.system [touch ran]\n" + GOOD.partition("\n")[2],
    "12 a tag of its own": MODEL + "    name: !secret x\n",
    "14 two outputs": MODEL + "    name: x\n  - source: ./model\n    name: x\n",
    "14 two outputs by case": MODEL + "    name: x\n  - source: ./model\n    name: X\n",
    "14 two outputs by a dot": MODEL + "    outfile: ./a.gguf\n  - source: ./model\n    outfile: a.gguf\n",
    "14 two outputs by a link": MODEL + "    outfile: one/a.gguf\n  - source: ./model\n    outfile: two/a.gguf\n",
    "15 below a file": GOOD + "output: words.txt/dist\n",
    "15 a file": GOOD + "output: words.txt\n",
    "17 dots": MODEL + "    outfile: ../{name}.gguf\n",
    "17 dots in a name": MODEL + "    name: ../x\n",
    "17 nul": MODEL + '    name: "x\\0y"\n',
    "17 nul in a file name": MODEL + '    outfile: "x\\0.gguf"\n',
    "17 nul in a folder": GOOD + 'output: "x\\0y"\n',
    "17 256 bytes": MODEL + f"    outfile: {'x' * 251}.gguf\n",
    "17 256 bytes in a folder": MODEL + f"    outfile: {'x' * 256}/{{name}}.gguf\n",
    "17 256 bytes of output": GOOD + f"output: {'x' * 256}\n",
}


@pytest.fixture
def place(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a source, a text, and two names for one folder of outputs; its cache is not there yet."""
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world.parent / "cache"))
    (world / "model").mkdir()
    (world / "words.txt").write_text("words\n", encoding="utf-8")
    (world / "dist" / "one").mkdir(parents=True)
    if os.name != "nt":
        (world / "dist" / "two").symlink_to("one")
    return world


def listed(place: Path) -> dict[str, bytes]:
    """Everything beside the job file, and below the cache."""
    found = [path for root in (place, place.parent / "cache") for path in root.rglob("*") if path.name != "job.yaml"]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in found}


@pytest.mark.parametrize("fault", TEXTS)
def test_a_faulty_job_is_told_and_nothing_is_made(fault: str, place: Path, orchestrate: Orchestrate, told: Told) -> None:
    if os.name == "nt" and "link" in fault:
        pytest.skip("links need a right there")
    text, file = TEXTS[fault], place / "job.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before, began = listed(place), time.monotonic()
    said = told(fault, orchestrate("run", "job.yaml"), code=2)
    assert time.monotonic() - began < 1 and len(said) < LONGEST_TEXT
    assert "job.yaml" in said and listed(place) == before
    file.write_text(GOOD, encoding="utf-8")
    assert orchestrate("run", "job.yaml", "--locked").code == 3, "the corrected job is read, and its lock is what lacks"
