"""All that a lock names in one file: packed where there is a network, checked against the lock and used where there is none."""

from __future__ import annotations

import functools
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO
from typing import cast

import msgspec

from llamacpp_orchestrator import __version__
from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.binaries import release
from llamacpp_orchestrator.commands.execution import complete
from llamacpp_orchestrator.commands.lock import settled
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import wheels
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.source import tree as source_tree
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import performing
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.util import archive
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.cancel import look_for_stop
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import link
from llamacpp_orchestrator.util.yaml_reader import nearest

LABEL = "bundle.json"
GLIBC = "glibc 2.39"  # what another Linux is taken to have; its own run tells if its programs cannot start
AGAIN = "nothing of it was used; pack it again: orchestrate bundle JOB -o FILE"


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle says of itself; everything else in it is checked against the lock."""

    format: int = 1
    tool: str
    lock: str
    platform: str


def platform_of(machine: host.Host) -> str:
    """The name of a machine's platform, as `--platform` takes it."""
    return f"{machine.system}-{machine.arch}"


def machine(platform: str) -> host.Host:
    """The machine that programs are chosen for: this one, or a plain one of another platform, without a GPU."""
    if platform not in wheels.PLATFORMS:
        raise JobError(f"--platform {platform}: no such platform; {nearest(platform, wheels.PLATFORMS)}")
    here = lock_resolve.this_host()
    if platform == platform_of(here):
        return here
    system, arch = platform.split("-")
    return host.Host(system=system, arch=arch, libc=GLIBC if system == "linux" else "", cores=1, memory=0)


def with_digests(pinned: PinnedJob, platform: str, tell: Tell) -> PinnedJob:
    """A job whose lock has a digest for every archive that a platform would use, written beside it.

    One that was never published is downloaded for it.
    """
    lock = pinned.lock
    for asset in chosen(pinned, platform):
        if not asset.sha256:
            pin = install.pin(asset, pinned.store, pinned.context.settings, tell)
            tell(f"note: {asset.name} has no published digest; locked as downloaded now: sha256 {pin.sha256}")
            lock = msgspec.structs.replace(lock, assets=tuple(pin if other == asset else other for other in lock.assets))
    lock_file.write(lock_file.path_for(pinned.context.file), lock)
    return PinnedJob(pinned.context, lock)


class Packing(msgspec.Struct, frozen=True):
    """A bundle at work: for which platform, the folder where its parts are gathered, and the file that it becomes."""

    pinned: PinnedJob
    platform: str
    folder: Path
    file: Path


def steps(packing: Packing) -> list[Step]:
    """Bring here whatever the lock names for a platform, most of it into the folder, and pack it into the file."""
    pinned = packing.pinned
    steps = [Step(kind="source")]
    steps += [Step(kind="binaries")] if chosen(pinned, packing.platform) else []
    steps += [Step(kind="wheels")] if lock_file.environments(pinned.lock) else []
    steps += [Step(kind="fetch", key=name) for name in records.names(pinned.context.job).values()]
    return [*steps, Step(kind="pack", key=packing.file.name, needs=tuple(step.name for step in steps))]


