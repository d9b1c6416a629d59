"""The converter tree of a pin, by the routes that are set, in the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.source import git
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.source import tree as source_tree
from llamacpp_orchestrator.source.pin import SourcePin
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.store import state

ROUTES = {"git": git, "pypi": pypi}


def checkout(context: Context, pin: SourcePin, dest: Path, tell: Tell, everything: bool = False) -> tuple[str, str]:
    """Put the files of a pin, by the routes that are set, into an empty folder.

    The digest of the converter tree among them, and the time of the commit or package (ISO 8601, or "").
    """
    context.online(f"the {'source' if everything else 'converter tree'} of {pin.tag}")

    def ask(route: str) -> str:
        remove(dest)
        dest.mkdir()
        fits = bool(pin.commit) == (route == "git")
        module, settings = ROUTES[route], context.settings
        resolved = (pin.commit or pin.package) if fits else module.resolve(pin.repo, pin.tag, settings, tell)
        time: str = module.checkout(pin.repo, pin.tag, resolved, dest, settings, tell, everything)
        return time

    time = first_answer(context.settings.llama_cpp_from, ask, tell)
    return source_tree.tree_digest(dest), time


def check_tree(pin: SourcePin, have: str) -> None:
    """Raise IntegrityError when the digest of a converter tree is not the locked one."""
    if pin.tree and have != pin.tree:
        raise IntegrityError(
            f"the converter tree of {pin.tag} is not the locked one: locked {pin.tree}, found {have}",
            "the tag was moved or the source altered it; `orchestrate lock JOB --upgrade llama_cpp` accepts the new one",
        )


def get_tree(context: Context, pin: SourcePin, tell: Tell) -> Path:
    """The converter tree of a pin, by the routes that are set; IntegrityError when its content is not the locked one."""
    return keep(context.store, pin, lambda dest: checkout(context, pin, dest, tell))


def keep(store: Store, pin: SourcePin, make: Callable[[Path], tuple[str, str]]) -> Path:
    """The converter tree of a pin in the cache, where need be as `make` puts it there, which answers its digest and its time."""

    def checked(dest: Path) -> dict[str, str]:
        digest, time = make(dest)
        check_tree(pin, digest)
        return {"tree": digest, "time": time}

    return store.ensure("source", pin.key(), checked, functools.partial(unhealthy, store, pin), about=pin.tag)


def known(store: Store, pin: SourcePin) -> SourcePin:
    """A pin with what the mark of its cached tree says: the digest of the tree, and its time where the pin has none."""
    mark = store.mark("source", pin.key())
    facts = mark.facts if mark else {}
    return msgspec.structs.replace(pin, tree=facts.get("tree", ""), time=pin.time or facts.get("time", ""))


def unhealthy(store: Store, pin: SourcePin, path: Path) -> str:
    """The reason why a cached tree must be made anew; "" is good. OSError where it is taken away just now."""
    digest, files = known(store, pin).tree, sorted(file for file in path.rglob("*") if not file.is_dir())
    same = digest == _digest(path, tuple((file, state(file)) for file in files)) and digest == (pin.tree or digest)
    # A script would import what lies beside it before what the environment has under that name.
    strange = not all(source_tree.wanted(file.relative_to(path).as_posix()) for file in files)
    return "" if same and not strange else "the cached converter tree was changed"


@functools.lru_cache(maxsize=4)  # several steps of a run look at the tree, which takes longer to read than to list
def _digest(path: Path, states: tuple[tuple[Path, str], ...]) -> str:
    return source_tree.tree_digest(path)
