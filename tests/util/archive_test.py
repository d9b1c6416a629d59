"""An archive is whole or nothing: sums and ends of both formats, damaged in each place that a network or disk can damage."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.util import archive

FILES = {"a/one": os.urandom(3000), "a/two": os.urandom(3000), "a/three": b""}
BLOCK = tarfile.BLOCKSIZE


def tar(end: bytes = bytes(2 * BLOCK)) -> bytes:
    """A plain tar of the files, with another end than two empty blocks if need be."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as packed:
        for name, content in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
        length = packed.offset
    return made.getvalue()[:length] + end


def packed(content: bytes) -> bytes:
    """The same under gzip."""
    return gzip.compress(content, mtime=0)


def zipped(kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of the files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", kind) as file:
        for name, content in FILES.items():
            file.writestr(name, content)
    return made.getvalue()


def turned(data: bytes, at: int) -> bytes:
    """The same with one byte changed."""
    return data[: at % len(data)] + bytes([data[at] ^ 0xFF]) + data[at % len(data) + 1 :]


def header(number: int) -> int:
    """Where the header of a file begins in the tar."""
    return (0, 7 * BLOCK, 14 * BLOCK)[number]


DAMAGED = {
    "gzip without its sums": ("a.tar.gz", lambda: packed(tar())[:-8]),
    "gzip with half of its sums": ("a.tar.gz", lambda: packed(tar())[:-4]),
    "gzip of another sum": ("a.tar.gz", lambda: turned(packed(tar()), -8)),
    "gzip of another length": ("a.tar.gz", lambda: turned(packed(tar()), -1)),
    "gzip that is cut behind the tar": ("a.tar.gz", lambda: packed(tar(bytes(20 * BLOCK)))[:-12]),
    "gzip with something behind": ("a.tar.gz", lambda: packed(tar()) + b"something"),
    "gzip of a second part that is cut": ("a.tar.gz", lambda: packed(tar()[:BLOCK]) + packed(tar()[BLOCK:])[:-6]),
    "tar without an end, packed": ("a.tar.gz", lambda: packed(tar(b""))),
    "tar without an end": ("a.tar", lambda: tar(b"")),
    "tar with half of an end": ("a.tar", lambda: tar(bytes(BLOCK // 2))),
    "tar with something for an end": ("a.tar", lambda: tar(b"x" * 2 * BLOCK)),
    "tar that is cut between files": ("a.tar", lambda: tar()[: header(1)]),
    "tar that is cut in a file": ("a.tar", lambda: tar()[: header(1) + 2 * BLOCK]),
    "tar that is cut in a header": ("a.tar", lambda: tar()[: header(2) + 100]),
    "tar with a damaged header": ("a.tar", lambda: turned(tar(), header(1) + 3)),
    "tar with a damaged header, packed": ("a.tar.gz", lambda: packed(turned(tar(), header(2) + 3))),
    "zip of another sum": ("a.zip", lambda: turned(zipped(zipfile.ZIP_STORED), 1000)),
    "zip of another sum, packed": ("a.zip", lambda: turned(zipped(), 1000)),
    "zip without its list": ("a.zip", lambda: zipped()[:-60]),
    "zip with an empty file of another sum": (
        "a.zip",
        lambda: zipped().replace(struct.pack("<LLL", 0, 2, 0), struct.pack("<LLL", 1, 2, 0)),
    ),
}


@pytest.mark.parametrize(
    ("name", "action"),
    [
        (name, action)
        for name, (ending, _) in DAMAGED.items()
        # Each file of a zip has a sum of its own: of a part, the rest does not matter.
        for action in ("check", "unpack", *(["unpack a part"] if ending != "a.zip" else []))
    ],
)
def test_what_is_not_whole_is_refused(name: str, action: str, tmp_path: Path) -> None:
    ending, make = DAMAGED[name]
    file = tmp_path / ending
    file.write_bytes(make())
    with pytest.raises(IntegrityError, match="is damaged: "):
        if action == "check":
            archive.check(file)
        else:
            archive.unpack(file, tmp_path / "dest", keep=None if action == "unpack" else lambda path: path == "a/one")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.tar", tar), ("a.tar.gz", lambda: packed(tar())), ("a.zip", zipped), ("a.whl", lambda: zipped(zipfile.ZIP_STORED)),
        ("a.tar", lambda: tar(bytes(BLOCK))), ("a.tar.gz", lambda: packed(tar(bytes(20 * BLOCK)))),
        ("a.tar.gz", lambda: packed(tar()[:BLOCK]) + packed(tar()[BLOCK:])), ("a.tar.gz", lambda: packed(tar()) + bytes(512)),
    ],
)  # fmt: skip
def test_what_is_whole_is_taken(name: str, make: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(make())
    archive.check(tmp_path / name)
    archive.unpack(tmp_path / name, tmp_path / "dest")
    assert {path: (tmp_path / "dest" / path).read_bytes() for path in FILES} == FILES


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_nothing_without_end_is_read_behind_the_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "HEADERS", 20 * BLOCK)
    content = tar(bytes(4000 * BLOCK))
    (tmp_path / name).write_bytes(packed(content) if name.endswith(".gz") else content)
    with pytest.raises(IntegrityError, match="the cap"):
        archive.check(tmp_path / name, cap=10_000)
