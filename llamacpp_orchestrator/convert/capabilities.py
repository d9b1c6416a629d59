"""What the scripts of a tag know, read from their source without running it: architectures, tokenizers, options."""

from __future__ import annotations

import ast
import functools
import re
import threading
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llamacpp_orchestrator.source import syntax
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.util.store import text_of

BASES = ("ModelBase", "TextModel", "Model")
MAPS = ("TEXT_MODEL_MAP", "MMPROJ_MODEL_MAP")
# Kinds of rope scaling that change every text → a word without which no script can write them. `dynamic` changes only what
# is longer than the model's own context, and no tag writes it.
SCALINGS = {"linear": "linear", "yarn": "yarn", "longrope": "long_factor", "su": "long_factor", "llama3": "low_freq_factor"}

Classes = dict[str, ast.ClassDef]


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """What a tag does with the config of an architecture: its name in a GGUF, the texts in its classes and in those `own` below
    the base, what these set by themselves, `written` (an attribute, or a key of the GGUF as its writer calls it), and the methods
    that are `called` in whatever of it all runs."""

    name: str = ""
    own: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    called: frozenset[str] = frozenset()


_parse = functools.lru_cache(maxsize=16)(syntax.parse)
_parsing = threading.Lock()  # what one thread parses the others wait for


def _parsed(path: Path) -> ast.Module:
    try:
        with _parsing:
            return _parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError):
        return ast.Module(body=[], type_ignores=[])  # what cannot be read knows nothing, and nothing is refused for it


