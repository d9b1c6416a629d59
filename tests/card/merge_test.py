"""A card in a README that is there: what is the user's stays, byte for byte, and what is ours is replaced."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from llamacpp_orchestrator.card import merge as card_merge
from llamacpp_orchestrator.card.merge import KEYS
from llamacpp_orchestrator.card.merge import SECTION
from llamacpp_orchestrator.errors import OrchestrateError

SUITE = settings(max_examples=200, derandomize=True, database=None, deadline=None)
OLD = card_merge.whole("license: mit\ntags:\n- gguf", "# Old\n\nold")
NEW = card_merge.whole("license: other\nlicense_name: own\ntags:\n- gguf", "# New\n\nnew")
OURS = f"{SECTION[0]}\n# New\n\nnew\n{SECTION[1]}"
MARKED = f"{KEYS[0]}\nlicense: other\nlicense_name: own\ntags:\n- gguf\n{KEYS[1]}\n"


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("", NEW),
        (OLD, NEW),
        ("hello", f"---\n{MARKED}---\n\nhello\n\n{OURS}\n"),
        ("hello\n", f"---\n{MARKED}---\n\nhello\n\n{OURS}\n"),
        ("hello\n\n", f"---\n{MARKED}---\n\nhello\n\n{OURS}\n"),
        ("--- hello ---\n", f"---\n{MARKED}---\n\n--- hello ---\n\n{OURS}\n"),
        ("\ufeffhello\r\nyou\r\n", f"\ufeff---\n{MARKED}---\n\nhello\nyou\n\n{OURS}\n".replace("\n", "\r\n")),
        ("---\n---\n", f"---\n{MARKED}---\n\n{OURS}\n"),
        ("\n---\nx: 1 # one\n--- \nhi", f"\n---\nx: 1 # one\n{MARKED}--- \nhi\n\n{OURS}\n"),
        ("---\nx: 1\n---", f"---\nx: 1\n{MARKED}---\n\n{OURS}\n"),
        (
            "---\nlicense: gpl\nx: [no, 1.10]\n---\nhi\n",
            f"---\nlicense: gpl\nx: [no, 1.10]\n{KEYS[0]}\nlicense_name: own\ntags:\n- gguf\n{KEYS[1]}\n---\nhi\n\n{OURS}\n",
        ),
        (
            f"---\na: 1\n{KEYS[0]}\nold: 1\n{KEYS[1]}\ntags: [mine]\n---\nbefore\n{SECTION[0]}\nold\n{SECTION[1]}\nafter",
            f"---\na: 1\n{KEYS[0]}\nlicense: other\nlicense_name: own\n{KEYS[1]}\ntags: [mine]\n---\nbefore\n{OURS}\nafter",
        ),
        (
            f"x{SECTION[0]}\r\nold{SECTION[1]}y\r\n",
            f"---\n{MARKED}---\n\nx{OURS}y\n".replace("\n", "\r\n"),
        ),
        (
            "---\nlicense: a\nlicense_name: b\ntags: []\n---\n",
            f"---\nlicense: a\nlicense_name: b\ntags: []\n{KEYS[0]}\n{KEYS[1]}\n---\n\n{OURS}\n",
        ),
        ("---\nx: |\n  a\n  b\n---\n", f"---\nx: |\n  a\n  b\n{MARKED}---\n\n{OURS}\n"),
    ],
)  # fmt: skip
def test_what_a_readme_becomes(existing: str, expected: str) -> None:
    made = card_merge.merged(existing, NEW)
    assert made == expected
    assert card_merge.merged(made, NEW) == made
    assert card_merge.merged(card_merge.merged(existing, OLD), NEW) == made


def test_a_readme_that_git_gave_other_line_ends_keeps_them() -> None:
    assert card_merge.merged(OLD.replace("\n", "\r\n"), NEW) == NEW.replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("existing", "message", "hint"),
    [
        ("---\nlicense: mit\n\n# Hello\n", "no second one ends it", "write --- under its last key"),
        ("---\n- a\n- b\n---\n", "no list of `key: value`", "license: mit"),
        ("---\nhello\n---\n", "no list of `key: value`", "license: mit"),
        ("---\na: [1\n---\n", "is not YAML (line 2 of it)", "correct it"),
        ("---\na: !!bool x\n---\n", "is not YAML", "correct it"),
        ("---\na: 2024-13-45\n---\n", "is not YAML", "correct it"),
        ("---\na: \x07\n---\n", "is not YAML", "correct it"),
        ("---\n{a: 1}\n---\n", "not in the form", "without braces"),
        ("---\n  a: 1\n---\n", "not in the form", "at the beginning of a line"),
        (f"---\n{KEYS[0]}\na: 1\n---\n", "other marks", "put them right"),
        (f"---\n{KEYS[1]}\na: 1\n{KEYS[0]}\n---\n", "other marks", "put them right"),
        (f"hello\n{SECTION[0]}\n", "other marks of orchestrate's part than one begin and, after it, one end: <!-- orch", "put"),
        (f"{SECTION[1]}\n{SECTION[0]}\n", "other marks", "put them right"),
        (f"{SECTION[0]}{SECTION[1]}{SECTION[0]}{SECTION[1]}", "other marks", "put them right"),
        (f"{SECTION[0]}<!--orchestrate:begin-->{SECTION[1]}", "other marks", "put them right"),
    ],
)
def test_what_cannot_be_read_is_told_and_not_guessed(existing: str, message: str, hint: str) -> None:
    for text in (existing, existing.replace("\n", "\r\n")):
        with pytest.raises(OrchestrateError) as caught:
            card_merge.merged(text, NEW)
        assert message in caught.value.message and hint in caught.value.hint and len(caught.value.lines()) == 2


LINES = strategies.lists(
    strategies.one_of(
        strategies.text(strategies.characters(codec="utf-8"), max_size=12),
        strategies.sampled_from(["---", "# x", "```", "<details>", "a: 1", "\ufeff", "- x", "<!-- y -->"]),
    ),
    max_size=6,
)
ENDS = strategies.sampled_from(["\n", "\r\n"])
FRONT = strategies.sampled_from(
    ["", "a: 1", "# note", "license: mit", "tags: [x]", "x:\n  y: no", "license_name: |\n  long\n  one"]
)


@SUITE
@given(LINES, LINES, ENDS, FRONT, FRONT, strategies.sampled_from(["", "\ufeff", "\n"]))
def test_all_around_our_marks_is_kept(before: list[str], after: list[str], end: str, above: str, below: str, top: str) -> None:
    below = "" if above.split(":")[0] == below.split(":")[0] else below
    head, foot = (end.join(lines) for lines in (before, after))
    keys = [above, KEYS[0], "old: 1", KEYS[1], below]
    opening = top + end.join(["---", *filter(None, "\n".join(filter(None, keys)).replace("\n", end).split(end)), "---", ""])
    existing = f"{opening}{head}{end}{SECTION[0]}{end}old{end}{SECTION[1]}{foot}"
    made = card_merge.merged(existing, NEW)
    assert card_merge.merged(made, NEW) == made
    for part in (f"---{end}{head}{end}{SECTION[0]}", f"{SECTION[1]}{foot}", above.replace("\n", end), below.replace("\n", end)):
        assert part in made
    theirs = {**(yaml.safe_load(f"{above}\n") or {}), **(yaml.safe_load(f"{below}\n") or {})}
    ours = {"license": "other", "license_name": "own", "tags": ["gguf"]}
    assert yaml.safe_load(card_merge.read(made).front) == ours | theirs
    assert made.startswith(top) and made.count(SECTION[0]) == made.count(SECTION[1]) == 1


@SUITE
@given(LINES, ENDS)
def test_any_readme_is_kept_or_refused(lines: list[str], end: str) -> None:
    existing = end.join(lines)
    try:
        made = card_merge.merged(existing, NEW)
    except OrchestrateError:
        assert "---" in existing
        return
    assert card_merge.merged(made, NEW) == made
    assert existing.removeprefix("\ufeff") in made or "---" in lines
    assert yaml.safe_load(card_merge.read(made).front)["license"] == "other"
