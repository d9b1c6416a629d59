"""An archive becomes a folder, and nothing outside of it: no path, link or size in an archive is believed."""

from __future__ import annotations

import contextlib
import errno
import gzip
import lzma
import posixpath
import re
import shutil
import signal
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Generator
from pathlib import Path
from typing import IO

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.errors import quoted

STOP = threading.Event()  # set on a signal; every loop over chunks looks at it

CHUNK = 1 << 18
CAP = 20_000_000_000
LONGEST_PART = 255
CLASHES = (FileExistsError, IsADirectoryError, NotADirectoryError)  # one name for a file and for a folder
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError,
    ValueError, OverflowError, *CLASHES,
)  # fmt: skip
TRUST_HINT = "nothing of it is used; get the archive from a source that you trust"
Entry = tuple[str, int, "IO[bytes] | None", "str | None"]  # name, mode, content, target of a link


def unpack(archive: Path, dest: Path, *, strip: int = 0, keep: Callable[[str], bool] | None = None, cap: int = CAP) -> None:
    """Unpack a zip or tar into `dest`: without `strip` leading parts, only what `keep` wants; IntegrityError if unsafe."""
    dest.mkdir(parents=True, exist_ok=True)
    links: list[tuple[tuple[str, ...], str]] = []
    room = cap
    try:
        with contextlib.closing(_entries(archive)) as entries:
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
                    raise IntegrityError(f"{archive.name} unpacks to more than {cap / 1e6:.0f} MB, the cap", TRUST_HINT)
        # Links come last, so that nothing can be written through one.
        _make_links(archive, dest, links)
    except DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # What a library finds wrong has no number; the system refuses a place before the file's beginning, and a path too long.
        if error.errno not in (None, errno.EINVAL, errno.ENAMETOOLONG):
            raise
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> IntegrityError:
    said = getattr(error, "strerror", "") or str(error)
    why = "".join(said.splitlines()[:1]).rstrip(":") or type(error).__name__
    return IntegrityError(f"{archive.name} is damaged: {why}", "run the same command again to download it anew")


def look_for_stop() -> None:
    """Raise Stopped once a signal has asked us to end."""
    if STOP.is_set():
        raise Stopped(signal.SIGINT)


def _entries(archive: Path) -> Generator[Entry, None, None]:
    if archive.suffix in (".zip", ".whl"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                mode = info.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                    raise _unsafe(archive, info.filename, "is a device or pipe")
                with zipped.open(info) as source:
                    target = source.read(4096).decode() if stat.S_ISLNK(mode) else None
                    yield info.filename, mode, None if info.is_dir() else source, target
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                raise _unsafe(archive, member.name, "is a device or pipe")
            target = member.linkname if member.issym() else None
            if member.islnk():
                target = posixpath.relpath(member.linkname, posixpath.dirname(member.name) or ".")
            yield member.name, member.mode, tar.extractfile(member) if member.isreg() else None, target


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