def texts(nodes: list[ast.expr]) -> tuple[str, ...]:
    """Those of some expressions that are texts."""
    return tuple(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def options(tree: Path, kind: str) -> tuple[str, ...]:
    """The names of the options of one of the two scripts in their order, by its text; () when that does not say."""
    calls = re.findall(r"add_argument\(\s*((?:[\"'][\w-]+[\"'],?\s*)+)", text_of(tree / SCRIPTS[kind]))
    return tuple(name for call in calls for name in re.findall(r"[\"'](-[\w-]+)", call))


def outtypes(tree: Path, kind: str) -> tuple[str, ...]:
    """The values that this tag's script takes for `--outtype`; () when its text does not say."""
    listed = re.search(r"[\"']--outtype[\"'][^)]*?choices=\[([^\]]*)\]", text_of(tree / SCRIPTS[kind]))
    return tuple(re.findall(r"\w+", listed[1])) if listed else ()


def chooses_adapter_type(tree: Path) -> bool:
    """Whether `--outtype auto` of an adapter can end well: the base's code asks matrices for `dim()`, which a LoRA's may lack."""
    return "tensor.dim()" not in text_of(core(tree)) or "def dim(" in text_of(tree / SCRIPTS["adapter"])


def _map(module: ast.Module, name: str) -> dict[str, str] | None:
    for node in module.body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(target, ast.Name) and target.id == name and isinstance(value, ast.Dict):
            keys, values = texts([key for key in value.keys if key]), texts(value.values)
            return dict(zip(keys, values, strict=True)) if len(keys) == len(values) == len(value.keys) else None
    return None


def _sources(tree: Path) -> list[Path]:
    return [tree / SCRIPTS["model"], *sorted((tree / "conversion").glob("*.py"))]


def _classes(paths: list[Path]) -> Classes:
    return {node.name: node for path in paths for node in _parsed(path).body if isinstance(node, ast.ClassDef)}


def _registered(node: ast.ClassDef) -> tuple[str, ...] | None:
    names: tuple[str, ...] = ()
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "register":
            if len(texts(call.args)) != len(call.args):
                return None
            names += texts(call.args)
    return names


def lineage(known: Classes, name: str) -> list[ast.ClassDef]:
    """A class and all that it inherits from, nearest first, as far as they are in the tree."""
    node = known.get(name)
    if node is None:
        return []
    found = [node]
    for base in node.bases:
        if ast.unparse(base) != name:
            # A base that two classes share comes after both of them.
            above = lineage(known, ast.unparse(base))
            found = [each for each in found if each not in above] + above
    return found


def _assigned(node: ast.ClassDef, name: str) -> Iterator[ast.expr]:
    """What the body of a class gives to a name."""
    for line in node.body:
        target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0] if isinstance(line, ast.Assign) else None
        value = line.value if isinstance(line, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(target, ast.Name) and target.id == name and value:
            yield value


def _is_mmproj(known: Classes, name: str) -> bool:
    named = next((value for node in lineage(known, name) for value in _assigned(node, "model_arch")), None)
    return named is not None and ast.unparse(named).endswith(".MMPROJ")


@functools.lru_cache(maxsize=16)  # a tree in the cache does not change
def converter(tree: Path, architecture: str) -> tuple[ast.ClassDef, ...]:
    """The class that converts an architecture as a model, with all that it inherits from; () when that cannot be told."""
    if not architecture:  # an adapter has none, and is not worth a look through all classes
        return ()
    module = (_map(_parsed(tree / "conversion" / "__init__.py"), MAPS[0]) or {}).get(architecture)
    known = _classes(_needed(tree, module) if module else _sources(tree))
    found = [name for name, node in known.items() if architecture in (_registered(node) or ()) and not _is_mmproj(known, name)]
    return tuple(lineage(known, found[0])) if len(found) == 1 else ()


def _needed(tree: Path, module: str) -> list[Path]:
    """A module of `conversion/` and those of its neighbours that it imports."""
    found: list[Path] = []
    waiting = [module]
    while waiting:
        path = tree / "conversion" / f"{waiting.pop()}.py"
        if path not in found:
            found.append(path)
            nodes = (node for node in _parsed(path).body if isinstance(node, ast.ImportFrom) and node.level == 1)
            waiting += [node.module for node in nodes if node.module]
    return found


def method(classes: Sequence[ast.ClassDef], name: str) -> tuple[str, ast.FunctionDef] | None:
    """The first definition of a method in a lineage, with the name of its class."""
    for node in classes:
        for line in node.body:
            if isinstance(line, ast.FunctionDef) and line.name == name:
                return node.name, line
    return None


@functools.lru_cache(maxsize=16)
def decisions(tree: Path, architecture: str) -> Decisions:
    """How a tag goes about the config of an architecture; empty where its class cannot be told."""
    classes = converter(tree, architecture)
    own = [node for node in classes if node.name not in BASES]
    name = next((ast.unparse(value) for node in own for value in _assigned(node, "model_arch")), "").rpartition(".")[2]
    keys = tree / "gguf-py" / "gguf" / "constants.py"
    known = keys.read_text(encoding="utf-8") if keys.is_file() else ""
    match = re.search(rf"MODEL_ARCH\.{name}:\s*\"([^\"]+)\"", known) if name else None
    stored = [ast.unparse(node) for where in own for node in ast.walk(where) if isinstance(node, ast.Attribute)]
    return Decisions(
        name=match[1] if match else "",
        own=frozenset(text for node in own for text in within(node)),
        read=frozenset(text for node in classes for text in within(node)),
        written=frozenset(text.removeprefix("self.").removeprefix("gguf_writer.add_") for text in stored),
        called=frozenset(name for function in effective(classes) for name in called(function)),
    )


def core_module(tree: Path) -> ast.Module:
    """Where the base classes stand: in `conversion/base.py`, or in the one script."""
    path = tree / "conversion" / "base.py"
    return _parsed(path if path.is_file() else tree / SCRIPTS["model"])


def compared(where: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
    """The texts that a variable of one of these names is compared with."""
    for node in ast.walk(where):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id in names:
            for other in node.comparators:
                yield from texts(other.elts if isinstance(other, (ast.Tuple, ast.List, ast.Set)) else [other])


def functions(tree: Path, name: str) -> list[ast.FunctionDef]:
    """The functions of a name where the base classes stand."""
    return [node for node in ast.walk(core_module(tree)) if isinstance(node, ast.FunctionDef) and node.name == name]


def core(tree: Path) -> Path:
    """The file in which `get_vocab_base_pre` stands."""
    path = tree / "conversion" / "base.py"
    return path if path.is_file() else tree / SCRIPTS["model"]


def reads(tree: Path, architectures: Iterable[str], text: str) -> bool:
    """Whether the module or the class that converts one of some architectures names a text."""
    known = _parsed(tree / "conversion" / "__init__.py")
    for architecture in architectures:
        modules = {found[architecture] for name in MAPS if (found := _map(known, name)) and architecture in found}
        places: list[ast.AST] = [_parsed(tree / "conversion" / f"{module}.py") for module in modules]
        places += [] if modules else converter(tree, architecture)[:1]
        if any(text in word for place in places for word in within(place)):
            return True
    return False


def mentions(tree: Path, text: str) -> bool:
    """Whether a text stands anywhere in the sources of the converter."""
    return any(text.encode() in path.read_bytes() for path in _sources(tree) if path.is_file())


def knows(tree: Path, name: str) -> bool:
    """Whether the sources of the converter name something, such as an architecture or a digest, at all."""
    return any(mentions(tree, f"{quote}{name}{quote}") for quote in "\"'")


def architectures(tree: Path) -> frozenset[str]:
    """All that may be names of architectures in the sources of the converter; what begins with `For` is the end of one."""
    return frozenset(name for path in _sources(tree) for name in re.findall(r"[\"']((?!For)[A-Z]\w{4,})[\"']", text_of(path)))


def within(node: ast.AST) -> Iterator[str]:
    """Every text that stands in a part of a source."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def layouts(tree: Path) -> frozenset[str]:
    """Names of files by which a tag recognizes models that are not in Transformers' layout; it reads them in its own way."""
    asked = r"\(dir_model / \"([\w.]+\.json)\"\)\.is_file"
    return frozenset(name for path in _sources(tree) for name in re.findall(asked, text_of(path))) - {"config.json"}


def effective(classes: Sequence[ast.ClassDef]) -> list[ast.FunctionDef]:
    """The methods of a lineage that run: of each name the lowest, and above it as long as each calls the one above itself."""
    chosen, closed = [], set[str]()
    for node in classes:
        for line in node.body:
            if isinstance(line, ast.FunctionDef) and line.name not in closed:
                chosen.append(line)
                closed |= set() if line.name in called(line) else {line.name}
    return chosen


def scalings(classes: Sequence[ast.ClassDef]) -> frozenset[str]:
    """The kinds of rope scaling that a class writes; the others it passes over."""
    words = {text for function in effective(classes) for text in within(function)}
    return frozenset(kind for kind, word in SCALINGS.items() if word in words)


def called(where: ast.AST) -> set[str]:
    """The methods that a part of a source calls, by name."""
    return {node.func.attr for node in ast.walk(where) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
