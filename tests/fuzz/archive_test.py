"""Archives: what is in them stays in its folder, and what is wrong with them is told."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.util import archive
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import reading
from tests.fuzz.common import spoilt
from tests.fuzz.common import words

NAMES = ("a", "a/b", "a/b/c", "A", "b", "b/../../x", "./a", "a//b", "a/", "a/b/", "é", "x.tar")
CAP = 100_000
names = st.sampled_from(NAMES) | words
kinds = st.sampled_from(("file", "file", "folder", "link", "hard", "device", "pipe"))
entries = st.lists(st.tuples(names, kinds, names, st.sampled_from((0, 0o644, 0o755, 0o4777))), max_size=6)
KINDS = {
    "folder": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "pipe": tarfile.FIFOTYPE,
}
MODES = {"file": stat.S_IFREG, "folder": stat.S_IFDIR, "link": stat.S_IFLNK, "device": stat.S_IFCHR, "pipe": stat.S_IFIFO}


def tarball(found: Any, packing: str) -> bytes:
    """A tar of entries."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=f"w:{packing}", format=tarfile.PAX_FORMAT, errors="surrogatepass") as tar:
        for name, kind, target, mode in found:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname = KINDS.get(kind, tarfile.REGTYPE), mode, target
            info.size = len(name) if kind == "file" else 0
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return made.getvalue()


def zipped(found: Any) -> bytes:
    """A zip of entries."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, kind, target, mode in found:
            info = zipfile.ZipInfo((name or "a").encode("utf-8", "replace").decode() + ("/" if kind == "folder" else ""))
            info.external_attr = (MODES.get(kind, 0) | mode) << 16
            pack.writestr(info, target.encode("utf-8", "replace"))
    return made.getvalue()


whole_tar = st.tuples(entries, st.sampled_from(("gz", "", "xz"))).map(lambda each: tarball(*each))
tars = st.tuples(st.just("a.tar.gz"), whole_tar | spoilt(whole_tar) | st.binary(max_size=200))
whole_zip = entries.map(zipped)
zips = st.tuples(st.just("a.zip"), whole_zip | spoilt(whole_zip) | st.binary(max_size=200))


@fuzzed(tars | zips)
def test_archives(said: tuple[str, bytes]) -> None:
    name, content = said
    with folder() as here:
        (here / name).write_bytes(content)
        reading(lambda: archive.unpack(here / name, here / "out", cap=CAP))
        assert {each.name for each in here.iterdir()} == {name, "out"}
        for path in (here / "out").rglob("*"):
            assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(here / "out")), path
