"""The text of a lock: YAML that gives the same bytes for the same lock, and complaints that name the line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from typing import TypeVar

import msgspec
import yaml

from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.util import yaml_reader
from llamacpp_orchestrator.util.yaml_reader import Reading

T = TypeVar("T")
AGAIN = "remove it and run `orchestrate lock` again"


def load(text: str, name: str, build: Callable[[Any], T]) -> T:
    """Build a record of the data in a lock's text; LockError with the line, where an error ends in " - at `$.path`"."""
    reading = Reading(file=name)
    try:
        if not yaml_reader.compose(reading, text, getattr(yaml, "CBaseLoader", yaml.BaseLoader)):
            raise ValueError("it is empty")
        if not reading.complaints:
            return build(reading.data)
        line, problem, _ = reading.complaints[0]
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError, ValueError) as error:
        if line := yaml_reader.conflict(text):
            message = f"{name}:{line}: a merge has left both sides of a conflict in the lock"
            raise LockError(message, f"keep one side (git checkout --ours, or --theirs, -- {name}), or {AGAIN}") from error
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", "") or error)
        place = re.search(r" - at `(?:key in )?\$\.?([^`]*)`", problem)
        line = mark.line + 1 if mark else yaml_reader.line_of(reading, place[1]) if place else 1
    raise LockError(f"{name}:{line}: the lock is damaged: {problem}", f"restore it, or {AGAIN}")


def dump(plain: dict[str, Any]) -> str:
    """Plain data as a lock's text; equal data give equal bytes."""

    class Dumper(yaml.SafeDumper):
        pass

    def block(dumper: Any, value: str) -> Any:
        # YAML has more ends of lines than we have; in double quotes they are written as escapes.
        style = '"' if re.search("[\r\x85\u2028\u2029]", value) else "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    def mapping(dumper: Any, value: dict[str, Any]) -> Any:
        # One line for each file and asset: long lists stay readable, and a diff shows what moved.
        one_line = "sha256" in value or "oid" in value or "kind" in value
        return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=one_line)

    Dumper.add_representer(str, block)
    Dumper.add_representer(dict, mapping)
    return str(yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=4096))
