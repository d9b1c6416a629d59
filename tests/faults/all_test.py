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
    # The release's archive.
    32: "releases_test.py::test_choose_refuses",
    33: "routes_test.py::test_an_archive_without_a_published_digest_is_pinned_by_its_first_download",
    34: "download_test.py::test_unpack_refuses",
    35: "releases_test.py::test_install",
    36: "download_test.py::test_unpack_counts",
    37: "download_test.py::test_fetch_of_the_wrong_thing",
    38: "releases_test.py::test_probe_says_why_it_cannot_start",
    39: "releases_test.py::test_a_spent_rate_limit_and_no_file",
    40: "download_test.py::test_token_stays_at_its_host",
    41: "download_test.py::test_fetch",
    42: "download_test.py::test_fetch_gives_up",
    43: "releases_test.py::test_probe_says_why_it_cannot_start",
    44: "download_test.py::test_netrc_does_not_replace_the_token",
    # The hub.
    45: "routes_test.py::test_what_the_hub_refuses_or_spoils",
    47: "hub_test.py::test_a_bad_download_leaves_nothing_and_the_next_run_is_good",
    48: "hub_test.py::test_a_passing_refusal_heals",
    49: "hub_test.py::test_every_refusal_has_its_own_words",
    50: "hub_test.py::test_damage_in_the_cache_is_repaired",
    51: "hub_test.py::test_damage_in_the_cache_is_repaired",
    52: "hub_test.py::test_what_cannot_be_converted",
    53: "hub_test.py::test_a_bad_download_leaves_nothing_and_the_next_run_is_good",
    54: "hub_test.py::test_an_unreachable_hub",
    55: "hub_test.py::test_parts_that_a_kill_left_are_swept_away",
    56: "hub_test.py::test_a_stop_ends_a_stalled_download_at_once",
    57: "concurrency_test.py::test_eight_runs_at_once_make_and_fetch_everything_once",
    61: "hub_test.py::test_what_cannot_be_converted",
    62: "hub_test.py::test_a_hostile_lock_leads_nowhere",
    63: "hub_test.py::test_a_next_page_elsewhere_gets_no_token",
    64: "hub_test.py::test_a_bad_download_leaves_nothing_and_the_next_run_is_good",
    65: "releases_test.py::test_a_login_page_that_answers_to_every_name_is_no_release",
}
# Kills in a clone (25), a small disk for the cache (58) and cut downloads (46) are what `make crash` tries.
BY_CRASH = {25, 46, 58}
# No test of ours has a branch that moves after the lock (59), or a hub that serves by Xet (60).
OPEN = {59, 60}


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
