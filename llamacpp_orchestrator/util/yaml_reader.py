"""YAML read as text: every scalar as it is written, with the line it stands on, so that no guess of YAML's ever bites."""

from __future__ import annotations

import functools
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import yaml

from llamacpp_orchestrator.errors import JobError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 12
MAX_LINES = 3  # of complaints: with the hint four, as many as anybody reads
MAX_PROBLEM = 120
LONGEST = 60  # what of a value is shown
# What YAML itself takes a word without quotes for.
BARE = {
    **dict.fromkeys(("no", "off", "false"), "false"), **dict.fromkeys(("yes", "on", "true"), "true"), "null": "nothing",
}  # fmt: skip
NULLS = ("~", "null", "Null", "NULL")
# In double quotes \ begins an escape, which is an error, or in silence a tab: "..\m", "C:\temp".
ESCAPE = (
    "not YAML: no such escape in double quotes",
    r"in double quotes \ begins an escape, as \t is a tab: use single quotes, or / ('C:\my models', C:/models)",
)
ALIAS = ("anchors and aliases (& and *) are not taken", "write the value out; one that begins with & or * needs quotes")
PROPERTY = re.compile(r"&|![^\s,]*")  # what a node has no other word for: begins with it, and is an anchor or a tag
SECOND = ("a second document begins here", "put what follows into a file of its own")
KINDS = {dict: "keys with values", list: "a list", str: "text", type(None): "nothing"}


class Reading(msgspec.Struct, kw_only=True):
    """A file as plain data (dict, list, str, None), the line of each value by its key path, and the complaints so far.

    `bare` has the words without quotes that YAML takes for something else, by key path; `escaped` the key paths of texts in
    double quotes in which a backslash made a character that nobody types into a name; `way` is what to do about any complaint.
    """

    file: str
    way: str = ""
    data: Any = None
    lines: dict[str, int] = {}
    bare: dict[str, str] = {}
    escaped: set[str] = set()
    complaints: list[tuple[int, str, str]] = []


def shown(text: str) -> str:
    """A text of the file for messages: cut, and with nothing in it that could steer a terminal."""
    plain = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text[: LONGEST + 1])
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}..."


def say(reading: Reading, where: str, text: str, hint: str = "") -> None:
    """Note one complaint about the value at a key path."""
    reading.complaints.append((line_of(reading, where), f"{shown(where) + ': ' if where else ''}{text}", hint))


def alone(reading: Reading, where: str) -> None:
    """Let what stands for a list of one be known by the key path that it has as the first of a list."""
    paths = [path for path in reading.lines if path == where or path.startswith(f"{where}.")]
    first = {path: f"{where}[0]{path[len(where) :]}" for path in paths}
    reading.lines |= {first[path]: reading.lines[path] for path in paths}
    reading.bare |= {first[path]: reading.bare[path] for path in paths if path in reading.bare}
    reading.escaped |= {first[path] for path in paths if path in reading.escaped}


def line_of(reading: Reading, where: str) -> int:
    """The line of the value at a key path; where it is absent, that of what should hold it."""
    while where and where not in reading.lines:
        shorter = re.sub(r"(\.|^)[^.\[]+$|\[\d+\]$", "", where)
        where = shorter if shorter != where else ""
    return reading.lines.get(where, 1)


def done(reading: Reading) -> None:
    """Raise the complaints as one JobError, in the file's order, with what to do about the first; no complaint is fine."""
    ordered = sorted(reading.complaints, key=lambda complaint: complaint[0])
    lines = [f"{reading.file}:{line}: {text}" for line, text, _ in ordered]
    if len(lines) > MAX_LINES:
        left = ordered[MAX_LINES - 1 :]
        lines[MAX_LINES - 1 :] = [f"and {len(left)} more, the next in line {left[0][0]}"]
    if ordered:
        raise JobError("\n".join(lines), ordered[0][2] or reading.way)


