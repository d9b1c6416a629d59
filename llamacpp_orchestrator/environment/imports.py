"""Imports of a tag's scripts, inside functions too, and a trial of all of them in an environment."""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from pathlib import Path

import msgspec
from packaging.utils import canonicalize_name

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.source import syntax
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import interpreter as system_interpreter
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.store import write_atomically

PROVEN = "imports.json"  # in the folder of an environment: the lines of import that were tried in it
LIMIT_SECONDS = 900.0  # what a virus scanner makes of the first import of torch
LINE = re.compile(r"^[ \t]*(?:from[ \t]+([A-Za-z_]\w*)[\w.]*[ \t]+import\b.*|import[ \t]+([A-Za-z_]\w*).*)$", re.MULTILINE)
CAUGHT = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")
# Loaded for each model; the other files of `conversion/` are loaded for the architectures that they convert.
CORE = ("__init__.py", "base.py")


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """One import of upstream's, names in the module with it; `needed` when without it the scripts do not even start."""

    module: str
    names: tuple[str, ...]
    where: str
    needed: bool


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """The failure of an import: the module or name is not there (`lacking`), or breaks; and the package that it belongs to."""

    lacking: bool
    error: str
    distribution: str
    version: str


def files(tree: Path) -> list[Path]:
    """The sources that the two scripts run or may load."""
    scripts = [tree / script for script in SCRIPTS.values() if (tree / script).is_file()]
    return [*scripts, *sorted((tree / "conversion").glob("*.py")), *sorted((tree / "gguf-py" / "gguf").glob("*.py"))]


def lines(tree: Path) -> frozenset[str]:
    """Every line of a tree that imports from elsewhere, without parsing: what tells whether another tree asks for more."""
    local = _local(tree)
    return frozenset(
        " ".join(match[0].split("#")[0].split())
        for path in files(tree)
        for match in LINE.finditer(path.read_text(encoding="utf-8", errors="replace"))
        if (match[1] or match[2]) not in local
    )


def _local(tree: Path) -> frozenset[str]:
    return sys.stdlib_module_names | {"gguf", "conversion"} | {path.stem for path in tree.glob("*.py")}


def external(tree: Path) -> tuple[Import, ...]:
    """Imports from elsewhere in the scripts of a tree, each module and name once, at its first place.

    Left out is what only a type checker sees, and what the source itself can do without: an import in a `try` that
    catches its failure.
    """
    local, by_name = _local(tree), dict[tuple[str, tuple[str, ...]], Import]()
    for path in files(tree):
        try:
            parsed = syntax.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            continue  # the script itself will say so
        core = path.parent.name != "conversion" or path.name in CORE
        for module, names, line, inner in _walk(parsed.body, False):
            if module.partition(".")[0] not in local:
                where = f"{path.relative_to(tree).as_posix()}, line {line}"
                entry = Import(module=module, names=names, where=where, needed=core and not inner)
                before = by_name.get((module, names))
                if before is None or (entry.needed and not before.needed):
                    by_name[module, names] = entry
    return tuple(by_name.values())


def _walk(body: list[ast.stmt], inner: bool) -> Iterator[tuple[str, tuple[str, ...], int, bool]]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, (), node.lineno, inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, tuple(alias.name for alias in node.names if alias.name != "*"), node.lineno, inner
        elif isinstance(node, ast.Try) and any(map(_catches, node.handlers)):
            yield from _walk([*node.orelse, *node.finalbody], inner)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in (getattr(node.test, "id", ""), getattr(node.test, "attr", "")):
            yield from _walk(node.orelse, inner)
        else:
            deeper = inner or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.If))
            for name in ("body", "orelse", "finalbody"):
                yield from _walk(getattr(node, name, []), deeper)
            for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
                yield from _walk(part.body, True)


def _catches(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or any(name in CAUGHT for name in re.findall(r"\w+", ast.unparse(handler.type)))


def prove(
    entry: Path,
    interpreter: Interpreter,
    statements: frozenset[str],
    read: Callable[[], tuple[Import, ...]],
    named: Collection[str],
    overridden: Collection[str],
    tell: Tell,
) -> None:
    """Import once what the scripts of a tree import, unless all of it was imported in this environment before.

    `statements` are the tree's `lines`, `read` answers with what `external` finds in it. `named` are the packages (canonical
    names) that upstream's requirements name, `overridden` those that the job does. OrchestrateError for one of them that cannot
    be imported, and for what the scripts cannot start without; a name that another version than upstream's does not have is a
    note, since only some models need it. What a script imports in a function and no requirement names is for few models, too:
    the log has it.
    """
    before = _proven(entry)
    if statements <= before:
        return
    tell("importing what the scripts import")
    checked, log = read(), interpreter.log
    for line, trouble in zip(checked, _tried(checked, interpreter), strict=True):
        if trouble is None or not (line.needed or canonicalize_name(trouble.distribution) in named):
            continue
        cause, remedy = diagnose.machine(1, trouble.error)
        if cause:
            message = f"the environment cannot be used: {cause} ({_statement(line)}: {_reason(trouble)})"
            raise OrchestrateError(message, remedy, log)
        message = f"{_statement(line)} ({line.where}) fails with {_version_of(trouble)}: {_reason(trouble)}"
        if trouble.lacking and not line.needed and canonicalize_name(trouble.distribution) in overridden:
            tell(f"note: {message}; models that need it will not convert")
            continue
        raise OrchestrateError(f"the environment cannot run this tag's scripts: {message}", _way(trouble, overridden), log)
    write_atomically(entry / PROVEN, json.dumps(sorted(statements | before)))


def _proven(entry: Path) -> frozenset[str]:
    try:
        return frozenset(json.loads(text_of(entry / PROVEN)))
    except ValueError:
        return frozenset()


def _tried(checked: tuple[Import, ...], interpreter: Interpreter) -> list[Trouble | None]:
    log = interpreter.log
    with tempfile.TemporaryDirectory(prefix="imports-", ignore_cleanup_errors=True) as scratch:
        interpreter = msgspec.structs.replace(interpreter, scratch=Path(scratch))
        try:
            question = [[line.module, line.names] for line in checked]
            return system_interpreter.ask(interpreter, "imports", question, list[Trouble | None])
        except CommandFailed as error:
            last = next((line for line in reversed(error.tail.splitlines()) if line.startswith("import ")), "")
            message = f"the environment's Python {process.ended(error.code)} at `{last or 'its start'}`"
            hint = "free some memory, or put another version of that package under `environment.overrides`"
            raise error.retold(message, diagnose.machine(error.code, error.tail)[1] or hint, log) from error


def _statement(line: Import) -> str:
    return f"`from {line.module} import {', '.join(line.names)}`" if line.names else f"`import {line.module}`"


def _version_of(trouble: Trouble) -> str:
    return f"{trouble.distribution} {trouble.version}" if trouble.version else f"no {trouble.distribution} installed"


def _reason(trouble: Trouble) -> str:
    # Where the file lies says nothing to a reader, and takes a line.
    return re.sub(r" \([^()]*site-packages[^()]*\)$", "", trouble.error)


def _way(trouble: Trouble, overridden: Collection[str]) -> str:
    name = trouble.distribution
    if canonicalize_name(name) in overridden:
        return f"put another version of {name} under `environment.overrides`, or take it out there, and upstream's pin counts"
    again = "if the lock is an older one, resolve anew: orchestrate lock JOB --upgrade environment"
    return f"put a version that fits under `environment.overrides` (`overrides: [{name}==VERSION]`); {again}"
