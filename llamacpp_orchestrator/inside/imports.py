"""Import once, in one process, all that upstream's scripts import anywhere; says what cannot be.

Called as imports.py QUESTION ANSWER. QUESTION is a file of JSON: [[module, [name, ...]], ...]. ANSWER becomes one of the same
length: null for what is there, else {"lacking", "error", "distribution", "version"}, where lacking is true when nothing is
broken: the module, or the name in it, is just not there. Each import stands on standard output before it is tried, so that
the log names one that takes the interpreter down.

To compile takes longer than to import, so a second process does it beside the first, from the end: imports.py --compile
MODULE..., with the modules in their order. It follows what their sources import while they are loaded, without running them,
and leaves bytecode where an import looks for it. It ends when all is compiled, or soon after the end of its standard input.
"""

import gc
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import threading
from importlib.machinery import SourceFileLoader
from pathlib import Path

# What is indented below these runs later or never; a bracket that ends many lines of words does not end the block.
LATER = re.compile(r"^(?:def|async def|class|if (?:\w+\.)?TYPE_CHECKING)\b.*\n(?:(?:[ \t)].*)?\n)*", re.MULTILINE)
IMPORT = re.compile(r"^[ \t]*(?:import ([\w. \t,]+)|from ([\w.]+) import (?:\(([^)]*)\)|([^(\n]+)))", re.MULTILINE)
NAME = re.compile(r"([\w.]+)(?: as \w+)?")
DEEP = 10_000  # torch's modules import each other in chains of some hundred
ENDED = threading.Event()


def attempt(module, names):
    """The trouble with a module and names in it, or None; a name may be a module of its own, or be loaded when it is read."""
    print("import", module, *names, flush=True)
    try:
        loaded = importlib.import_module(module)
    except BaseException as error:
        return trouble(module, error, absent(module, error))
    for name in names:
        try:
            getattr(loaded, name)
        except AttributeError as error:
            if reason := submodule(module, name, error):
                return reason
        except BaseException as error:
            return trouble(module, error, False)
    return None


def submodule(module, name, reason):
    """The trouble with a name that is no attribute of its module, or None."""
    try:
        importlib.import_module(f"{module}.{name}")
    except BaseException as error:
        lacking = absent(f"{module}.{name}", error)
        return trouble(module, ImportError(f"cannot import name {name!r} from {module!r}") if lacking else error, lacking)
    return None


def absent(module, error):
    """Tell whether an import failed because the module itself, or one that it lies in, is not there."""
    return isinstance(error, ModuleNotFoundError) and bool(error.name) and f"{module}.".startswith(f"{error.name}.")


def trouble(module, error, lacking):
    """One entry of the answer."""
    top = module.partition(".")[0]
    owners = importlib.metadata.packages_distributions().get(top, [])
    owner, version = (owners[0], importlib.metadata.version(owners[0])) if owners else (top, "")
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"lacking": lacking, "error": message, "distribution": owner, "version": version}


def compile_with(name, folders):
    """Compile a module and what it imports; `folders` holds where the modules of each name seen lie, None without any."""
    if name in folders or ENDED.is_set():
        return
    folders[name] = None
    package, _, last = name.rpartition(".")
    if package:
        compile_with(package, folders)
    path = source(last, folders.get(package))  # of which nothing is known if this is to end just now
    if path is None:
        return
    if path.name == "__init__.py":
        folders[name], package = [path.parent], name
    loader = SourceFileLoader(name, str(path))
    try:
        for module in reversed(imported(loader.get_source(name), package)):
            compile_with(module, folders)
        if not ENDED.is_set():
            loader.get_code(name)
    except (ImportError, OSError, SyntaxError, ValueError):  # who imports it will say so
        pass


def source(name, folders):
    """The source of a module in folders, or None."""
    paths = (path for folder in folders or () for path in (folder / name / "__init__.py", folder / f"{name}.py"))
    return next((path for path in paths if path.is_file()), None)


def imported(text, package):
    """The modules, or names in them, that a source imports while it is loaded, in their order."""
    modules = []
    for plain, origin, many, few in IMPORT.findall(LATER.sub("", text)):
        modules += NAME.findall(plain)
        if origin:
            origin = importlib.util.resolve_name(origin, package)
            modules += [origin, *(f"{origin}.{name}" for name in NAME.findall(many or few))]
    return modules


def compile_all(modules):
    """Compile modules and all that they import, from the last to the first, until standard input ends."""
    threading.Thread(target=lambda: sys.stdin.read() or ENDED.set(), daemon=True).start()
    sys.setrecursionlimit(DEEP)
    folders = {"": [Path(place) for place in sys.path]}
    for module in reversed(modules):
        compile_with(module, folders)


def main(question, answer):
    """Import all that is asked for, and answer."""
    wanted = json.loads(Path(question).read_text(encoding="utf-8"))
    gc.disable()  # all that is imported stays
    ahead = [sys.executable, __file__, "--compile", *(module for module, _ in wanted)]
    with subprocess.Popen(ahead, stdin=subprocess.PIPE):
        troubles = [attempt(module, names) for module, names in wanted]
    Path(answer).write_text(json.dumps(troubles), encoding="utf-8")


if __name__ == "__main__":
    # The scripts' own folder is not on the path here: what is in it is none of the environment's.
    sys.path.pop(0)
    if sys.argv[1] == "--compile":
        compile_all(sys.argv[2:])
    else:
        main(*sys.argv[1:])