class _Composer(yaml.BaseLoader):
    """Nodes with their places, no deeper than MAX_DEPTH."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; MarkedYAMLError where it lies too deep."""
        if self.depth > MAX_DEPTH:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise _refused(event, f"nested more than {MAX_DEPTH} deep", "is a bracket missing, or an indent wrong?")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read(text: bytes, file: str, way: str = "") -> Reading:
    """A YAML document as plain data; JobError with line and column for what is no such document."""
    reading = Reading(file=file, way=way)
    decoded = _decoded(text, file)
    try:
        if not compose(reading, decoded, _Composer):
            raise JobError(f"{file}: the file is empty", "`orchestrate init` writes one to start from")
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        raise JobError(f"{file}:{line}: a control character, which YAML does not allow", "remove it from this line") from error
    except yaml.MarkedYAMLError as error:
        if line := conflict(decoded):
            raise JobError(f"{file}:{line}: a merge has left both sides of a conflict here", "keep one of them") from error
        problem, hint = explain(error)
        mark: Any = error.problem_mark
        raise JobError(f"{file}:{mark.line + 1}:{mark.column + 1}: {problem}", hint) from error
    return reading


def compose(reading: Reading, text: str, loader: Any) -> bool:
    """Read the one document of a text by its nodes, False where there is none; YAMLError, as `explain` tells it."""
    node = yaml.compose(text, Loader=loader)
    if node is not None:
        reading.data = _value(reading, text, node, "")
    return node is not None


def explain(error: yaml.MarkedYAMLError) -> tuple[str, str]:
    """What is wrong with a document, and what to do about it."""
    problem = str(error.problem)[:MAX_PROBLEM]
    if error.note:
        return problem, error.note
    if isinstance(error, yaml.composer.ComposerError):
        return ALIAS if "alias" in problem or "anchor" in problem else SECOND
    if re.search("unknown escape character|expected escape sequence", problem):
        return ESCAPE
    if "'\\t'" in problem:
        return f"not YAML: {problem}", "indent with spaces, not tabs"
    if "cannot start any token" in problem:
        return f"not YAML: {problem}", "put the value in quotes"
    hint = "look there and on the line before for an open quote or bracket, a missing colon, or another indent"
    return f"not YAML: {problem}", hint


