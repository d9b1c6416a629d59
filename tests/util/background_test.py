"""Libraries that several threads want at once."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import llamacpp_orchestrator
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util import background

PACKAGE = Path(llamacpp_orchestrator.__file__).parent
# Of circular imports, and wanted by threads of several steps.
CIRCULAR = {"requests", "urllib3", "pypi_simple", "huggingface_hub", "git"}
WITH = {"urllib3": "requests"}  # what comes with another
THREADS = """
import importlib.machinery, sys, threading, time
from llamacpp_orchestrator.util.background import load
failures = []
class Slow:  # as a busy machine: another thread asks for a module while its package is on its way into sys.modules
    def find_spec(name, path=None, target=None):
        if name == "loop":
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            spec.loader.create_module = lambda spec: time.sleep(0.5)
            return spec
sys.meta_path.insert(0, Slow)
def enter(name):
    time.sleep(0.2 * ("." in name))
    try:
        {how}
    except BaseException as error:
        failures.append(type(error).__name__)
threads = [threading.Thread(target=enter, args=(name,)) for name in ("loop", "loop.part")]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*failures)
"""


def entered(folder: Path, how: str) -> str:
    """What fails when one thread imports a package, and another a module of it that the package imports itself."""
    (folder / "loop").mkdir(parents=True)
    (folder / "loop" / "__init__.py").write_text("import loop.part\n")
    (folder / "loop" / "part.py").touch()
    code, env = THREADS.format(how=how), {"PYTHONPATH": f"{folder}{os.pathsep}{PACKAGE.parent}"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout.strip()


def test_each_module_that_imports_a_circular_library_loads_it_before() -> None:
    lacking = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        wanted = {name for function in functions for name in imported(function)} & CIRCULAR
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "load"]
        words = [word.value for call in calls for word in call.args if isinstance(word, ast.Constant)]
        loaded = {str(word).split(".")[0] for word in words}
        if left := {WITH.get(name, name) for name in wanted} - loaded:
            lacking[path.name] = left
    assert not lacking


def imported(function: ast.FunctionDef) -> set[str]:
    """The packages that a function imports."""
    names = [alias.name for node in ast.walk(function) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_threads_that_load_a_library_by_two_doors_get_it_whole(tmp_path: Path) -> None:
    assert entered(tmp_path / "as it is", "__import__(name)") == "_DeadlockError"  # else there is nothing to prove
    assert entered(tmp_path / "loaded", "load(name)") == ""


def test_what_cannot_be_loaded_says_so() -> None:
    with pytest.raises(ImportError, match="no_such_library"):
        background.load("no_such_library")


def test_work_aside_goes_on_beside_and_ends_with_its_result_or_its_failure() -> None:
    gate = threading.Event()
    end = background.begin(lambda: gate.wait(10) and "done")
    gate.set()
    assert end() == "done" == end()

    def broken() -> None:
        raise OrchestrateError("no")

    failed = background.begin(broken)
    with pytest.raises(OrchestrateError, match="no"):
        failed()
