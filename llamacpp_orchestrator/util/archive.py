"""An archive becomes a folder, and nothing outside of it: no path, link or size in an archive is believed."""

from __future__ import annotations

import contextlib
import errno
import gzip
import lzma
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO
from typing import cast

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.util.cancel import look_for_stop
from llamacpp_orchestrator.util.disk import NO_ROOM
from llamacpp_orchestrator.util.disk import full
from llamacpp_orchestrator.util.disk import need_room
from llamacpp_orchestrator.util.units import size

CHUNK = 1 << 18
CAP = 20_000_000_000
LONGEST_PART = 255
ZIPS, GZIP = (".zip", ".whl"), b"\x1f\x8b"
CLASHES = (FileExistsError, IsADirectoryError, NotADirectoryError)  # one name for a file and for a folder
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError,
    ValueError, OverflowError, *CLASHES,
)  # fmt: skip
MOST_ENTRIES = 200_000
# What may be read at once: a header of a tar, whose size it says itself, and the list at the end of a zip.
LONGEST_HEADER, LONGEST_LIST = 1 << 20, 1 << 26
HEADERS = 1 << 30  # a tar may have so much besides contents
TRUST_HINT = "nothing of it is used: take another tag, or get it from a place that you trust (ORCHESTRATE_GITHUB_URL)"
Entry = tuple[str, int, "IO[bytes] | None", "str | None"]  # name, mode, content, target of a link


def unpack(archive: Path, dest: Path, *, strip: int = 0, keep: Callable[[str], bool] | None = None, cap: int = CAP) -> None:
    """Unpack a zip or tar into `dest`: without `strip` leading parts, only what `keep` wants; IntegrityError if unsafe."""
    dest.mkdir(parents=True, exist_ok=True)
    links: list[tuple[tuple[str, ...], str]] = []
    room = cap
    with _told(archive, dest), contextlib.closing(_entries(archive, cap)) as entries:
        if keep is None:
            need_room(dest, min(_unpacked(archive), cap), f"to unpack {archive.name}")
        for name, mode, source, target in entries:
            parts = _safe_parts(archive, name)[strip:]
            if not parts or (keep and not keep("/".join(parts))):
                continue
            if target is not None:
                links.append((parts, _safe_target(archive, parts, target)))
            elif source is None:
                _place(archive, dest, parts).mkdir(exist_ok=True)
            elif (written := _write(source, _place(archive, dest, parts), mode, room)) >= 0:
                room -= written
            else:
                raise _too_large(archive, cap)
        # Links come last, so that nothing can be written through one.
        _make_links(archive, dest, links)


def check(archive: Path, cap: int = CAP) -> None:
    """Raise IntegrityError for an archive that could not be unpacked, or is not what its own sums say."""
    room = cap
    with _told(archive, archive.parent), contextlib.closing(_entries(archive, cap)) as entries:
        for name, _, source, _ in entries:
            _safe_parts(archive, name)
            while chunk := source.read(CHUNK) if source else b"":
                look_for_stop()
                room -= len(chunk)
                if room < 0:
                    raise _too_large(archive, cap)


def _unpacked(archive: Path) -> int:
    """What an archive says that it unpacks to; 0 where it does not say."""
    if archive.suffix in ZIPS:
        with archive.open("rb") as file, zipfile.ZipFile(cast(IO[bytes], _guarded(archive, file, LONGEST_LIST))) as zipped:
            return sum(info.file_size for info in zipped.infolist())
    with archive.open("rb") as file:
        if file.read(2) != GZIP:
            return archive.stat().st_size
        file.seek(-min(4, archive.stat().st_size), 2)
        return int.from_bytes(file.read(4), "little")