def conflict(text: str) -> int:
    """The line where git left both sides of a merge in a text; 0 where it did not."""
    found = re.search(r"^<{7} ", text, re.MULTILINE)
    between = found and re.search(r"^={7}$", text[found.end() :], re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found and between else 0


def _decoded(text: bytes, file: str) -> str:
    if len(text) > MAX_BYTES:
        raise JobError(f"{file}: {len(text)} bytes; at most {MAX_BYTES} are read", "is this the right file?")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise JobError(f"{file}:{line}: the file is not UTF-8", "save it as UTF-8 in your editor") from error


def _refused(at: Any, problem: str, hint: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark, note=hint)


def _check_bare(text: str, node: yaml.Node) -> None:
    if match := PROPERTY.match(text, node.start_mark.index):
        tag = f"the tag {shown(match[0])} is not taken", "leave the tag out; a value that begins with ! needs quotes"
        raise _refused(node, *(ALIAS if match[0] == "&" else tag))


def _value(reading: Reading, text: str, node: yaml.Node, where: str) -> Any:
    _check_bare(text, node)
    reading.lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(reading, node, where)
    if isinstance(node, yaml.SequenceNode):
        return [_value(reading, text, item, f"{where}[{index}]") for index, item in enumerate(node.value)]
    return _mapping(reading, text, node, where)


def _scalar(reading: Reading, node: yaml.ScalarNode, where: str) -> str | None:
    text, plain = str(node.value), not node.style
    if re.search("[\ud800-\udfff]", text):
        raise _refused(node, "half a character, written as \\uD800 to \\uDFFF", "write the character itself")
    if node.style == '"' and not text.isprintable():
        reading.escaped.add(where)
    if plain and (text in NULLS or (text.lower() in BARE and text in (text.lower(), text.capitalize(), text.upper()))):
        reading.bare[where] = text
    return None if plain and text in ("", *NULLS) else text


def _mapping(reading: Reading, text: str, node: yaml.Node, where: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key, item in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(key, "a key must be plain text", "write it as `key: value`")
        path, line = f"{where}.{key.value}" if where else key.value, key.start_mark.line + 1
        _check_bare(text, key)
        reading.lines.setdefault(path, line)
        value = _value(reading, text, item, path)
        if key.value in first:
            say(reading, path, f"the key stands twice, on line {first[key.value]} and on line {line}", "keep one of the two")
        elif value is not None:
            values[key.value] = value
        first.setdefault(key.value, line)
    return values


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """What to say about a word that is none of the known ones."""
    import difflib

    words = list(known)
    near = {known.lower(): known for known in words}
    close = difflib.get_close_matches(word.lower(), near, 1)
    return f'did you mean "{near[close[0]]}"?' if close else f"known: {', '.join(words)}"


def fit(reading: Reading, data: Any, wanted: Any, where: str = "") -> Any:
    """The data with short forms written out, for `msgspec.convert`; whatever does not fit the type becomes a complaint.

    A type may carry a `msgspec.Meta(extra=...)`: `check` (text → complaint or ""), `way` (what to do about it),
    `words` (all that are allowed), `short` (what a text in the place of this value stands for).
    """
    extra: dict[str, Any] = {}
    if typing.get_origin(wanted) is typing.Annotated:
        wanted, *metas = typing.get_args(wanted)
        extra = {name: value for meta in metas for name, value in (meta.extra or {}).items()}
    if isinstance(wanted, types.UnionType):
        wanted = typing.get_args(wanted)[0]
    word = reading.bare.get(where, "") if isinstance(data, str) and wanted is not bool else ""
    if short := isinstance(data, str) and "short" in extra:
        data = extra["short"](data)
    kind: type = list if typing.get_origin(wanted) is tuple else dict if issubclass(wanted, msgspec.Struct) else str
    if kind is list and data and isinstance(data, str | dict):  # one stands for a list of one
        return [fit(reading, data, typing.get_args(wanted)[0], where)]
    if not isinstance(data, kind):
        say(reading, where, f"expected {KINDS[kind]}, found {KINDS[type(data)]}", extra.get("way", ""))
    elif isinstance(data, list):
        item = typing.get_args(wanted)[0]
        return [fit(reading, value, item, where if short else f"{where}[{index}]") for index, value in enumerate(data)]
    elif isinstance(data, dict) and not word:
        return _fit_record(reading, data, wanted, where)
    elif isinstance(data, str) and (complaint := _fit_text(data, wanted, extra)):
        say(reading, where, complaint, ESCAPE[1] if where in reading.escaped else extra.get("way", ""))
    elif word:
        _say_bare(reading, where, word)
    return data


def _say_bare(reading: Reading, where: str, word: str) -> None:
    meaning = BARE.get(word.lower(), "nothing")
    say(reading, where, f"{word} without quotes is {meaning} to YAML, and a text is wanted", f'write it in quotes: "{word}"')


def _fit_record(reading: Reading, data: dict[str, Any], wanted: type, where: str) -> dict[str, Any]:
    fields = _fields(wanted)
    dot = f"{where}." if where else ""
    for key in data.keys() - fields.keys():
        say(reading, dot + key, f"unknown key; {nearest(key, fields)}")
    for name, field in fields.items():
        if field.required and name not in data:
            say(reading, dot + name, "missing")
        elif name not in data and dot + name in reading.bare and _is_text(field.type):
            _say_bare(reading, dot + name, reading.bare[dot + name])
    return {name: fit(reading, data[name], field.type, dot + name) for name, field in fields.items() if name in data}


def _is_text(wanted: Any) -> bool:
    return wanted is str or (typing.get_origin(wanted) is typing.Annotated and typing.get_args(wanted)[0] is str)


@functools.lru_cache(maxsize=64)  # a job may have hundreds of records of one type
def _fields(wanted: type) -> dict[str, Any]:
    return {field.name: field for field in msgspec.structs.fields(wanted)}


def _fit_text(text: str, wanted: type, extra: dict[str, Any]) -> str:
    if wanted is bool and text.lower() not in ("true", "false"):
        return f'expected true or false, found "{shown(text)}"'
    words: tuple[str, ...] = extra.get("words", ())
    if words and text not in words:
        return f'unknown value "{shown(text)}"; {nearest(text, words)}'
    check: Callable[[str], str] = extra.get("check", lambda text: "")
    return check(text)
