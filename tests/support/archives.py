"""Archives by their members: sound ones, and ones that must be refused."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

File = tuple[str, bytes | None, int, str]  # name, content (None: folder), mode, target of a link
# Members that would lie beside the folder that they are unpacked into, as files, or as links to there; {beside} is that path.
STRAYS: tuple[tuple[File, ...], ...] = (
    (("../beside", b"x", 0o644, ""),),
    (("a/../../beside", b"x", 0o644, ""),),
    (("{beside}", b"x", 0o644, ""),),
    (("..\\beside", b"x", 0o644, ""),),
    (("C:beside", b"x", 0o644, ""),),
    (("x" * 256, b"x", 0o644, ""),),
    (("a", b"", 0o777, "../beside"),),
    (("a", b"", 0o777, "{beside}"),),
    (("a", b"", 0o777, "C:beside"),),
    (("d/e/a", b"", 0o777, "f/../../../beside"),),
    (("a", b"", 0o777, "."), ("a/b", b"", 0o777, "../beside")),
)


def stray(number: int, beside: Path) -> tuple[File, ...]:
    """One kind of stray members."""
    there = beside.as_posix()
    return tuple((name.format(beside=there), data, mode, to.format(beside=there)) for name, data, mode, to in STRAYS[number])


def tarball(path: Path, *files: File, kind: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content, mode, target in files:
            info = tarfile.TarInfo(name)
            info.mode, info.linkname, info.size = mode, target, len(content or b"")
            info.type = kind or (tarfile.SYMTYPE if target else tarfile.DIRTYPE if content is None else tarfile.REGTYPE)
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def zipped(path: Path, *files: File, kind: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content, mode, target in files:
            info = zipfile.ZipInfo(name)
            info.external_attr = ((kind or (stat.S_IFLNK if target else 0)) | mode) << 16
            file.writestr(info, target.encode() if target else content or b"")
    return path
