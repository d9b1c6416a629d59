"""A folder per key, made once and marked complete last: whatever is interrupted is made anew on the next run."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.hashing import file_sha256

TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of llamacpp-orchestrator.\n"
ENTRIES = ("source", "binaries", "builds", "environments", "views", "imatrix", "bundles")
PRUNED = (*ENTRIES, "downloads", "logs", "memo", "home")
MARK = "complete.json"
DYING_SECONDS = 10.0
TICK_SECONDS = 2.0  # the coarsest that disks have


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
        """Whether an entry was made to its end."""
        return (self.entry(kind, key) / MARK).is_file()

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold one name against every other process and thread of this machine."""
        from filelock import FileLock

        path = self.folder("locks") / f"{name.replace('/', '-')}.lock"
        with FileLock(path, thread_local=False, is_singleton=False):
            yield

    def ensure(
        self, kind: str, key: str, make: Callable[[Path], None], healthy: Callable[[Path], str] = lambda path: "", about: str = ""
    ) -> Path:
        """The complete folder of `key`, made by `make(folder)` if need be; `about` says for `cache list` what it is.

        `healthy` answers "" or the reason why a complete entry must be made anew. An environment cannot be moved, so
        entries are made in place, and the mark, renamed in last, is what makes them count.
        """
        path = self.entry(kind, key)

        def good() -> bool:
            try:
                return self.has(kind, key) and not healthy(path)
            except OSError:
                return False  # another makes it anew just now, and takes away what is looked at

        if good():
            return path
        with self.lock(f"{kind}-{key}"):
            if good():
                return path
            self.folder(kind)
            remove(path)
            path.mkdir(parents=True)
            try:
                make(path)
            except BaseException:
                remove(path)
                raise
            write_atomically(path / MARK, json.dumps({"kind": kind, "key": key, "about": about}) + "\n")
        return path

    def sha256(self, path: Path) -> str:
        """The digest of a file, remembered as long as its size, times and inode stay."""
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
        memo, before = self.folder("memo") / name, _state(path)
        try:
            known, digest = memo.read_text(encoding="utf-8").rsplit(" ", 1)
            if known == before:
                return digest
        except (OSError, ValueError):
            pass
        digest = file_sha256(path)
        # What changes again within one tick of the disk's clock keeps its times: only a file that has rested is known by them.
        if _state(path) == before and _rested(path):
            write_atomically(memo, f"{before} {digest}")
        return digest


def _rested(path: Path) -> bool:
    found, now = path.stat(), time.time()
    return all(abs(now - changed) >= TICK_SECONDS for changed in (found.st_mtime, found.st_ctime))


def _state(path: Path) -> str:
    # The third time is the system's own: who sets the second back, as copying programs do, moves it.
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never half."""
    staged = _beside(path)
    try:
        with staged.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise OrchestrateError(f"cannot write {path}: {error.strerror}", "check the folder's rights and free space") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{machine()}.{os.getpid()}.{os.urandom(6).hex()}.new")


@functools.cache
def machine() -> str:
    """What tells this machine from others that may write to the same disk, for names of files."""
    import platform  # not needed to find out that there is nothing to do

    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def text_of(path: Path) -> str:
    """What a small file says; nothing when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def link(file: Path, dest: Path) -> None:
    """Put a file into a place, which then has it whole or not at all; a copy where the disk has no links."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    staged = _beside(dest)
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
    return [_entry(kind, path) for kind in ENTRIES for path in sorted((root / kind).glob("*"))]


def _entry(kind: str, path: Path) -> Entry:
    mark = path / MARK
    try:
        about = json.loads(mark.read_text(encoding="utf-8")).get("about", "")
    except (OSError, ValueError, AttributeError):
        about = ""
    whole = mark.is_file()
    changed = time.localtime((mark if whole else path).lstat().st_mtime)
    date = time.strftime("%Y-%m-%d", changed)
    return Entry(kind=kind, key=path.name, bytes=_size(path), complete=whole, about=str(about), date=date)


def prune(root: Path, kinds: tuple[str, ...]) -> int:
    """Remove the entries of some kinds and say how many bytes that freed; refuses a folder that is not a cache of ours."""
    if root.exists() and not (root / "CACHEDIR.TAG").is_file():
        raise OrchestrateError(
            f"{root} has no CACHEDIR.TAG, so it is not a cache of ours", "nothing was removed; check ORCHESTRATE_CACHE_DIR"
        )
    freed = 0
    for kind in kinds:
        for path in (root / kind).glob("*"):
            freed += _size(path)
            remove(path)
    return freed


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
