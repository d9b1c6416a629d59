"""Import once, in one process, all that upstream's scripts import anywhere; says what cannot be.

Called as imports.py QUESTION ANSWER. QUESTION is a file of JSON: [[module, [name, ...]], ...]. ANSWER becomes one of the same
length: null for what is there, else {"lacking", "error", "distribution", "version"}, where lacking is true when nothing is
broken: the module, or the name in it, is just not there. Each import stands on standard output before it is tried, so that
the log names one that takes the interpreter down.
"""

import gc
import importlib
import importlib.metadata
import json
import sys
from pathlib import Path


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


if __name__ == "__main__":
    question = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # The scripts' own folder is not on the path here: what is in it is none of the environment's.
    sys.path.pop(0)
    gc.disable()  # all that is imported stays
    answer = [attempt(module, names) for module, names in question]
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
