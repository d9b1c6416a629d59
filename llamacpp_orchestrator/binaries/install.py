"""The archives of a release on this machine: downloaded, checked, unpacked, and the programs in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.binaries.release import GITHUB
from llamacpp_orchestrator.binaries.release import Tell
from llamacpp_orchestrator.binaries.selection import Asset
from llamacpp_orchestrator.binaries.selection import Choice
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import archive
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.disk import need_room
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.store import Store

# Names that a program had before or after a rename, where it is more than the prefix `llama-`.
ALIASES = {"llama-cli": ("main", "llama"), "main": ("llama-cli",), "llama-completion": ("llama-cli", "main")}
PROBED = ("llama-cli", "llama-completion", "llama-server", "llama-quantize")
PROGRAM_MAGIC = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"#!")


def pin(asset: Asset, store: Store, settings: Settings, tell: Tell) -> Asset:
    """An asset with the digest of what comes from its address now; the file stays for `install`."""
    with fetched(asset, store, settings, tell) as file:
        return msgspec.structs.replace(asset, sha256=file_sha256(file), size=file.stat().st_size)


def file_of(asset: Asset, store: Store) -> Path:
    """Where the file of an asset lies, or would lie, before it is unpacked."""
    # A folder for each asset: a CUDA runtime carries no tag in its name.
    return store.folder("downloads") / _key(asset) / asset.name


def _key(asset: Asset) -> str:
    return hashlib.sha256(asset.url.encode()).hexdigest()[:16]


def here(choice: Choice, store: Store) -> bool:
    """Whether the archives of a choice lie here already, still packed."""
    return all(file_of(asset, store).is_file() for asset in _wanted(choice))


def _wanted(choice: Choice) -> list[Asset]:
    return [asset for asset in (choice.archive, choice.runtime) if asset]


@contextlib.contextmanager
def fetched(
    asset: Asset, store: Store, settings: Settings, tell: Tell, progress: download.Progress | None = None
) -> Iterator[Path]:
    """The file of an asset, checked and still packed, while no other run fetches or removes it.

    Without a known digest it is an archive that is whole by its own sums, from the first place that has one.
    """
    file, count = file_of(asset, store), progress or download.counted(tell)

    def ask(url: str) -> str:
        digest = download.fetch(url, file, sha256=asset.sha256, size=asset.size, progress=count)
        if not asset.sha256:
            # A cut file has a digest too, and a lock with that would hold for ever.
            with _gone_if_bad(file):
                archive.check(file)
        return digest

    with store.lock(f"downloads-{_key(asset)}"):
        try:
            first_answer(addresses(asset, settings), ask, tell)
        except OrchestrateError:
            with contextlib.suppress(OSError):  # what can be gone on with stays
                file.parent.rmdir()
            raise
        yield file


def addresses(asset: Asset, settings: Settings) -> tuple[str, ...]:
    """Where an asset may be had: on the mirrors of github.com, if it lies there."""
    # The lock names the place that everybody knows; which mirror stands for it is this machine's own matter.
    if not asset.url.startswith(f"{GITHUB}/"):
        return (asset.url,)
    return tuple(github + asset.url.removeprefix(GITHUB) for github in settings.github)


def install(choice: Choice, dest: Path, store: Store, settings: Settings, tell: Tell) -> None:
    """Download and unpack a choice into `dest`, the CUDA runtime beside the programs. NetworkError, IntegrityError."""
    wanted, before = _wanted(choice), 0
    total, lacking = sum(asset.size for asset in wanted), [asset for asset in wanted if not file_of(asset, store).is_file()]
    if len(lacking) > 1:
        need_room(store.root, total, f"to download {' and '.join(asset.name for asset in lacking)}")
    with contextlib.ExitStack() as held:
        files = []
        for asset in wanted:

            def count(done: int, _: int, before: int = before) -> None:
                download.counted(tell)(before + done, total)

            files.append(held.enter_context(fetched(asset, store, settings, tell, count)))
            before += asset.size
        _unpack(files, dest)
        for path in files:
            shutil.rmtree(path.parent, ignore_errors=True)


def sweep(choice: Choice, store: Store) -> None:
    """Remove the packed files of a choice that has been installed, as another run may fetch them again to pin them."""
    for asset in _wanted(choice):
        if (folder := file_of(asset, store).parent).exists():
            with store.lock(f"downloads-{_key(asset)}"):
                shutil.rmtree(folder, ignore_errors=True)


def _unpack(files: list[Path], dest: Path) -> None:
    with _gone_if_bad(files[0]):
        archive.unpack(files[0], dest)
    for runtime in files[1:]:
        home = any_tool(dest, "windows" if any(dest.rglob("*.exe")) else "linux").parent
        with tempfile.TemporaryDirectory(dir=dest) as scratch:
            with _gone_if_bad(runtime):
                archive.unpack(runtime, Path(scratch))
            for file in [path for path in Path(scratch).rglob("*") if path.is_symlink() or path.is_file()]:
                os.replace(file, home / file.name)
    give_rights(dest)


def give_rights(folder: Path) -> None:
    """Let the programs in a folder be started: zip archives of other systems do not say so, nor do copies of a cache."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and not os.access(path, os.X_OK) and _is_program(path):
            path.chmod(0o755)


@contextlib.contextmanager
def _gone_if_bad(packed: Path) -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        # It is what was asked for, and no good: the next run must not find it again.
        shutil.rmtree(packed.parent, ignore_errors=True)
        raise


def find_tool(root: Path, name: str, system: str) -> Path:
    """A program by name, whatever the layout and the name in its era; OrchestrateError lists those that are there."""
    name, ending = name.removesuffix(".exe"), ".exe" if system == "windows" else ""
    there = {path.name: path for path in sorted(root.rglob("*"), reverse=True) if path.is_file()}
    renamed = name.removeprefix("llama-") if name.startswith("llama-") else f"llama-{name}"
    for each in (name, *ALIASES.get(name, ()), renamed):
        if each + ending in there:
            return there[each + ending]
    programs = sorted(key.removesuffix(".exe") for key, path in there.items() if Path(key).suffix == ending and _is_program(path))
    raise OrchestrateError(f"the archive has no program `{name}`", f"it has {', '.join(programs) or 'no programs'}")


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".exe" or file.read(4).startswith(PROGRAM_MAGIC)


def any_tool(root: Path, system: str) -> Path:
    """Some program of an archive that starts without a model."""
    for name in PROBED[:-1]:
        with contextlib.suppress(OrchestrateError):
            return find_tool(root, name, system)
    return find_tool(root, PROBED[-1], system)
