"""A folder per key, made once, and a mark beside it, written last: whatever is interrupted is made anew on the next run."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import stat
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.hashing import file_sha256

TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of llamacpp-orchestrator.\n"
ENTRIES = ("source", "binaries", "builds", "environments", "views", "merged", "imatrix", "bundles")
PRUNED = (*ENTRIES, "downloads", "logs", "memo", "home", "sent")
MARK = ".complete.json"  # of an entry, beside it: what is unpacked into the entry may hold any name
OLD_MARK = "complete.json"  # of older versions, in the entry itself
OWN = ("environments", "builds", "imatrix")  # costly, and only we have ever put a file into their folder itself: old marks hold
LATER = frozenset(("__pycache__", "imports.json"))  # what comes into an entry after it was marked
DEPTH = 4  # of folders that are looked through: as deep as the packages of an environment lie
DYING_SECONDS = 10.0
TICK_SECONDS = 2.0  # the coarsest that disks have


class Mark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What says that an entry was made to its end: which entry, the digest of its `listing`, and what else is known of it."""

    format: Literal[1] = 1
    kind: str
    key: str
    about: str = ""
    holds: str = ""  # an old mark's
    facts: Mapping[str, str] = {}


class Store:
    """The cache folder: `ensure` makes an entry or finds it, safely between processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str) -> Path:
        """The folder of one kind of entry, made with the cache's own tag when it is not there."""
        made = self.root / kind
        try:
            if not (self.root / "CACHEDIR.TAG").exists():
                self.root.mkdir(parents=True, exist_ok=True)
                (self.root / "CACHEDIR.TAG").write_text(TAG, encoding="utf-8")
            made.mkdir(exist_ok=True)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            message = f"there can be no cache at {self.root}: {(error.strerror or str(error)).lower()}"
            raise OrchestrateError(message, "name a folder that you may write to (ORCHESTRATE_CACHE_DIR)") from error
        return made

    def entry(self, kind: str, key: str) -> Path:
        """Where an entry lies or would lie; touches nothing."""
        return self.root / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Whether an entry was made to its end, and is still what it was then, as far as names and sizes tell."""
        mark, path = self.mark(kind, key), self.entry(kind, key)
        try:
            # An old mark names nothing of what it vouches for.
            return mark is not None and mark.holds == (listing(path) if beside(path).is_file() else "")
        except FileNotFoundError:
            return False  # another makes it anew just now, and takes away what is looked at

    def mark(self, kind: str, key: str) -> Mark | None:
        """What the mark of an entry says: one that cannot be read, is of a newer kind or of another entry is none."""
        path = self.entry(kind, key)
        places = (beside(path), path / OLD_MARK) if kind in OWN else (beside(path),)
        marks = (mark for mark in map(_read, places) if mark and (mark.kind, mark.key) == (kind, key))
        return next(marks, None) if path.is_dir() else None

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold one name against every other process and thread of this machine."""
        from filelock import FileLock

        path = self.folder("locks") / f"{name.replace('/', '-')}.lock"
        with FileLock(path, thread_local=False, is_singleton=False):
            yield

    @contextmanager
    def using(self, kind: str, key: str) -> Iterator[None]:
        """Keep an entry, there or not yet, from being taken away by `discard`; ends with the process at the latest."""
        name = f"{kind}-{key}-{machine()}-{os.getpid()}.use"
        try:
            with self.lock(name):
                yield
        finally:
            remove(self.folder("locks") / f"{name}.lock")

    @contextmanager
    def sole(self, kind: str, key: str) -> Iterator[bool]:
        """Whether no other process uses an entry or makes it just now; while this lasts none can begin to."""
        import filelock

        locks, own = self.folder("locks"), f"{kind}-{key}-{machine()}-{os.getpid()}.use.lock"
        others = [path for path in locks.glob(f"{kind}-{key}-*.use.lock") if path.name != own]
        with contextlib.ExitStack() as stack:
            sole = False
            with contextlib.suppress(filelock.Timeout):
                for path in (locks / f"{kind}-{key}.lock", *others):
                    stack.enter_context(filelock.FileLock(path, thread_local=False, is_singleton=False, timeout=0))
                sole = True
            yield sole

    def discard(self, kind: str, key: str) -> None:
        """Take an entry away that can be made again, unless another process uses it or makes it just now."""
        with self.sole(kind, key) as sole:
            for path in (beside(self.entry(kind, key)), self.entry(kind, key)) if sole else ():
                remove(path)

    def ensure(
        self,
        kind: str,
        key: str,
        make: Callable[[Path], Mapping[str, str] | None],
        healthy: Callable[[Path], str] = lambda path: "",
        about: str = "",
    ) -> Path:
        """The complete folder of `key`, made by `make(folder)` if need be, which may answer facts to be kept in its mark.

        `about` says for `cache list` what it is. `healthy` answers "" or the reason why a complete entry must be made anew.
        An environment cannot be moved, so entries are made in place, and the mark, renamed in last, is what makes them count.
        """
        path = self.entry(kind, key)

        def good() -> bool:
            try:
                return self.has(kind, key) and not healthy(path)
            except OSError:
                return False  # as in `has`

        if good():
            return path
        with self.lock(f"{kind}-{key}"):
            if good():
                return path
            self.folder(kind)
            for old in (beside(path), path / OLD_MARK, path):  # no moment in which a mark stands for a part
                remove(old)
            path.mkdir(parents=True)
            try:
                facts = make(path) or {}
            except BaseException:
                remove(path)
                raise
            mark = Mark(kind=kind, key=key, about=about, holds=listing(path), facts=facts)
            # Drafted within: what a kill leaves of it goes with the entry when that is made anew.
            write_atomically(beside(path), msgspec.json.encode(mark).decode() + "\n", path)
        return path

    def sha256(self, path: Path) -> str:
        """The digest of a file, remembered as long as its size, times and inode stay."""
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
        memo, before = self.folder("memo") / name, state(path)
        try:
            known, digest = memo.read_text(encoding="utf-8").rsplit(" ", 1)
            if known == before and len(digest) == 64:
                return digest
        except (OSError, ValueError):
            pass
        digest = file_sha256(path)
        # What changes again within one tick of the disk's clock keeps its times: only a file that has rested is known by them.
        if state(path) == before and _rested(path):
            if memo.is_dir():
                remove(memo)
            write_atomically(memo, f"{before} {digest}")
        return digest


