"""What other programs' words mean: tables as data beside the code that asks, and the one function that looks a text up."""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

import msgspec

TABLES = "known_failures.yaml"  # in each folder that has some
LONGEST = 300


class Meaning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row: patterns, any of which tells it, with the names of errors of the system's; the cause, the way out, an example.

    Of git's words the row has what HTTP status they stand for; of a traceback, in which script ("lora", "hf" or either) and on
    which way through its functions (>main>write>...) it holds.
    """

    says: str | tuple[str, ...]
    means: str
    example: str
    errno: tuple[str, ...] = ()
    way: str = ""
    status: int = 0
    script: str = ""
    within: str = ""

    @property
    def pattern(self) -> str:
        """All patterns as one; errors by number are told as Python, and uv and other programs in Rust, tell them."""
        says = (self.says,) if isinstance(self.says, str) else self.says
        numbers = [str(number) for name in self.errno if (number := getattr(errno, name, None))]
        return "|".join((*says, *([rf"\b(?:Errno|os error) (?:{'|'.join(numbers)})\b"] if numbers else ())))

    def cause(self, detail: str, **words: str) -> str:
        """The cause in words, with the detail in place of {0}; without one its brackets go too."""
        means = self.means if detail else re.sub(r" \(\{0\}.*?\)|: \{0\}$", "", self.means)
        return means.format(detail[:LONGEST], **words)  # a list of all tensors is no detail


@functools.cache
def table(folder: str, name: str, **texts: str) -> tuple[Meaning, ...]:
    """A table of a folder of the package, the first row first; `texts`, and those of its file, stand for $NAME in a way out."""
    data = _tables(folder)
    rows = msgspec.convert(data[name], tuple[Meaning, ...], strict=False)
    texts |= data.get("texts", {})
    return tuple(msgspec.structs.replace(row, way=Template(row.way).substitute(texts)) for row in rows)


@functools.cache
def _tables(folder: str) -> Any:
    from llamacpp_orchestrator.util import yaml_reader

    file = Path(__file__).parent / folder / TABLES
    return yaml_reader.read(file.read_bytes(), str(file)).data


def first(said: str, rows: Iterable[Meaning]) -> tuple[Meaning, str] | None:
    """The first row that a text tells, with the detail: what the first part in brackets found; None without one."""
    for row in rows:
        if match := re.search(row.pattern, said):
            return row, next(filter(None, match.groups()), "")
    return None


def matched(said: str, rows: Iterable[Meaning], **words: str) -> tuple[str, str]:
    """The cause and the way out of the first row that a text tells; two empty texts without one."""
    row, detail = first(said, rows) or (None, "")
    return (row.cause(detail, **words), row.way) if row else ("", "")


def hint_for(said: str, hint: str) -> str:
    """What to do about a failure of a connection, by the words of the library that met it; `hint` where they tell nothing."""
    return matched(said, table("util", "connections"))[1] or hint
