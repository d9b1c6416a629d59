"""A model card in a README: what stands between our marks is ours, all else is the user's and stays as it is."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from llamacpp_orchestrator.card import front as card_front
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted

KEYS = ("# orchestrate:begin", "# orchestrate:end")
SECTION = ("<!-- orchestrate:begin -->", "<!-- orchestrate:end -->")
# As they may look once somebody has touched them.
KEYS_MARK = re.compile(r"^[ \t]*#[ \t]*orchestrate:(begin|end)[ \t]*(?=\r?$)", re.MULTILINE)
SECTION_MARK = re.compile(r"<!--\s*orchestrate:(begin|end)\s*-->")
# Where the hub sees front matter: huggingface_hub, repocard.py, REGEX_YAML_BLOCK.
OPEN = re.compile(r"\ufeff?\s*---\r?\n")
CLOSE = re.compile(r"^---[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
BOM = "\ufeff"
# What PyYAML raises for a value that its tag does not fit, such as !!bool x or 2024-13-45.
TAG_ERRORS = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)


class Readme(msgspec.Struct, frozen=True, kw_only=True):
    """A README in its parts: up to the line that opens the front matter, that, and from the line that closes it on."""

    top: str
    front: str
    body: str


class Around(msgspec.Struct, frozen=True, kw_only=True):
    """What is the user's, before and after ours."""

    before: str
    after: str


def whole(front: str, body: str) -> str:
    """A card of its own: front matter and section, each between its marks."""
    return f"---\n{KEYS[0]}\n{front}\n{KEYS[1]}\n---\n\n{SECTION[0]}\n{body}\n{SECTION[1]}\n"


def merged(existing: str, card: str) -> str:
    """What a README becomes: our keys and our section are replaced, or added; the user's own keys win.

    OrchestrateError where the front matter cannot be read, or a mark is lost or doubled.
    """
    theirs, ours = read(existing), read(card)
    keys, section = _around(theirs.front, KEYS_MARK), _around(theirs.body, SECTION_MARK)
    end = _line_end(theirs.top + _of_user(theirs.front, KEYS_MARK) + _of_user(theirs.body, SECTION_MARK))
    own = _mapping(_of_user(theirs.front, KEYS_MARK))
    left = {key: value for key, value in _mapping(ours.front).items() if key not in own}
    block = "\n".join((KEYS[0], *([card_front.dump(left)] if left else []), KEYS[1])).replace("\n", end)
    front = f"{keys.before}{block}{keys.after}" if keys else f"{theirs.front}{block}{end}"
    if not _holds(front, own, left):
        message = "the front matter of README.md is not in the form of one `key: value` a line, and ours cannot stand beside it"
        raise OrchestrateError(message, "write each of its keys at the beginning of a line, without braces around all of them")
    text = ours.body[ours.body.index(SECTION[0]) :].rstrip("\n").replace("\n", end)
    if section:
        return f"{theirs.top}{front}{section.before}{text}{section.after}"
    gap = "" if re.search(r"\n\r?\n\Z", theirs.body) else end if theirs.body.endswith("\n") else end * 2
    return f"{theirs.top}{front}{theirs.body}{gap}{text}{end}"


def read(text: str) -> Readme:
    """The parts of a README; one without front matter gets an empty one. OrchestrateError where it is not closed."""
    opening = OPEN.match(text)
    if not opening:
        bom, rest = text[: text.startswith(BOM)], text[text.startswith(BOM) :]
        end = _line_end(_of_user(rest, SECTION_MARK))
        return Readme(top=f"{bom}---{end}", front="", body=f"---{end}{end if rest else ''}{rest}")
    closing = CLOSE.search(text, opening.end())
    if not closing:
        message = "README.md begins with a line ---, as front matter does, and no second one ends it"
        raise OrchestrateError(message, "write --- under its last key; or *** on top, if it is to be a line across the page")
    return Readme(top=text[: opening.end()], front=text[opening.end() : closing.start()], body=text[closing.start() :])


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _of_user(text: str, mark: re.Pattern[str]) -> str:
    """A part of a README without what is ours in it."""
    around = _around(text, mark)
    return around.before + around.after if around else text


def _around(text: str, mark: re.Pattern[str]) -> Around | None:
    """What lies before and after our two marks; None without any, OrchestrateError for a lost or a doubled one."""
    found = list(mark.finditer(text))
    if not found:
        return None
    if [match[1] for match in found] != ["begin", "end"]:
        words = ", ".join(quoted(match[0].strip()) for match in found[:4])
        message = f"README.md has other marks of orchestrate's part than one begin and, after it, one end: {words}"
        raise OrchestrateError(message, "put them right, or remove that part with all of its marks: a new one is added then")
    return Around(before=text[: found[0].start()], after=text[found[1].end() :])


def _mapping(front: str) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(front)
    except (yaml.YAMLError, RecursionError, *TAG_ERRORS) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1} of it)" if where else ""
        message = f"the front matter of README.md is not YAML{line}: {quoted(getattr(error, 'problem', None) or error)}"
        raise OrchestrateError(message, "correct it on the hub, or between the two lines ---") from error
    if not isinstance(content, dict | None):
        message = "the front matter of README.md is no list of `key: value`"
        raise OrchestrateError(message, "write it as `license: mit`, a key in each line, or remove it with its two lines ---")
    return content or {}


def _holds(front: str, own: dict[Any, Any], ours: dict[Any, Any]) -> bool:
    """Tell whether front matter has the user's keys and ours, and no others."""
    try:
        content = _mapping(front)
    except OrchestrateError:
        return False
    return content.keys() == own.keys() | ours.keys() and all(content[key] == value for key, value in ours.items())