def _source(packing: Packing, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    lock_tree.get_tree(packing.pinned.context, packing.pinned.lock.llama_cpp, tell)
    return DONE


def _fetch(packing: Packing, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    context = packing.pinned.context
    wanted = next(wanted for wanted, name in records.names(context.job).items() if name == key)
    pin = packing.pinned.files(wanted)
    lock_resolve.tell_moved(context, pin, tell)
    lock_resolve.origin(context, pin, tell)
    return DONE


def chosen(pinned: PinnedJob, platform: str) -> tuple[release.Asset, ...]:
    """The archives of the release that a platform would use; none where the job runs no program."""
    binaries = pinned.context.job.binaries
    if not records.uses_binaries(pinned.context.job) or binaries.backend == "none":
        return ()
    if binaries.backend == "source":
        message = f"{pinned.context.file.name}: a bundle cannot hold programs that are built from source"
        raise JobError(message, "set binaries.backend to one with archives, such as cpu, or leave out `quantize`")
    choice = release.choose(pinned.tag, pinned.lock.assets, machine(platform), binaries.backend, binaries.cuda)
    return tuple(asset for asset in (choice.archive, choice.runtime) if asset)


def _archives(packing: Packing, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    store, settings = packing.pinned.store, packing.pinned.context.settings
    for asset in chosen(packing.pinned, packing.platform):
        with install.fetched(asset, store, settings, tell) as file:
            link(file, packing.folder / "archives" / asset.name)
    return DONE


def _wheels(packing: Packing, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    store, folder = packing.pinned.store, packing.folder / "wheels"
    for pin in lock_file.environments(packing.pinned.lock):
        index, torch = indexes.places(pin.torch, packing.pinned.context.settings, tell)
        wheels.collect(pin.pin(), packing.platform, index, torch, folder, store.sha256, tell)
    return DONE


def _pack(packing: Packing, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    file = packing.file
    label = Label(tool=__version__, lock=lock_file.digest(packing.pinned.lock), platform=packing.platform)
    members = sorted(_members(packing.pinned, packing.folder))
    total, done, count = sum(path.stat().st_size for _, path in members), 0, download.counted(tell)
    staged = file.with_name(f".{os.getpid()}.{file.name}.part")
    try:
        with tarfile.open(staged, "w", format=tarfile.PAX_FORMAT) as tar:
            text = msgspec.json.encode(label)
            _add(tar, LABEL, io.BytesIO(text), len(text))
            for name, path in members:
                with path.open("rb") as content:
                    _add(tar, name, content, path.stat().st_size)
                done += path.stat().st_size
                count(done, total)
        os.replace(staged, file)
    except OSError as error:
        raise OrchestrateError(f"cannot write {file}: {error.strerror}", "check the folder's rights and free space") from error
    finally:
        staged.unlink(missing_ok=True)
    return DONE


ACTIONS = {"source": _source, "binaries": _archives, "wheels": _wheels, "fetch": _fetch, "pack": _pack}


def _members(pinned: PinnedJob, folder: Path) -> Iterator[tuple[str, Path]]:
    tree = pinned.tree
    for path in tree.rglob("*"):
        if path.is_file() and source_tree.wanted(name := path.relative_to(tree).as_posix()):
            yield f"source/{name}", path
    for kind in ("archives", "wheels"):
        for path in (folder / kind).glob("*"):
            yield f"{kind}/{path.name}", path
    files: dict[str, Path] = {}
    for place, pin in _places(pinned.lock):
        origin = lock_resolve.origin(pinned.context, pin, lambda text: None)
        files |= {f"{place}/{file.path}": origin / file.path for file in pin.files}
    yield from files.items()


def _places(lock: Lock) -> Iterator[tuple[str, FilesPin]]:
    """Where the files of each pin lie in a bundle: those of one folder of the user's own together, as they do there."""
    first: dict[str, int] = {}
    for number, pin in enumerate(lock.models):
        source = pin.wanted.source if pin.wanted.is_folder else f"{number}"
        yield f"models/{first.setdefault(source, number)}", pin


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    # Neither times nor owners: the same lock gives the same bytes.
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    # Of a source tar only reads; gigabytes of one file must not outlive a signal.
    tar.addfile(entry, cast(IO[bytes], SimpleNamespace(read=functools.partial(_read, content))))


def _read(content: IO[bytes], count: int) -> bytes:
    look_for_stop()
    return content.read(count)


def opened(file: Path, context: Context) -> Context:
    """The same job, with all that it needs taken out of a bundle; no server is asked any more.

    LockError when no lock fits or the bundle was packed for another; IntegrityError for what the lock does not know.
    """
    path = lock_file.path_for(context.file)
    lock = lock_file.read(path)
    if stale := diff.stale_reasons(context.job, lock):
        raise LockError(
            f"{path.name} does not fit {context.file.name}: {'; '.join(stale)}", "a bundle goes with the lock of its job"
        )
    assert lock is not None
    label = _label(file)
    if label.lock != lock_file.digest(lock):
        raise LockError(f"{file.name} was packed for lock {label.lock}, {path.name} is {lock_file.digest(lock)}", AGAIN)
    here = platform_of(lock_resolve.this_host())
    if label.platform != here:
        raise JobError(f"{file.name} was packed for {label.platform}, this is {here}", f"pack one for it: --platform {here}")
    folder = context.store.ensure(
        "bundles", f"{label.lock[:32]}-{label.platform}", lambda dest: _unpack(file, dest, lock), about=file.name
    )
    _place(PinnedJob(context, lock), folder)
    settings = msgspec.structs.replace(
        context.settings, offline=True, index=Index(index_urls=(), find_links=(str(folder / "wheels"),))
    )
    folders = {pin.wanted.source: folder / place for place, pin in _places(lock) if pin.wanted.is_folder}
    names = frozenset(path.name for path in (folder / "archives").glob("*"))
    return msgspec.structs.replace(context, settings=settings, folders=folders, archives=names)


def _label(file: Path) -> Label:
    if not file.is_file():  # a pipe would be waited for, and is read more than once
        raise IntegrityError(f"{file} is no bundle, but a folder, a pipe or a device", "save the bundle as a file, and name that")
    try:
        with tarfile.open(file, "r:") as tar:
            first = tar.next()
            content = tar.extractfile(first) if first and first.name == LABEL and first.size < 10_000 else None
            if content is None:
                raise IntegrityError(f"{file} is no bundle of orchestrate", AGAIN)
            return msgspec.json.decode(content.read(), type=Label)
    except (OSError, tarfile.TarError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{file} is no bundle that can be read: {error}", AGAIN) from error


def _unpack(file: Path, dest: Path, lock: Lock) -> None:
    try:
        archive.unpack(file, dest, cap=file.stat().st_size)
    except IntegrityError as error:
        raise IntegrityError(error.message, AGAIN) from error
    known = dict(_known(lock, dest))
    for path in sorted(dest.rglob("*")):
        name = path.relative_to(dest).as_posix()
        if path.is_dir() and not path.is_symlink() or name == LABEL:
            continue
        if path.is_symlink() or name not in known and not name.startswith("source/"):
            raise IntegrityError(f"{file.name} holds {name}, which the lock does not name", AGAIN)
        if name in known and (complaint := known.pop(name)(path)):
            raise IntegrityError(f"{name} in {file.name} {complaint}", AGAIN)
    if missing := [name for name in known if name.startswith("models/")]:
        raise IntegrityError(f"{file.name} lacks {missing[0]}", AGAIN)
    if (digest := source_tree.tree_digest(dest / "source")) != lock.llama_cpp.tree:
        raise IntegrityError(f"the converter tree in {file.name} has digest {digest}, locked {lock.llama_cpp.tree}", AGAIN)


def _known(lock: Lock, dest: Path) -> Iterator[tuple[str, Callable[[Path], str]]]:
    """What the lock says about each file that a bundle may hold: a function that complains about one that is something else."""
    for asset in lock.assets:
        yield f"archives/{asset.name}", functools.partial(_differs, hub.HubFile(path="", size=0, sha256=asset.sha256 or "none"))
    for path in (dest / "wheels").glob("*"):
        yield f"wheels/{path.name}", functools.partial(_unlocked, lock_file.hashes(lock))
    for place, pin in _places(lock):
        for file in pin.files:
            yield f"{place}/{file.path}", functools.partial(_differs, file)


def _differs(file: hub.HubFile, path: Path) -> str:
    digest, expected = hub.digest_of(path, file), file.sha256 or file.oid
    return "" if digest == expected else f"has digest {digest}, locked {expected}"


def _unlocked(hashes: frozenset[str], path: Path) -> str:
    digest = file_sha256(path)
    return "" if digest in hashes else f"has sha256 {digest}, which is not among the lock's"


def _place(pinned: PinnedJob, folder: Path) -> None:
    """Put what was checked where a run looks for it; links where the disk has them."""

    def tree(dest: Path) -> tuple[str, str]:
        shutil.copytree(folder / "source", dest, dirs_exist_ok=True)
        return source_tree.tree_digest(dest), pinned.lock.llama_cpp.time

    lock_tree.keep(pinned.store, pinned.lock.llama_cpp, tree)
    for asset in pinned.lock.assets:
        if (packed := folder / "archives" / asset.name).is_file():
            link(packed, install.file_of(asset, pinned.store))
    for place, pin in _places(pinned.lock):
        if not pin.wanted.is_folder:
            _into_hub_cache(pin, folder / place)


def _into_hub_cache(pin: FilesPin, folder: Path) -> None:
    snapshot = pin.snapshot
    for file in hub.missing(snapshot):
        hub.place(snapshot, file, folder / file.path)


def pack(context: Context, options: Options, platform: str, file: Path, report: Reporter) -> Path:
    """Pack all that the lock names for a platform into one file; where it lies. Raises the failures of what could not be had."""
    platform = platform or platform_of(lock_resolve.this_host())
    machine(platform)
    locked = PinnedJob(context, settled(context, options, report))
    pinned = with_digests(locked, platform, lambda text: report(Event("lock", "note", text)))
    folder = context.store.folder("downloads")
    with tempfile.TemporaryDirectory(dir=folder, prefix="bundle-", ignore_cleanup_errors=True) as scratch:
        packing = Packing(pinned, platform, Path(scratch), file)
        complete(steps(packing), performing(ACTIONS, packing), options, report)
    return file
