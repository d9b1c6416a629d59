"""Repositories as the hub keeps and shows them: branches of commits, and large files as pointers that .gitattributes names."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from tests.support.stage import cards
from tests.support.stage.hub import Hub
from tests.support.stage.hub import Route
from tests.support.stage.hub import Routes
from tests.support.stage.hub import blob

LARGE_BYTES = 10 * 1024 * 1024  # from here on no file is whole in git itself
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
        return size > 0 and (in_attributes(self.files, name) or size >= LARGE_BYTES or name.endswith(".gguf") or b"\0" in sample)

    def entry(self, name: str) -> dict[str, Any]:
        """How the hub lists a file."""
        content = self.files[name]
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
        if not content or not in_attributes(self.files, name):
            return {**entry, "oid": blob(content)}
        digest = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
        return {**entry, "oid": blob(pointer), "lfs": {"oid": digest, "size": len(content), "pointerSize": len(pointer)}}


class Repo(msgspec.Struct):
    private: bool = False
    gated: str | bool = False
    card_data: dict[str, Any] = {}  # instead of what its README.md begins with
    branches: dict[str, list[Commit]] = {}


def in_attributes(files: dict[str, bytes], name: str) -> bool:
    """Whether a line of .gitattributes names a file as one for LFS."""
    lines = files.get(".gitattributes", b"").decode().splitlines()
    patterns = [line.partition(" filter=lfs")[0] for line in lines if " filter=lfs" in line]
    return any(pattern == name or fnmatchcase(name, pattern) for pattern in patterns)


def successor(parent: Commit, title: str, description: str, changes: dict[str, bytes | None]) -> Commit:
    """The commit after another, with new content by path, None for a file that goes.

    As on the hub, .gitattributes gets a line for each large file that no pattern there names.
    """
    files = {name: content for name, content in {**parent.files, **changes}.items() if content is not None}
    for name in changes:
        content = files.get(name, b"")
        if parent.by_lfs(name, len(content), content[:512]) and not in_attributes(files, name):
            files[".gitattributes"] = files.get(".gitattributes", b"") + (name + LFS_LINE).encode()
    stamp = json.dumps([parent.oid, title, description, {name: blob(content) for name, content in files.items()}])
    return Commit(hashlib.sha1(stamp.encode()).hexdigest(), title, description, files)


def first() -> Commit:
    """The commit that each model repository begins with."""
    return successor(Commit("", "", "", {}), "initial commit", "", {".gitattributes": ATTRIBUTES})


class Repositories(Hub):
    """A hub with many repositories."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = RepositoryRoute
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}  # large files, by sha256

    def commits(self, repo: str, branch: str = "main") -> list[Commit]:
        return self.repos[repo].branches[branch]

    def head(self, repo: str, branch: str = "main") -> Commit:
        return self.commits(repo, branch)[-1]

    def seed(self, repo: str, files: dict[str, bytes], **how: Any) -> Repo:
        """Put a repository there, with files on main if there are any."""
        self.repos[repo] = Repo(**how, branches={"main": [first()]})
        if files:
            self.record(repo, "main", "Upload files", "", dict(files))
        return self.repos[repo]

    def record(self, repo: str, branch: str, title: str, description: str, changes: dict[str, bytes | None]) -> Commit:
        """Add a commit to a branch, and its large files to the blobs."""
        commit = successor(self.head(repo, branch), title, description, changes)
        for name in commit.files:
            if "lfs" in (entry := commit.entry(name)):
                self.blobs[entry["lfs"]["oid"]] = commit.files[name]
        self.commits(repo, branch).append(commit)
        return commit


class RepositoryRoute(Route):
    server: Repositories

    def routes(self) -> Routes:
        return (
            (r"GET /api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.about),
            (r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+)", self.tree),
            (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.download),
            (r"GET /store/([0-9a-f]{64})", self.body),
        )

    def refuse(self, status: int, words: str, code: str = "", **more: str) -> None:
        self.document(status, {"error": words, **more}, X_Error_Message=words, X_Error_Code=code)

    def at(self, repo: str, revision: str) -> Commit | None:
        """The commit that a branch or a commit's name means; None when a refusal has been sent."""
        place = self.server.repos.get(repo)
        if place is None or (place.private and "Authorization" not in self.headers):
            self.refuse(404 if "Authorization" in self.headers else 401, "Repository not found", "RepoNotFound")
            return None
        for name, commits in place.branches.items():
            for commit in reversed(commits):
                if revision in (name, commit.oid):
                    return commit
        self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return None

    def about(self, repo: str, revision: str) -> None:
        if not (commit := self.at(repo, revision or "main")):
            return
        place, siblings = self.server.repos[repo], []
        for entry in map(commit.entry, commit.files):
            lfs = {**entry["lfs"], "sha256": entry["lfs"]["oid"]} if "lfs" in entry else None
            sizes = {"size": entry["size"], "blobId": entry["oid"], "lfs": lfs} if "blobs=" in self.path else {}
            siblings.append({"rfilename": entry["path"], **sizes})
        card = place.card_data or cards.card_data(commit.files.get("README.md", b"").decode(errors="replace"))
        document: dict[str, Any] = {
            "id": repo,
            "author": repo.partition("/")[0],
            "sha": commit.oid,
            "lastModified": "2026-01-01T00:00:00.000Z",
        }
        document |= {"private": place.private, "gated": place.gated, "disabled": False, "tags": [], "siblings": siblings}
        self.document(200, document | ({"cardData": card} if card else {}))

    def tree(self, repo: str, revision: str) -> None:
        if commit := self.at(repo, revision):
            folders = sorted({name[:end] for name in commit.files for end, sign in enumerate(name) if sign == "/"})
            entries: list[dict[str, Any]] = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
            entries += map(commit.entry, commit.files)
            recursive = "recursive=true" in self.path.lower()
            self.document(200, [entry for entry in entries if recursive or "/" not in entry["path"]])

    def download(self, repo: str, revision: str, name: str) -> None:
        if not (commit := self.at(repo, revision)):
            return None
        if self.server.repos[repo].gated and "Authorization" not in self.headers:
            return self.refuse(401, f"Access to model {repo} is restricted. Please log in.", "GatedRepo")
        if name not in commit.files:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit.oid)
        entry, content = commit.entry(name), commit.files[name]
        if "lfs" not in entry:
            return self.reply(200, content, ETag=f'"{entry["oid"]}"', X_Repo_Commit=commit.oid)
        digest = entry["lfs"]["oid"]
        link = {"X_Linked_Size": str(len(content)), "X_Linked_ETag": f'"{digest}"', "X_Repo_Commit": commit.oid}
        return self.reply(302, b"", Location=f"{self.server.store}/store/{digest}", **link)

    def body(self, name: str) -> None:
        self.reply(200, self.server.blobs[name])
