"""Which test holds each of the 86 faults: by its number in a table here, or by its name elsewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.texts import MOST_LINES
from tests.support.texts import TEXTS
from tests.support.texts import read

TESTS = ROOT / "tests"
MODULES = sorted(Path(__file__).parent.glob("*_test.py"))
FAULTS = range(1, 87)
# Kills in a clone are what `make crash` tries.
BY_CRASH = {25}


def named_elsewhere() -> dict[int, set[str]]:
    """Fault → the tests that the modules of this folder name for it."""
    found: dict[int, set[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ELSEWHERE":
                for number, name in ast.literal_eval(node.value).items():
                    found.setdefault(number, set()).add(name)
    return found


def names(path: Path) -> set[str]:
    """The names of faults in a module, as expressions: a number, a blank and words, some of which may be filled in."""
    forms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        form = "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in parts)
        forms |= {form} if re.match(r"\d+\\ .", form) else set()
    return forms


def in_tables() -> set[int]:
    """The faults that have a row of a table, or a test, that begins with their number."""
    found = {int(form.split("\\")[0]) for path in MODULES for form in names(path)}
    for path in MODULES:
        for match in re.finditer(r"def test_((?:\d+_)+)", path.read_text(encoding="utf-8")):
            found |= set(map(int, match[1].strip("_").split("_")))
    return found


def test_every_fault_is_held_by_some_test() -> None:
    assert set(FAULTS) - in_tables() - named_elsewhere().keys() == BY_CRASH


@pytest.mark.parametrize("name", sorted({name for names in named_elsewhere().values() for name in names}))
def test_what_is_named_elsewhere_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert re.search(rf"^def {re.escape(function.partition('[')[0])}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", sorted(TEXTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_text_on_record_is_of_a_fault_that_is_tried_and_short_and_says_what_to_do(file: Path) -> None:
    texts, forms = read(file), names(Path(__file__).with_name(f"{file.stem}_test.py"))
    assert texts
    for name, text in texts.items():
        assert any(re.fullmatch(form, name) for form in forms), name
        assert len(text.splitlines()) <= MOST_LINES, name
        assert "hint: " in text, name
