"""Which test holds each of the 86 faults: by its number in a table here, or by its name elsewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.faults.conftest import MOST_LINES
from tests.faults.conftest import TEXTS
from tests.faults.conftest import read

TESTS = Path(__file__).resolve().parents[1]
FAULTS = range(1, 87)
ELSEWHERE = {
    # Conversion.
    73: "preflight_test.py::test_architectures",
    74: "run_test.py::test_a_broken_model_fails_with_cause_and_remedy_and_leaves_nothing",
    75: "hub_test.py::test_what_cannot_be_converted",
    76: "run_test.py::test_a_broken_model_fails_with_cause_and_remedy_and_leaves_nothing",
    77: "run_test.py::test_nan_weights_are_caught_though_upstream_is_content",
    78: "levels_test.py::test_what_a_source_lacks_is_told_though_upstream_is_content",
    79: "run_test.py::test_a_broken_model_fails_with_cause_and_remedy_and_leaves_nothing",
    80: "run_test.py::test_a_broken_model_fails_with_cause_and_remedy_and_leaves_nothing",
    81: "machinery_test.py::test_how_a_process_ended",
    83: "run_test.py::test_a_signal_ends_everything_and_the_next_run_goes_on",
    84: "quantize_test.py::test_an_unknown_type_is_told_before_anything_is_converted",
    85: "adapters_test.py::test_not_a_number_is_found_in_the_result",
    86: "run_test.py::test_no_secret_reaches_a_converter_a_log_a_lock_or_a_receipt",
}
# Kills in a clone (25) and small disks (82) are what `make crash` tries.
BY_CRASH = {25, 82}
OPEN: set[int] = set()


def named_elsewhere() -> dict[int, set[str]]:
    """Fault → the tests that the modules of this folder name for it."""
    found: dict[int, set[str]] = {}
    for path in sorted(Path(__file__).parent.glob("*_test.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ELSEWHERE":
                for number, name in ast.literal_eval(node.value).items():
                    found.setdefault(number, set()).add(name)
    return found


def in_tables() -> set[int]:
    """The faults that have a text on record, or a test or row of a table that begins with their number."""
    found = {int(name.split()[0]) for file in TEXTS.glob("*.txt") for name in read(file)}
    for path in Path(__file__).parent.glob("*_test.py"):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"def test_((?:\d+_)+)", text):
            found |= set(map(int, match[1].strip("_").split("_")))
    return found


def test_every_fault_is_held_by_some_test() -> None:
    assert in_tables() | named_elsewhere().keys() | BY_CRASH | OPEN == set(FAULTS)
    assert not OPEN & (in_tables() | named_elsewhere().keys())


@pytest.mark.parametrize("name", sorted({name for names in named_elsewhere().values() for name in names}))
def test_what_is_named_elsewhere_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert re.search(rf"^def {re.escape(function.partition('[')[0])}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", sorted(TEXTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_text_is_short_and_says_what_to_do(file: Path) -> None:
    texts = read(file)
    assert texts
    for name, text in texts.items():
        assert len(text.splitlines()) <= MOST_LINES, name
        assert "hint: " in text, name
