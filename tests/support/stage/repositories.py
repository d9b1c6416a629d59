"""Repositories as the hub keeps them: branches of commits, and large files as pointers that .gitattributes names."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from tests.support.stage.hub import blob

LARGE_BYTES = 10 * 1024 * 1024  # from here on no file is kept in git itself
LFS_LINE = " filter=lfs diff=lfs merge=lfs -text\n"
# What the hub writes into each new model repository. GGUF is not among it: each such file gets a line of its own.
PATTERNS = """*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot
 *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz
 *.zip *.zst *tfevents*"""
ATTRIBUTES = "".join(pattern + LFS_LINE for pattern in PATTERNS.split()).encode()


class Commit(msgspec.Struct, frozen=True):
    """One state of a branch, with all its files."""

    oid: str
    title: str
    description: str
    files: dict[str, bytes]

    def by_lfs(self, name: str, size: int, sample: bytes) -> bool:
        """Whether the hub wants a file of so many bytes by LFS: for its name or size, or as no text; never an empty one."""
        return size > 0 and (attributed(self.files, name) or size >= LARGE_BYTES or name.endswith(".gguf") or b"\0" in sample)

    def entry(self, name: str) -> dict[str, Any]:
        """How the hub lists a file."""
        content = self.files[name]
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
        if not content or not attributed(self.files, name):
            return {**entry, "oid": blob(content)}
        digest = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
        return {**entry, "oid": blob(pointer), "lfs": {"oid": digest, "size": len(content), "pointerSize": len(pointer)}}


class Repo(msgspec.Struct):
    private: bool = False
    gated: str | bool = False
    card_data: dict[str, Any] = {}  # instead of what its README.md begins with
    branches: dict[str, list[Commit]] = {}


def attributed(files: dict[str, bytes], name: str) -> bool:
    """Whether a line of .gitattributes names a file as one for LFS."""
    lines = files.get(".gitattributes", b"").decode().splitlines()
    patterns = [line.partition(" filter=lfs")[0] for line in lines if " filter=lfs" in line]
    return any(pattern == name or fnmatchcase(name, pattern) for pattern in patterns)


def following(parent: Commit, title: str, description: str, changes: dict[str, bytes | None]) -> Commit:
    """The commit after another, with new content by path, None for a file that goes.

    As on the hub, .gitattributes gets a line for each large file that no pattern there names.
    """
    files = {name: content for name, content in {**parent.files, **changes}.items() if content is not None}
    for name in changes:
        content = files.get(name, b"")
        if parent.by_lfs(name, len(content), content[:512]) and not attributed(files, name):
            files[".gitattributes"] = files.get(".gitattributes", b"") + (name + LFS_LINE).encode()
    stamp = json.dumps([parent.oid, title, description, {name: blob(content) for name, content in files.items()}])
    return Commit(hashlib.sha1(stamp.encode()).hexdigest(), title, description, files)


def first() -> Commit:
    """The commit that each model repository begins with."""
    return following(Commit("", "", "", {}), "initial commit", "", {".gitattributes": ATTRIBUTES})
