"""The programs of a tag on this machine, out of its release or built from its source: where they are, and how they get there."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path

from llamacpp_orchestrator.binaries import cmake_build
from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.binaries import release
from llamacpp_orchestrator.binaries import selftest
from llamacpp_orchestrator.binaries import toolchain as binaries_toolchain
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.system.scheduler import Action
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.hashing import folder_sha256
from llamacpp_orchestrator.util.store import MARK
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.store import write_atomically

MAKERS = "cmake-ninja"
CONTENT_MARK = "content.sha256"
MARKS = (CONTENT_MARK, MARK)

toolchain = functools.lru_cache(maxsize=1)(binaries_toolchain.toolchain)


def from_source(work: Work) -> bool:
    """Whether the job wants its programs built."""
    return work.job.binaries.backend == "source"


def place(work: Work, lock: Lock) -> tuple[str, str]:
    """Kind and key of the store's entry; OrchestrateError when nothing fits this machine, or nothing can be built on it."""
    if from_source(work):
        return "builds", cmake_build.key(lock.llama_cpp, toolchain(lock_resolve.this_host()))
    return "binaries", _release_key(lock_resolve.choose(work, lock.llama_cpp.tag, lock.assets))


def _release_key(choice: release.Choice) -> str:
    parts = [
        choice.archive.sha256 or choice.archive.name,
        (choice.runtime.sha256 or choice.runtime.name) if choice.runtime else "",
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def here(work: Work, lock: Lock) -> bool:
    """Whether the programs are on this machine already."""
    return work.store.has(*place(work, lock))


def ready(work: Work, lock: Lock) -> bool:
    """The same, where a machine that nothing fits is no error yet: the step that needs the programs will tell."""
    try:
        return here(work, lock)
    except OrchestrateError:
        return False


def lacking(work: Work, lock: Lock) -> str:
    """What would have to be fetched for the programs; "" when they are here."""
    if here(work, lock):
        return ""
    if from_source(work):
        return f"the source of {lock.llama_cpp.tag}"
    choice = lock_resolve.choose(work, lock.llama_cpp.tag, lock.assets)
    return "" if install.here(choice, work.store) else choice.archive.name


def altered(work: Work, lock: Lock) -> list[str]:
    """Whether the released programs are still what their archives held, whose digests were checked; [] is good."""
    if from_source(work) or not here(work, lock):
        return []
    folder = work.store.entry(*place(work, lock))
    mark = folder / CONTENT_MARK
    if not mark.is_file() or mark.read_text(encoding="utf-8") == folder_sha256(folder, lambda name: name not in MARKS):
        return []
    return [f"the release's programs in {folder} were changed after they were unpacked"]


def tool(work: Work, lock: Lock, name: str) -> Path:
    """A program by name, once they are here."""
    return install.find_tool(work.store.entry(*place(work, lock)), name, lock_resolve.this_host().system)


def action(work: Work, lock: Lock, log: Path, jobs: int = 0) -> Action:
    """Get the programs, and see that they start; `jobs` compilers at a time, 0 for as many as fit."""

    def get(tell: Tell) -> str:
        kind, key = place(work, lock)
        before = work.store.has(kind, key)
        made = _built(work, lock, log, jobs, tell) if from_source(work) else _fetched(work, lock, tell)
        selftest.probe(made, lock_resolve.this_host())
        return "current" if before else "done"

    return get


def _fetched(work: Work, lock: Lock, tell: Tell) -> Path:
    choice = lock_resolve.choose(work, lock.llama_cpp.tag, lock.assets)
    tell(f"note: {choice.archive.name}: {choice.reason}")

    def make(dest: Path) -> None:
        if not install.here(choice, work.store):
            work.online(choice.archive.name)
        install.install(choice, dest, work.store, work.settings, tell)
        write_atomically(dest / CONTENT_MARK, folder_sha256(dest))

    made = work.store.ensure(*place(work, lock), make)
    install.sweep(choice, work.store)
    return made


def _built(work: Work, lock: Lock, log: Path, jobs: int, tell: Tell) -> Path:
    pin, host = lock.llama_cpp, lock_resolve.this_host()
    kind, key = place(work, lock)

    def make(dest: Path) -> None:
        # Outside of the entry, which goes when something fails: what is compiled by then need not be compiled again.
        aside = work.store.folder("downloads") / f"build-{key}"
        log.unlink(missing_ok=True)
        tree = _source(work, lock, aside, tell)
        made_with = _makers(work, tree, log)
        chosen = toolchain(host)
        asked = cmake_build.options(pin, chosen)
        cmake_build.build(tree, aside / "out", dest, made_with, chosen, asked, cmake_build.jobs(jobs, host), log, tell)
        with contextlib.suppress(OSError):  # on Windows a scanner may still hold a file; the programs are none the worse
            remove(aside)

    return work.store.ensure(kind, key, make)


def _source(work: Work, lock: Lock, aside: Path, tell: Tell) -> Path:
    tree, draft = aside / "tree", aside / "draft"
    if not tree.exists():
        remove(draft)
        draft.mkdir(parents=True)
        lock_tree.check_tree(lock.llama_cpp, lock_tree.checkout(work, lock.llama_cpp, draft, tell, everything=True)[0])
        os.replace(draft, tree)
    return tree


def _makers(work: Work, tree: Path, log: Path) -> tuple[str, str]:
    cmake, ninja = cmake_build.makers(tree)
    if cmake and ninja:
        return cmake, ninja

    def make(dest: Path) -> None:
        work.online("cmake and ninja")
        cmake_build.install_makers(dest, work.settings, log)

    found = cmake_build.installed_makers(work.store.ensure("environments", MAKERS, make, venv.unhealthy) / "venv")
    return cmake or found[0], ninja or found[1]
