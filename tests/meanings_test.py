"""Tables of other programs' words: each row has what it needs, and an example that no earlier row takes."""

from __future__ import annotations

import re

import pytest
import yaml

from llamacpp_orchestrator import meanings
from llamacpp_orchestrator.binaries import selftest
from llamacpp_orchestrator.errors import FULL
from llamacpp_orchestrator.export import ollama_program
from llamacpp_orchestrator.meanings import Meaning
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.source import git
from tests.support import ROOT

FOLDERS = sorted(path.parent.name for path in (ROOT / "llamacpp_orchestrator").glob(f"*/{meanings.TABLES}"))
# Texts that the code has for its tables, and the words that it fills in.
TEXTS = {"FULL": FULL, "BUILD": selftest.BUILD, "ELSEWHERE": git.ELSEWHERE, "MERGE": adapter.MERGE}
TEXTS |= {"UPDATE": ollama_program.UPDATE}
WORDS = {"owner": "its", "libc": "glibc 2.36", "arch": "x64", "processor": "", "loader": ""}


def tables(folder: str) -> dict[str, tuple[Meaning, ...]]:
    text = (ROOT / "llamacpp_orchestrator" / folder / meanings.TABLES).read_text(encoding="utf-8")
    return {name: meanings.table(folder, name, **TEXTS) for name in yaml.safe_load(text) if name != "texts"}


def rivals(row: Meaning, rows: tuple[Meaning, ...]) -> list[Meaning]:
    """The earlier rows that hold wherever a row holds."""
    earlier = rows[: rows.index(row)]
    return [each for each in earlier if each.script in ("", row.script) and each.within in ("", row.within)]


def test_there_are_tables_of_many_programs() -> None:
    assert sum(len(rows) for folder in FOLDERS for rows in tables(folder).values()) > 100


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_row_has_what_it_needs(folder: str) -> None:
    for name, rows in tables(folder).items():
        for row in rows:
            assert re.search(row.pattern, row.example), row
            assert not [each for each in rivals(row, rows) if re.search(each.pattern, row.example)], row
            assert meanings.first(row.example, [row]) and row.means
            # What helps against a cause of doctor's depends on the setting that could name another place.
            assert bool(row.way) == ((folder, name) != ("doctor", "causes")), row


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_row_is_told_in_whole_words(folder: str) -> None:
    for rows in tables(folder).values():
        for row in rows:
            cause, way = meanings.matched(row.example, [row], **WORDS)
            assert cause and not re.search(r"\{\w*\}", cause) and not re.search(r"\$\w", way), row
            assert len(f"{cause}{way}") < meanings.LONGEST + 100


def test_an_error_of_the_system_is_known_by_its_number_here() -> None:
    row = Meaning(means="no such file", errno=("ENOENT", "ENOSUCHNAME"), says="absent", example="")
    assert row.pattern == r"absent|\b(?:Errno|os error) (?:2)\b"
    assert Meaning(means="no such file", errno=("ENOSUCHNAME",), says="absent", example="").pattern == "absent"


@pytest.mark.parametrize(
    ("means", "said", "cause"),
    [
        ("it lacks {0}", "no 'x'", "it lacks x"),
        ("it lacks one ({0} is new to it)", "no one", "it lacks one"),
        ("it lacks: {0}", "no one", "it lacks"),
        ("it lacks {0}", f"no '{'x' * 999}'", f"it lacks {'x' * meanings.LONGEST}"),
        ("it lacks ({0})", "no '{x}'", "it lacks ({x})"),
        ("it lacks {0}", "what nobody knows", ""),
    ],
)
def test_a_cause_has_the_part_that_matched(means: str, said: str, cause: str) -> None:
    row = Meaning(means=means, says=("no '(.+)'", "no one"), way="look", example="")
    assert meanings.matched(said, [row]) == (cause, "look" if cause else "")


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("certificate verify failed: certificate has expired", "clock"),
        ("invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("CONNECT tunnel failed, response 407", "HTTPS_PROXY"),
        ("Connection refused", "try again"),
    ],
)
def test_what_helps_a_connection(said: str, hint: str) -> None:
    assert hint in meanings.hint_for(said, "try again")
