"""The hub's routes that take uploads: large files in one piece or in parts, and a commit; with what goes wrong there."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from tests.support.stage import cards
from tests.support.stage.hub import Hub
from tests.support.stage.hub import Route
from tests.support.stage.hub import Routes
from tests.support.stage.repositories import Commit
from tests.support.stage.repositories import Repo
from tests.support.stage.repositories import first
from tests.support.stage.repositories import following

USER = "tester"  # whose every token is
NO_TOKEN = "Invalid username or password."
READ_ONLY = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
NO_RIGHTS = "You don't have the rights to create a model under the namespace"
MOVED = "A commit has happened since. Please refresh and try again."
BROKEN = "Internal Error - We're working hard to fix this as soon as possible!"
LOST = "Your push was rejected because an LFS pointer pointed to a file that does not exist. Offending file: "
PUBLIC_QUOTA = "Your storage patterns tripped our internal systems! Please contact us at website@huggingface.co"
PRIVATE_QUOTA = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."


class UploadHub(Hub):
    """A hub that takes uploads. These faults come once, and then are no longer in `fault`:

    moved, 500-before-commit, 500-after-commit, cut-after-commit, cut-part, part-503. These last while they are set:
    read-only, quota, no-lfs, lost-blob, silent-commit (nothing is committed), other-bytes, elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = UploadRoute
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_bytes = 5 * 10**9  # what is larger goes in parts of so much
        self.writing = threading.RLock()

    def once(self, fault: str) -> bool:
        with self.writing:
            due = self.fault == fault
            self.fault = "" if due else self.fault
        return due

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
        commit = following(self.head(repo, branch), title, description, changes)
        for name in commit.files:
            if "lfs" in (entry := commit.entry(name)):
                self.blobs[entry["lfs"]["oid"]] = commit.files[name]
        self.commits(repo, branch).append(commit)
        return commit


def signed(answer: Callable[..., None]) -> Callable[..., None]:
    """An answer for who has a token."""

    @wraps(answer)
    def checked(route: UploadRoute, *words: str) -> None:
        if "Authorization" in route.headers:
            return answer(route, *words)
        # Of an https address the library takes a 401 about a repository for this; of ours it must be told.
        return route.refuse(401, NO_TOKEN, "RepoNotFound" if route.path.startswith("/api/models/") else "")

    return checked


def writes(answer: Callable[..., None]) -> Callable[..., None]:
    """An answer for who may write to a repository."""

    @signed
    @wraps(answer)
    def checked(route: UploadRoute, repo: str, *words: str) -> None:
        return route.refuse(403, READ_ONLY) if route.server.fault == "read-only" else answer(route, repo, *words)

    return checked