def beside(path: Path) -> Path:
    """Where the mark of an entry lies, or would lie."""
    return path.with_name(path.name + MARK)


def _read(file: Path) -> Mark | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Mark)
    except (OSError, msgspec.DecodeError):
        return None


def listing(root: Path) -> str:
    """The sha256 over what lies in a folder, in hex: names, sizes, and what may be run; below DEPTH folders only names.

    Contents are for those to check who know what they must be. Of a link it is the link that counts.
    """
    digest = hashlib.sha256()
    for place, folders, files in os.walk(root):
        name = os.path.relpath(place, root)
        folders[:] = sorted(set(folders) - LATER)
        states = ((file, Path(place, file).lstat()) for file in sorted(set(files) - LATER))
        lines = (f"{file}\0{state.st_size} {state.st_mode & stat.S_IXUSR}" for file, state in states)
        digest.update("\n".join((name, *folders, "", *lines, "")).encode("utf-8", "surrogateescape"))
        if name.count(os.sep) >= DEPTH - 1:
            folders.clear()
    return digest.hexdigest()


def _rested(path: Path) -> bool:
    found, now = path.stat(), time.time()
    return all(abs(now - changed) >= TICK_SECONDS for changed in (found.st_mtime, found.st_ctime))


def state(path: Path) -> str:
    """What tells that a file is as it was: the last of its times is the system's own, which moves when the first is set back."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def write_atomically(path: Path, text: str, within: Path | None = None) -> None:
    """Write a small file so that a reader sees the old text or the new, never half; drafted beside it, or in another folder."""
    staged = draft(within / path.name if within else path)
    try:
        with staged.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise OrchestrateError(f"cannot write {path}: {error.strerror}", "check the folder's rights and free space") from error


def draft(path: Path) -> Path:
    """A name beside a path for what is not to stay; `tempfiles.sweep_folder` takes it away once this process has gone."""
    return path.with_name(f".{machine()}.{os.getpid()}.{os.urandom(6).hex()}.new")


@functools.cache
def machine() -> str:
    """What tells this machine from others that may write to the same disk, for names of files."""
    import platform  # not needed to find out that there is nothing to do

    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def text_of(path: Path) -> str:
    """What a small file says; nothing when it cannot be read, or is a pipe, which would be waited for."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def link(file: Path, dest: Path) -> None:
    """Put a file into a place, which then has it whole or not at all; a copy where the disk has no links."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    staged = draft(dest)
    try:
        os.link(file, staged)
    except OSError:
        import shutil

        shutil.copyfile(file, staged)
    os.replace(staged, dest)


def remove(path: Path) -> None:
    """Remove a file or a folder that is ours, read-only parts included; absent is fine."""

    def retry(function: Callable[[str], object], name: str, _: object) -> None:
        Path(name).chmod(stat.S_IRWXU)
        function(name)

    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        import shutil  # it brings all of Python's archive formats along

        deadline = time.monotonic() + DYING_SECONDS
        while path.exists():
            try:
                shutil.rmtree(path, onerror=retry)
            except OSError as error:
                # What a killed run had started may need a moment to die, and writes until then.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a cache; `about` says what it is (a tag, a model), `date` when it was made or last written to (ISO 8601)."""

    kind: str
    key: str
    bytes: int
    complete: bool
    about: str
    date: str

    @property
    def said(self) -> str:
        """What it is, for people."""
        return f"{self.about or self.key}{'' if self.complete else '  (incomplete)'}"


def entries(root: Path) -> list[Entry]:
    """Everything in a cache folder."""
    store = Store(root)
    return [
        _entry(path, store.mark(kind, path.name), store.has(kind, path.name))
        for kind in ENTRIES
        for path in sorted((root / kind).glob("*"))
        if not path.name.endswith(MARK)
    ]


def _entry(path: Path, mark: Mark | None, whole: bool) -> Entry:
    file = beside(path) if beside(path).is_file() else path
    date = time.strftime("%Y-%m-%d", time.localtime(file.lstat().st_mtime))
    about = mark.about if mark else ""
    return Entry(kind=path.parent.name, key=path.name, bytes=_size(path), complete=whole, about=about, date=date)


def prune(root: Path, kinds: tuple[str, ...]) -> int:
    """Remove the entries of some kinds and say how many bytes that freed; refuses a folder that is not a cache of ours."""
    if root.exists() and not (root / "CACHEDIR.TAG").is_file():
        raise OrchestrateError(
            f"{root} has no CACHEDIR.TAG, so it is not a cache of ours", "nothing was removed; check ORCHESTRATE_CACHE_DIR"
        )
    freed = 0
    for kind in kinds:
        # Marks first: none may stand for a part.
        for path in sorted((root / kind).glob("*"), key=lambda path: not path.name.endswith(MARK)):
            freed += _size(path)
            remove(path)
    return freed


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
