"""A checkpoint in the form that a pinned tag reads: rules that each turn what a newer library saved into what it was before."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import msgspec

# What a recipe says of the rules here: a file that was made by other rules is not current. Raise it with every changed rule.
REVISION = "translation 2"
NEWEST = 5  # the version of transformers whose files the rules know

Json = dict[str, Any]
Read = Callable[[str], Any]
"""One file of a checkpoint by its name: an object, a list, text, or (what is none of these) its bytes; None: there is none."""


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """The reader of a checkpoint at a tag: the version of transformers beside its scripts, and what these know themselves.

    `transformers` is () where it cannot be told, and counts as an old one; `knows` has names of `reader.MARKS`, and "ends by
    itself" of `reader.ends`; `pieces` is the file from which the architecture's class takes a sentencepiece vocabulary, "" for
    one that needs none.
    """

    transformers: tuple[int, ...] = ()
    knows: frozenset[str] = frozenset()
    pieces: str = ""

    def before(self, major: int) -> bool:
        """Tell whether transformers is of a time before its version `major`.0."""
        return self.transformers < (major,)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a form: what a reader must be told otherwise, who writes it so since when, and where that was seen.

    `apply` answers with the files that must be shown otherwise, {} for a checkpoint or a reader that does not need it.
    """

    name: str
    since: str
    source: str
    apply: Callable[[Read, Reader], Json]


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a checkpoint that a converter is shown in another form, by name, and what is to be said of it."""

    files: dict[str, bytes] = {}
    notes: tuple[str, ...] = ()


def translate(read: Read, reader: Reader, rules: Iterable[Rule]) -> Translation:
    """Translate a checkpoint for a reader, rule after rule; no files for one that it reads as it is."""
    changed: Json = {}
    notes: list[str] = []

    def current(name: str) -> Any:
        return changed[name] if name in changed else read(name)

    for rule in rules:
        if files := rule.apply(current, reader):
            changed |= files
            notes.append(f"translated for this tag: {rule.name} ({', '.join(sorted(files))}; new since {rule.since})")
    notes += later(read("config.json"))
    return Translation(files={name: _content(value) for name, value in sorted(changed.items())}, notes=tuple(notes))


def later(config: Any) -> list[str]:
    """Notes on a checkpoint that a library newer than these rules saved: it is read as it is, nothing is guessed."""
    version = str(config.get("transformers_version")) if isinstance(config, dict) else ""
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) <= NEWEST:
        return []
    unknown = f"saved by transformers {version}, and only what versions up to {NEWEST} changed is known here"
    return [f"{unknown}: read as it is; `verify: logits` tells whether it says the same"]


def _content(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