class UploadRoute(Route):
    server: UploadHub
    sent: bytes
    cut: bool

    def do_POST(self) -> None:
        self.route()

    def do_PUT(self) -> None:
        self.route()

    def route(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        self.cut = self.command == "PUT" and self.server.once("cut-part")
        self.sent = self.rfile.read(size // 2 if self.cut else size)
        super().route()

    def routes(self) -> Routes:
        models, git = r"/api/models/([^/]+/[^/]+)", r"/([^/]+/[^/]+)\.git/info/lfs/objects"
        return (
            (r"GET /api/whoami-v2", self.account),
            (r"POST /api/validate-yaml", self.validate),
            (r"POST /api/repos/create", self.create),
            (rf"GET {models}(?:/revision/([^/]+))?", self.about),
            (rf"GET {models}/tree/([^/]+)", self.tree),
            (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.download),
            (r"GET /store/([0-9a-f]{64})", self.body),
            (rf"POST {models}/branch/([^/]+)", self.branch),
            (rf"POST {models}/preupload/([^/]+)", self.preupload),
            (rf"GET {models}/xet-write-token/([^/]+)", self.xet_key),
            (rf"POST {git}/batch", self.batch),
            (r"PUT /store/([0-9a-f]{64})(?:/(\d+))?", self.put),
            (r"POST /api/complete_multipart/([0-9a-f]{64})", self.complete),
            (rf"POST {git}/verify", self.verify),
            (rf"POST {models}/commit/([^/]+)", self.commit),
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

    @signed
    def account(self) -> None:
        token = {"displayName": "token", "role": "read" if self.server.fault == "read-only" else "write"}
        self.document(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token", "accessToken": token}})

    def validate(self) -> None:
        text = json.loads(self.sent)["content"]
        verdict = {"errors": cards.errors(text), "warnings": cards.warnings(text)}
        messages = {kind: [{"message": line} for line in lines] for kind, lines in verdict.items()}
        self.document(400 if verdict["errors"] else 200, messages)

    @signed
    def create(self) -> None:
        request = json.loads(self.sent)
        namespace = request["organization"] or USER
        repo = f"{namespace}/{request['name']}"
        if self.server.fault == "read-only":
            return self.refuse(403, f'{NO_RIGHTS} "{namespace}"')
        if repo in self.server.repos:
            return self.refuse(409, "You already created this model repo", url=f"{self.server.url}/{repo}")
        self.server.seed(repo, {}, private=request.get("visibility") == "private" or request.get("private", False))
        return self.document(200, {"url": f"{self.server.url}/{repo}", "name": repo})

    def about(self, repo: str, revision: str) -> None:
        if not (commit := self.at(repo, revision or "main")):
            return
        place, siblings = self.server.repos[repo], []
        for entry in map(commit.entry, commit.files):
            lfs = {**entry["lfs"], "sha256": entry["lfs"]["oid"]} if "lfs" in entry else None
            sizes = {"size": entry["size"], "blobId": entry["oid"], "lfs": lfs} if "blobs=" in self.path else {}
            siblings.append({"rfilename": entry["path"], **sizes})
        card = place.card_data or cards.front_matter(commit.files.get("README.md", b"").decode())
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

    @writes
    def branch(self, repo: str, name: str) -> None:
        if not (start := self.at(repo, json.loads(self.sent).get("startingPoint") or "main")):
            return None
        branches = self.server.repos[repo].branches
        if name in branches:
            return self.refuse(409, "Reference already exists")
        commits = next(commits for commits in branches.values() if start in commits)
        branches[name] = commits[: commits.index(start) + 1]
        return self.document(200, {"success": True})

    @writes
    def preupload(self, repo: str, revision: str) -> None:
        if not (head := self.at(repo, revision)):
            return
        answers = []
        for file in json.loads(self.sent)["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            mode = "lfs" if head.by_lfs(path, file["size"], sample) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in head.files:
                entry = head.entry(path)
                answers[-1]["oid"] = entry.get("lfs", entry)["oid"]
        self.document(200, {"commitOid": head.oid, "files": answers})

    @writes
    def xet_key(self, repo: str, revision: str) -> None:
        return self.key(repo, revision) if self.server.xet else self.reply(404)

    def over_quota(self, repo: str) -> None:
        self.refuse(403, PRIVATE_QUOTA if self.server.repos[repo].private else PUBLIC_QUOTA)

    @writes
    def batch(self, repo: str) -> None:
        if self.server.fault == "no-lfs":
            return self.reply(404)
        if not self.at(repo, "main"):
            return None
        if self.server.fault == "quota":
            return self.over_quota(repo)
        objects = []
        for entry in json.loads(self.sent)["objects"]:
            there = entry["oid"] in self.server.blobs or self.server.fault == "lost-blob"
            verify = {"href": f"{self.server.url}/{repo}.git/info/lfs/objects/verify"}
            actions = {} if there else {"actions": {"upload": self.upload(entry["oid"], entry["size"]), "verify": verify}}
            objects.append({**entry, "authenticated": True, **actions})
        return self.document(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str, size: int) -> dict[str, Any]:
        """Where a blob goes: to one address, or in parts to one each, and then to be put together."""
        place, length = f"{self.server.store}/store/{oid}", self.server.part_bytes
        if size <= length:
            return {"href": place}
        parts = {f"{number:05}": f"{place}/{number}" for number in range(1, -(-size // length) + 1)}
        return {"href": f"{self.server.url}/api/complete_multipart/{oid}", "header": {"chunk_size": str(length), **parts}}

    def put(self, oid: str, part: str) -> None:
        if self.cut:
            return self.silence(seconds=0)
        # Its addresses are signed: a token besides is refused, and so is a body of no told length.
        if "Authorization" in self.headers or "Content-Length" not in self.headers:
            return self.reply(400)
        if self.server.once("part-503"):
            return self.reply(503)
        if part:
            self.server.parts[oid, int(part)] = self.sent
        elif not self.keep(oid, self.sent):
            return self.reply(400)
        return self.reply(200, ETag=etag(self.sent))

    def complete(self, oid: str) -> None:
        parts = [(self.server.parts.get((oid, part["partNumber"]), b""), part["etag"]) for part in json.loads(self.sent)["parts"]]
        kept = all(etag(part) == tag for part, tag in parts) and self.keep(oid, b"".join(part for part, _ in parts))
        self.document(200 if kept else 400, {"success": kept})

    def keep(self, oid: str, content: bytes) -> bool:
        """Whether a blob is what its name says; then it is kept."""
        true = hashlib.sha256(content).hexdigest() == oid
        self.server.blobs |= {oid: content} if true else {}
        return true

    @writes
    def verify(self, repo: str) -> None:
        entry = json.loads(self.sent)
        self.reply(200 if len(self.server.blobs.get(entry["oid"], b"")) == entry["size"] else 404)

    @writes
    def commit(self, repo: str, branch: str) -> None:
        server = self.server
        if server.fault == "silent-commit":
            return self.silence()
        with server.writing:
            commit = self.at(repo, branch) and self.record(repo, branch)
        if not commit:
            return None
        if server.once("500-after-commit"):
            return self.refuse(500, BROKEN)
        if server.once("cut-after-commit"):
            return self.silence(seconds=0)
        place = server.store if server.fault == "elsewhere" else server.url
        url = f"{place}/{repo}/commit/{commit.oid}"
        return self.document(200, {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def record(self, repo: str, branch: str) -> Commit | None:
        """Add the commit that was sent; None when a refusal has been sent."""
        server = self.server
        header, *operations = (json.loads(line) for line in self.sent.splitlines())
        if server.once("moved"):
            server.record(repo, branch, "Add another.txt", "", {"another.txt": b"of another writer"})
        head, changes = server.head(repo, branch), {one["value"]["path"]: self.content(**one) for one in operations}
        paths = {key: {one["value"]["path"] for one in operations if one["key"] == key} for key in ("lfsFile", "deletedFile")}
        lost = sorted(path for path in paths["lfsFile"] if changes[path] is None)
        if server.once("500-before-commit"):
            self.refuse(500, BROKEN)
        elif server.fault == "quota":
            self.over_quota(repo)
        elif header["value"].get("parentCommit", head.oid) != head.oid:
            self.refuse(412, MOVED)
        elif paths["deletedFile"] - set(head.files):
            self.refuse(404, "A file with this name doesn't exist", "EntryNotFound")
        elif lost:
            self.refuse(400, LOST + " ".join(f"- {path}" for path in lost))
        else:
            if server.fault == "other-bytes":
                longest = max(changes, key=lambda path: len(changes[path] or b""))
                changes[longest] = bytes([255 ^ sign for sign in changes[longest] or b""])
            return server.record(repo, branch, header["value"]["summary"], header["value"]["description"], changes)
        return None

    def content(self, key: str, value: dict[str, Any]) -> bytes | None:
        """What an operation makes of its file: None where it deletes it, and for a blob that is not there."""
        if key == "file":
            return base64.b64decode(value["content"])
        return self.server.blobs.get(value["oid"]) if key == "lfsFile" and self.server.fault != "lost-blob" else None


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