@contextlib.contextmanager
def _told(archive: Path, dest: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise full(dest, f"while {archive.name} was unpacked") from error
        # What a library finds wrong has no number; the system refuses a place before the file's beginning, and a path too long.
        if error.errno not in (None, errno.EINVAL, errno.ENAMETOOLONG):
            raise
        raise _damaged(archive, error) from error


def _too_large(archive: Path, cap: int) -> IntegrityError:
    return IntegrityError(f"{archive.name} unpacks to more than {cap / 1e6:.0f} MB, the cap", TRUST_HINT)


def _damaged(archive: Path, error: Exception) -> IntegrityError:
    said = getattr(error, "strerror", "") or str(error)
    why = "".join(said.splitlines()[:1]).rstrip(":") or type(error).__name__
    return IntegrityError(f"{archive.name} is damaged: {why}", "run the same command again to download it anew")


def _entries(archive: Path, cap: int) -> Generator[Entry, None, None]:
    with (
        archive.open("rb") as file,
        contextlib.closing((_zipped if archive.suffix in ZIPS else _tarred)(archive, file, cap)) as found,
    ):
        for number, entry in enumerate(found):
            look_for_stop()
            if number >= MOST_ENTRIES:
                raise IntegrityError(f"{archive.name} holds more than {MOST_ENTRIES:,} entries, the cap", TRUST_HINT)
            yield entry


def _zipped(archive: Path, file: IO[bytes], cap: int) -> Generator[Entry, None, None]:
    with zipfile.ZipFile(cast(IO[bytes], _guarded(archive, file, LONGEST_LIST))) as zipped:
        for info in zipped.infolist():
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                raise _unsafe(archive, info.filename, "is a device or pipe")
            with zipped.open(info) as source:
                target = source.read(4096).decode() if stat.S_ISLNK(mode) else None
                yield info.filename, mode, None if info.is_dir() else source, target


def _tarred(archive: Path, file: IO[bytes], cap: int) -> Generator[Entry, None, None]:
    packed = file.read(2) == GZIP
    file.seek(0)
    stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
    guard = _guarded(archive, stream, LONGEST_HEADER, cap)
    with tarfile.open(fileobj=cast(IO[bytes], guard), mode="r:") as tar:
        while member := tar.next():
            guard.heading = False
            tar.members.clear()  # type: ignore[attr-defined]  # kept for who would ask again
            if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                raise _unsafe(archive, member.name, "is a device or pipe")
            target = member.linkname if member.issym() else None
            if member.islnk():
                target = posixpath.relpath(member.linkname, posixpath.dirname(member.name) or ".")
            yield member.name, member.mode, tar.extractfile(member) if member.isreg() else None, target
            guard.heading = True
    # The library takes whatever is no header for the end, and leaves the sums of gzip unread, which lie behind it.
    if guard.last != bytes(tarfile.BLOCKSIZE):
        raise EOFError("its end is missing")
    while stream.read(CHUNK):
        look_for_stop()
        if stream.tell() > cap + HEADERS:
            raise _too_large(archive, cap)


def _guarded(archive: Path, file: IO[bytes], longest: int, cap: int = 0) -> SimpleNamespace:
    """The same file for a library that would read and skip as much as the file says.

    With a cap it goes forward by reading; then `heading` tells whether what is read now is a header, which may have parts, and
    `last` is what was read last.
    """
    guard = SimpleNamespace(tell=file.tell, seekable=file.seekable, close=lambda: None, heading=bool(cap), start=0, last=b"")

    def read(count: int = -1) -> bytes:
        look_for_stop()
        if count > longest or (guard.heading and file.tell() - guard.start > longest):
            raise IntegrityError(f"{archive.name} has a header or list of more than {size(longest)}, the cap", TRUST_HINT)
        guard.last = file.read(count)
        return bytes(guard.last)

    def seek(offset: int, whence: int = 0) -> int:
        while cap and not whence and (left := offset - file.tell()) > 0:
            if file.tell() > cap + HEADERS:
                raise _too_large(archive, cap)
            look_for_stop()
            if not file.read(min(left, CHUNK)):
                break
        guard.start = file.tell() if cap and not whence and offset > file.tell() else file.seek(offset, whence)
        return int(guard.start)

    guard.read, guard.seek = read, seek
    return guard


def _unsafe(archive: Path, name: str, why: str) -> IntegrityError:
    return IntegrityError(f"{archive.name} holds `{quoted(name)}`, which {why}", TRUST_HINT)


def _safe_parts(archive: Path, name: str) -> tuple[str, ...]:
    parts = name.replace("\\", "/").split("/")
    if not parts[0] and name or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise _unsafe(archive, name, "leads out of its folder")
    if any(len(part.encode("utf-8", "surrogateescape")) > LONGEST_PART for part in parts):
        raise _unsafe(archive, name, f"is longer than a name can be ({LONGEST_PART} bytes)")
    return tuple(part for part in parts if part not in ("", "."))


def _safe_target(archive: Path, parts: tuple[str, ...], target: str) -> str:
    """A link may climb first and then descend, inside its folder: then no other link can turn it into a way out."""
    steps = target.replace("\\", "/").split("/")
    climbs = next((count for count, step in enumerate(steps) if step != ".."), len(steps))
    if climbs >= len(parts) or ".." in steps[climbs:] or not steps[0] or re.match("[A-Za-z]:", target):
        raise _unsafe(archive, "/".join(parts), f"is a link out of its folder, to {quoted(target)}")
    return "/".join(steps)


def _place(archive: Path, dest: Path, parts: tuple[str, ...]) -> Path:
    path = dest.joinpath(*parts)
    if any(dest.joinpath(*parts[:count]).is_symlink() for count in range(1, len(parts))):
        raise _unsafe(archive, "/".join(parts), "lies behind a link")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.is_file():
        path.unlink()
    return path


def _write(source: IO[bytes], path: Path, mode: int, room: int) -> int:
    done = 0
    with path.open("wb") as sink:
        while chunk := source.read(CHUNK):
            look_for_stop()
            done += len(chunk)
            if done > room:
                return -1  # longer than there is room for
            sink.write(chunk)
    if mode & 0o111:
        path.chmod(0o755)
    return done


def _make_links(archive: Path, dest: Path, links: list[tuple[tuple[str, ...], str]]) -> None:
    """Make links, or copies where links are not allowed (Windows); one may be a copy of another, so as often as that helps."""
    copies = []
    for parts, target in links:
        path = _place(archive, dest, parts)
        try:
            path.symlink_to(Path(target))
        except OSError:
            copies.append((path, path.parent / target))
    while ready := [each for each in copies if each[1].exists() and not each[0].exists()]:
        for path, origin in ready:
            shutil.copytree(origin, path) if origin.is_dir() else shutil.copy2(origin, path)
