"""The programs of a tag on this machine, out of its release or built from its source: their place, and getting them there."""

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
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.system import disk_trial
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.hashing import folder_sha256
from llamacpp_orchestrator.util.store import remove

MAKERS = "cmake-ninja"

toolchain = functools.lru_cache(maxsize=1)(binaries_toolchain.toolchain)


def from_source(context: Context) -> bool:
    """Tell whether the job wants its programs built."""
    return context.job.binaries.backend == "source"


def store_key(pinned: PinnedJob) -> tuple[str, str]:
    """Kind and key of the store's entry; OrchestrateError when nothing fits this machine, or nothing can be built on it."""
    if from_source(pinned.context):
        return "builds", cmake_build.key(pinned.lock.llama_cpp, toolchain(lock_resolve.this_host()))
    return "binaries", _release_key(lock_resolve.choose(pinned.context, pinned.tag, pinned.lock.assets))


def _release_key(choice: release.Choice) -> str:
    parts = [
        choice.archive.sha256 or choice.archive.name,
        (choice.runtime.sha256 or choice.runtime.name) if choice.runtime else "",
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def installed(pinned: PinnedJob) -> bool:
    """Tell whether the programs are on this machine already."""
    return pinned.store.has(*store_key(pinned))


def ready(pinned: PinnedJob) -> bool:
    """The same, where a machine that nothing fits is no error yet: the step that needs the programs will tell."""
    try:
        return installed(pinned)
    except OrchestrateError:
        return False


def lacking(pinned: PinnedJob) -> str:
    """The name of what would have to be fetched for the programs; "" when they are here."""
    if installed(pinned):
        return ""
    if from_source(pinned.context):
        return f"the source of {pinned.tag}"
    choice = lock_resolve.choose(pinned.context, pinned.tag, pinned.lock.assets)
    return "" if install.here(choice, pinned.store) else choice.archive.name


def altered(pinned: PinnedJob) -> list[str]:
    """Complaints about released programs that are not what their archives held, whose digests were checked; [] is good."""
    mark, folder = pinned.store.mark(*store_key(pinned)), pinned.store.entry(*store_key(pinned))
    if from_source(pinned.context) or not mark or mark.facts.get("content") == folder_sha256(folder):
        return []
    return [f"the release's programs in {folder} were changed after they were unpacked"]


def tool(pinned: PinnedJob, name: str) -> Path:
    """A program by name, once they are here."""
    return install.find_tool(pinned.store.entry(*store_key(pinned)), name, lock_resolve.this_host().system)


def bring(pinned: PinnedJob, log: Path, jobs: int, tell: Tell) -> str:
    """Get the programs and see that they start; `jobs` compilers at a time, 0 for as many as fit. "current" if they were here."""
    status = "current" if installed(pinned) else "done"
    folder = _built(pinned, log, jobs, tell) if from_source(pinned.context) else _fetched(pinned, tell)
    install.give_rights(folder)
    selftest.probe(folder, lock_resolve.this_host())
    return status


def _fetched(pinned: PinnedJob, tell: Tell) -> Path:
    choice = lock_resolve.choose(pinned.context, pinned.tag, pinned.lock.assets)
    tell(f"note: {choice.archive.name}: {choice.reason}")

    def make(dest: Path) -> dict[str, str]:
        disk_trial.check(dest)
        if not install.here(choice, pinned.store):
            pinned.context.online(choice.archive.name)
        install.install(choice, dest, pinned.store, pinned.context.settings, tell)
        return {"content": folder_sha256(dest)}

    folder = pinned.store.ensure(*store_key(pinned), make, about=choice.archive.name)
    install.sweep(choice, pinned.store)
    return folder


def _built(pinned: PinnedJob, log: Path, jobs: int, tell: Tell) -> Path:
    pin, host = pinned.lock.llama_cpp, lock_resolve.this_host()
    kind, key = store_key(pinned)

    def make(dest: Path) -> None:
        # Outside of the entry, which goes when something fails: what is compiled by then need not be compiled again.
        scratch = pinned.store.folder("downloads") / f"build-{key}"
        log.unlink(missing_ok=True)
        tree = _source(pinned, scratch, tell)
        chosen = toolchain(host)
        tools = cmake_build.Tools(*_makers(pinned.context, tree, log), chosen, cmake_build.options(pin, chosen))
        cmake_build.build(tools, tree, scratch / "out", dest, cmake_build.jobs(jobs, host), log, tell)
        with contextlib.suppress(OSError):  # on Windows a scanner may still hold a file; the programs are none the worse
            remove(scratch)

    return pinned.store.ensure(kind, key, make, about=f"{pinned.tag}, built here")


def _source(pinned: PinnedJob, scratch: Path, tell: Tell) -> Path:
    tree, draft = scratch / "tree", scratch / "draft"
    if not tree.exists():
        remove(draft)
        draft.mkdir(parents=True)
        pin = pinned.lock.llama_cpp
        lock_tree.check_tree(pin, lock_tree.checkout(pinned.context, pin, draft, tell, everything=True)[0])
        os.replace(draft, tree)
    return tree


def _makers(context: Context, tree: Path, log: Path) -> tuple[str, str]:
    cmake, ninja = cmake_build.makers(tree)
    if cmake and ninja:
        return cmake, ninja

    def make(dest: Path) -> None:
        context.online("cmake and ninja")
        cmake_build.install_makers(dest, context.settings, log)

    entry = context.store.ensure("environments", MAKERS, make, venv.unhealthy, about="cmake and ninja")
    installed = cmake_build.installed_makers(entry / "venv")
    return cmake or installed[0], ninja or installed[1]
