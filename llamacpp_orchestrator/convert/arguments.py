"""What a script would say to the options that a job passes on, told without running it: argparse's own rules over its options."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert.capabilities import Option
from llamacpp_orchestrator.source.tree import SCRIPTS

PAIR = "LoraTorchTensor"  # the two matrices of an adapter in the place of one of the base


def complaint(known: Sequence[Option], args: Sequence[str]) -> tuple[str, str] | None:
    """What argparse would say to these words, and what to do; None when it takes them, or when that cannot be told."""
    waiting: Option | None = None
    for word in args if known else ():
        if waiting and waiting.words and not _dashed(word):
            if waiting.choices and word not in waiting.choices:
                return _choice(waiting, word)
            waiting = None
            continue
        if waiting and waiting.words:
            return _unfinished(waiting)
        if word == "--" or not _dashed(word):
            # Whatever is no option is a second model to the script; where options take lists it may belong to one.
            listing = word == "--" or any(option.words < 0 for option in known)
            return None if listing else (f"would not know what to do with `{word}` in `args`", "options begin with --")
        name, equals, value = word.partition("=")
        found = named(known, name)
        if len(found) != 1:
            return _unnamed(known, name, found)
        (option,) = found
        if option.words < 0:
            return None
        if equals and not option.words:
            return f"takes no value for `{name}`", f"write `{name}` alone"
        if equals and option.choices and value not in option.choices:
            return _choice(option, value)
        waiting = option if option.words and not equals else None
    return _unfinished(waiting) if waiting else None


def _dashed(word: str) -> bool:
    # As argparse sees it: a negative number is a value, and so is what has a blank in it.
    return word.startswith("-") and len(word) > 1 and " " not in word and not re.fullmatch(r"-\d+|-\d*\.\d+", word)


def named(known: Iterable[Option], name: str) -> list[Option]:
    """The options that a word means: the one of its name, else all that it is the beginning of."""
    exact = [option for option in known if name in option.names]
    return exact or [option for option in known if name.startswith("--") and any(each.startswith(name) for each in option.names)]


def _choice(option: Option, value: str) -> tuple[str, str]:
    return f"does not take `{value}` for `{option.names[0]}`", f"it takes {', '.join(option.choices)}"


def _unfinished(option: Option) -> tuple[str, str]:
    return f"wants a value after `{option.names[0]}`", "list it as the next of `args`, or join both with ="


def _unnamed(known: Iterable[Option], name: str, found: Sequence[Option]) -> tuple[str, str] | None:
    if found:
        return f"has several options that begin with `{name}`", ", ".join(option.names[0] for option in found)
    if not name.startswith("--"):
        return None if any(each[:2] == name[:2] for option in known for each in option.names) else _missing(known, name)
    return _missing(known, name)


def _missing(known: Iterable[Option], name: str) -> tuple[str, str]:
    names = [each for option in known for each in option.names if each.startswith("-")]
    near = difflib.get_close_matches(name, names, 3, 0.5)
    return f"has no option `{name}`", f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names)}"


def chooses_adapter_type(tree: Path) -> bool:
    """Whether `--outtype auto` of an adapter can end well: the base's code asks matrices for `dim()`, which a LoRA's may lack."""
    base, pairs = (
        _class(capabilities.core_module(tree), "ModelBase"),
        _class(ast.parse((tree / SCRIPTS["adapter"]).read_bytes()), PAIR),
    )
    found = capabilities.method(base, "__init__")
    asked = {ast.unparse(node.func) for node in ast.walk(found[1]) if isinstance(node, ast.Call)} if found else set()
    return "tensor.dim" not in asked or not pairs or capabilities.method(pairs, "dim") is not None


def _class(module: ast.Module, name: str) -> list[ast.ClassDef]:
    return [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]
