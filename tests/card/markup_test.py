"""Words as text, code and commands: how each is written, and that a shell and a renderer read them as they were."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies
from markdown_it import MarkdownIt

from llamacpp_orchestrator.card import markup as card_markup

SUITE = settings(max_examples=200, derandomize=True, database=None, deadline=None)
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
BASH = shutil.which("bash")


def shown(markdown: str, in_table: bool = False) -> str:
    """What a reader sees of a line of Markdown."""
    tokens = MARKDOWN.parse(f"| a |\n|---|\n| {markdown} |" if in_table else markdown)
    (inline,) = [token for token in tokens if token.type == "inline" and token.content != "a"]
    return "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0&nbsp;Bytes"), (596, "596&nbsp;Bytes"), (15_680, "15.7&nbsp;kB"), (46_240_000, "46.2&nbsp;MB"),
        (2_300_000_000, "2.3&nbsp;GB"), (999_600, "1&nbsp;MB"), (999_400, "999&nbsp;kB"),
        (1.3e12, "1.3&nbsp;TB"), (4.2e15, "4200&nbsp;TB"),
    ],
)  # fmt: skip
def test_sizes_as_the_hub_shows_them(count: float, text: str) -> None:
    assert card_markup.size(count) == text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("Q4_K_M", "Q4\\_K\\_M"), ("1. x", "1\\. x"), ("1.5 x", "1.5 x"), ("- x", "\\- x"), ("a - b", "a - b"),
        ("www.x.y", "www\\.x.y"), ("a\n\tb\u202ec", "a b c"), (3, "3"),
    ],
)  # fmt: skip
def test_running_text(words: object, text: str) -> None:
    assert card_markup.text(words) == text


@SUITE
@given(strategies.text(max_size=30))
def test_a_reader_sees_the_words_as_they_were(words: str) -> None:
    plain = card_markup.plain(words)
    assert shown(f"x {card_markup.text(words)}".rstrip()) == f"x {plain}".rstrip()
    if plain and not set(plain) & set("|`\\<"):
        assert shown(card_markup.code(words)) == shown(card_markup.code(words), in_table=True) == plain
    assert shown(f"x{card_markup.text(words)}", in_table=True) == f"x{plain}"


def test_code_without_backticks() -> None:
    assert card_markup.code("a|b") == "<code>a\\|b</code>" and card_markup.code("") == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("{python}", "{tree}/x.py", "--a=b"), "{python} {tree}/x.py --a=b"), (("a b", ""), "'a b' ''"),
        (("it's",), "'it'\"'\"'s'"), (("```\n",), "$'\\x60\\x60\\x60\\x0a'"), (("<!-- é",), "$'\\x3c!-- é'"),
        (("\u2028\U000e0001",), "$'\\u2028\\U000e0001'"),
    ],
)  # fmt: skip
def test_commands(words: tuple[str, ...], line: str) -> None:
    assert card_markup.shell(words) == line


@pytest.mark.skipif(not BASH, reason="no bash here")
@pytest.mark.parametrize("word", ["a b", "it's", "```\n", "<!-- x -->", "\\`'<", "$HOME", "*", "~", "é\u2028", "{a,b}c", "{x}"])
def test_a_shell_reads_the_words_as_they_were(word: str) -> None:
    line = f"printf %s {card_markup.shell([word])}"
    answer = subprocess.run([BASH or "", "-c", line], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert answer.stdout.decode() == word


def test_links() -> None:
    assert card_markup.target("a b/(c)|<d>.gguf") == "a%20b/%28c%29%7C%3Cd%3E.gguf"
    assert card_markup.page("a/b", "c/d") == "https://huggingface.co/a/b/tree/c%2Fd"
