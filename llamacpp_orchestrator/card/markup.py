"""Other people's words in a model card: none of them becomes markup, neither of Markdown nor of HTML."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from urllib.parse import quote

from markupsafe import Markup

# What Markdown, its tables, links without brackets, formulas and mentions, or HTML would take; some at the beginning alone.
ACTIVE = re.compile(r"[\\`*_{}\[\]<>()#!|~&$@:^]|(?<=www)\.|^[-+=]", re.IGNORECASE)
NUMBERED = re.compile(r"^(\d+)\.(?= |$)")
BARE_WORD = re.compile(
    r"(?!$)(\{[\w-]+\})?[\w@%+=:,./-]*", re.ASCII
)  # what a shell takes as it is, perhaps behind a place in braces
UNITS = ("Bytes", "kB", "MB", "GB", "TB")


def plain(words: object) -> str:
    """Words in one line, without letters that cannot be seen."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(words)).split())


def text(words: object) -> Markup:
    """Words as running text."""
    return Markup(NUMBERED.sub(r"\1\\.", ACTIVE.sub(r"\\\g<0>", plain(words))))


def code(words: object) -> Markup:
    """A name as code, in a table as well; "" for none."""
    name = plain(words)
    if re.search(r"[|`\\<]", name):  # what has no escape between backticks
        return Markup(f"<code>{text(name)}</code>")
    return Markup(f"`{name}`" if name else "")


def shell(words: Iterable[str]) -> Markup:
    """A command as one line of a block of code: for a shell, and without what would end the block."""
    return Markup(" ".join(map(_word, words)))


def _word(word: str) -> str:
    if BARE_WORD.fullmatch(word):
        return word
    if word.isprintable() and not re.search("`|<!--", word):
        return shlex.quote(word)
    return "$'" + "".join(letter if letter.isprintable() and letter not in "\\'`<" else _escape(letter) for letter in word) + "'"


def _escape(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def target(path: str) -> Markup:
    """A path in the repository as the target of a link."""
    return Markup(quote(path, safe="/"))


def page(source: str, commit: str) -> Markup:
    """The hub's page of a repository at a commit."""
    return Markup(f"https://huggingface.co/{quote(source, safe='/')}/tree/{quote(commit, safe='')}")


def size(count: float) -> Markup:
    """Bytes as the hub shows them: decimal, three digits; number and unit stay in one line."""
    power = 0
    while float(f"{count:.3g}") >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return Markup(f"{float(f'{count:.3g}'):g}&nbsp;{UNITS[power]}")
