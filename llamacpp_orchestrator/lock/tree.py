"""The converter tree of a pin, by the routes that are set, in the cache."""

from __future__ import annotations

import functools
from pathlib import Path

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.source import git
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.source import tree as source_tree
from llamacpp_orchestrator.source.pin import SourcePin
from llamacpp_orchestrator.source.tree import TAG_MARK
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.store import MARK
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.store import write_atomically

TREE_MARK, TIME_MARK = "tree.sha256", "tree.time"
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

    def make(dest: Path) -> None:
        digest, time = checkout(context, pin, dest, tell)
        check_tree(pin, digest)
        mark(pin, dest, digest, time)

    return context.store.ensure("source", pin.key(), make, functools.partial(unhealthy, pin), about=pin.tag)


def mark(pin: SourcePin, dest: Path, digest: str, time: str) -> None:
    """Write beside the files of a tree what is known of them: their digest, the time of their commit or package, the tag."""
    for name, text in ((TREE_MARK, digest), (TIME_MARK, time), (TAG_MARK, pin.tag)):
        write_atomically(dest / name, text)


def unhealthy(pin: SourcePin, path: Path) -> str:
    """The reason why a cached tree must be made anew; "" is good."""
    digest = text_of(path / TREE_MARK)
    same = digest == source_tree.tree_digest(path) and digest == (pin.tree or digest)
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
    # A script would import what lies beside it before what the environment has under that name.
    strange = any(name not in (TREE_MARK, TIME_MARK, TAG_MARK, MARK) and not source_tree.wanted(name) for name in names)
    return "" if same and not strange else "the cached converter tree was changed"
