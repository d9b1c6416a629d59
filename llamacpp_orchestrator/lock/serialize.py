"""The text of a lock: YAML that gives the same bytes for the same lock, and complaints that name the line."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import TypeVar

import msgspec

from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.util.yaml_reader import conflict

T = TypeVar("T")
AGAIN = "remove it and run `orchestrate lock` again"


def load(text: str, name: str, build: Callable[[Any], T]) -> T:
    """What `build` makes of the data in a lock's text; LockError with the line, where an error ends in " - at `$.path`"."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    lines: dict[str, int] = {}
    try:
        root = loader.get_single_node()
        if root is None:
            raise ValueError("it is empty")
        for place, line in _places(root, "$", set()):
            if lines.setdefault(place, line) != line:
                raise ValueError(f"the key stands twice - at `{place}`")
        return build(loader.construct_document(root))
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError, ValueError, AttributeError) as error:
        if line := conflict(text):
            message = f"{name}:{line}: a merge has left both sides of a conflict in the lock"
            raise LockError(message, f"keep one side (git checkout --ours, or --theirs, -- {name}), or {AGAIN}") from error
        mark = getattr(error, "problem_mark", None)
        said = str(getattr(error, "problem", "") or error)
        found = re.search(r" - at `(?:key in )?([^`]+)`", said)
        line = mark.line + 1 if mark else lines.get(found[1], 1) if found else 1
        raise LockError(f"{name}:{line}: the lock is damaged: {said}", f"restore it, or {AGAIN}") from error
    finally:
        loader.dispose()


def _places(node: Any, place: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """The line of every value by its path, as msgspec writes paths; ValueError where an alias brings a value twice."""
    if id(node) in seen:
        raise ValueError(f"it has an alias, which a lock never has - at `{place}`")
    seen.add(id(node))
    yield place, node.start_mark.line + 1
    pairs = node.value if isinstance(node.value, list) else ()
    for index, item in enumerate(pairs):
        key, value = item if isinstance(item, tuple) else (None, item)
        yield from _places(value, f"{place}.{key.value}" if key else f"{place}[{index}]", seen)


def dump(plain: dict[str, Any]) -> str:
    """Plain data as a lock's text; equal data give equal bytes."""
    import yaml

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
