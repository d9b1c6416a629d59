"""The house rules about size and shape that a reader relies on: nothing grows past what one can hold in mind."""

from __future__ import annotations

import ast
import collections
import functools
import graphlib
import re
import statistics
from pathlib import Path

import pytest

from llamacpp_orchestrator import inside
from tests.support import ROOT

PACKAGE = ROOT / "llamacpp_orchestrator"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
NAMES = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}
MOST_LINES, MOST_FUNCTION, MEDIAN_FUNCTION, MOST_BEHAVIOUR = 350, 60, 9, 3
MOST_AT_ROOT, MOST_IN_FOLDER, MOST_PARAMETERS = 10, 14, 8
DRAWN = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
# Errors and records are data; so is what another library makes us derive from.
DATA = (
    "Struct", "Record", "Error", "Exception", "Stopped", "CommandFailed", "Session", "SafeDumper", "BaseLoader", "Protocol",
    "CommitOperationAdd", "BufferedIOBase", "click.Path",
)  # fmt: skip


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions() -> list[tuple[str, int]]:
    found = []
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                found.append((f"{path.name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1))
    return found


def imports(path: Path) -> set[str]:
    """The modules of ours that a module names at its top, where an import runs when it is loaded."""
    found = set()
    for node in parsed(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE.name):
            deeper = {f"{node.module}.{alias.name}" for alias in node.names} & set(NAMES.values())
            found |= deeper or {node.module}
    return found - {PACKAGE.name}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_can_be_read_in_one_sitting_and_says_why_it_exists(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert ast.get_docstring(parsed(path)) or path.name == "__init__.py"


def test_functions_are_short() -> None:
    found = functions()
    assert not [function for function in found if function[1] > MOST_FUNCTION]
    assert statistics.median(lines for _, lines in found) <= MEDIAN_FUNCTION


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    return [arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if arg.arg != "self"]


def test_functions_take_few_things_and_a_job_comes_with_its_lock() -> None:
    signatures = {
        f"{path.name}:{node.name}": parameters(node)
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
    }
    assert not [name for name, args in signatures.items() if len(args) > MOST_PARAMETERS]
    types = {name: [ast.unparse(arg.annotation) for arg in args if arg.annotation] for name, args in signatures.items()}
    assert not [name for name, words in types.items() if "Context" in words and any(word.startswith("Lock") for word in words)]


def test_few_classes_behave() -> None:
    behaving = [
        node.name
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and not any(ast.unparse(base).endswith(DATA) for base in node.bases)
    ]
    assert len(behaving) <= MOST_BEHAVIOUR, behaving


def test_imports_point_one_way() -> None:
    graph = {NAMES[path]: imports(path) for path in MODULES}
    assert sum(map(len, graph.values())) > 50
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(MODULES)


def calls(path: Path) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)}


def test_each_door_is_kept_by_one_module() -> None:
    scripts = set(Path(inside.__file__).parent.glob("[!_]*.py"))
    ours = [path for path in MODULES if path not in scripts]
    assert {path.name for path in ours if "print" in calls(path)} == {"console.py"}
    assert {path.name for path in ours if calls(path) & {"subprocess.Popen", "subprocess.run"}} == {"process.py"}
    clicking = {path for path in ours if "import click" in path.read_text(encoding="utf-8")}
    assert {path.name for path in clicking if path.parent != PACKAGE / "cli"} == {"__main__.py"}


def test_a_folder_can_be_kept_in_mind() -> None:
    counts = collections.Counter(path.relative_to(PACKAGE).parent for path in MODULES if path.name != "__init__.py")
    assert counts.pop(Path()) <= MOST_AT_ROOT
    assert not {folder: count for folder, count in counts.items() if count > MOST_IN_FOLDER}


def test_folders_lie_as_they_are_drawn() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| .* \| ([\w, -]+) \|$", DRAWN, re.MULTILINE)
    drawn = {name: set(found.replace("-", "").replace(",", " ").split()) for name, found in rows}
    folders = {path.parent.name for path in MODULES if path.parent != PACKAGE} - {"inside"}
    real: dict[str, set[str]] = {name: set() for name in folders}
    for path in MODULES:
        for node in ast.walk(parsed(path)) if path.parent.name in folders else ():
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE.name):
                _, *parts = node.module.split(".")
                real[path.parent.name] |= set(parts[:1] or [alias.name for alias in node.names]) & folders
    assert drawn == {name: found - {name} for name, found in real.items()}
    order = list(drawn)
    assert not [(name, other) for name in order for other in drawn[name] if order.index(other) > order.index(name)]


def test_what_a_newcomer_is_sent_to_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)`", DRAWN)
    assert len(named) > 15 and not [name for name in named if not (PACKAGE / name).is_file()]


def test_no_test_lends_to_another() -> None:
    lent = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            else:
                continue
            lent += [f"{path.name}: {name}" for name in names if name == "conftest" or name.endswith("_test")]
    assert not lent
