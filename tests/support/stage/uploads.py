"""The hub's routes that take uploads: large files in one piece or in parts, and a commit; with what goes wrong there."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from tests.support.stage import cards
from tests.support.stage.hub import KEY
from tests.support.stage.hub import Routes
from tests.support.stage.repositories import Commit
from tests.support.stage.repositories import Repositories
from tests.support.stage.repositories import RepositoryRoute

USER, ORGS = "tester", [{"type": "org", "name": "org", "roleInOrg": "write"}]  # whose every token is
NO_TOKEN = "Invalid username or password."
READ_ONLY = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
NO_RIGHTS = "You don't have the rights to create a model under the namespace"
MOVED = "A commit has happened since. Please refresh and try again."
BUSY = "Another commit operation is in progress for this repository. Please try again later."
BROKEN = "Internal Error - We're working hard to fix this as soon as possible!"
LOST = (
    "Your push was rejected because an LFS pointer pointed to a file that does not exist. For instance, this can happen if you"
    " used git push --no-verify to push your changes. Offending file: "
)
PUBLIC_QUOTA = (
    "Your storage patterns tripped our internal systems! Please contact us at website@huggingface.co so we can verify your"
    " account and unlock more storage for your use-case."
)
PRIVATE_QUOTA = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."


class UploadHub(Repositories):
    """A hub that takes uploads. These faults come once, and then are no longer in `fault`:

    moved, busy, 500-before-commit, 500-after-commit, cut-after-commit, cut-part, part-503. These last while they are set:
    read-only, quota, no-lfs, lost-blob, silent-commit (nothing is committed), page-commit (nor there), other-bytes, elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = UploadRoute
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_bytes = 5 * 10**9  # what is larger goes in parts of so much
        self.writing = threading.RLock()

    def once(self, fault: str) -> bool:
        with self.writing:
            due = self.fault == fault
            self.fault = "" if due else self.fault
        return due


def needs_token(answer: Callable[..., None]) -> Callable[..., None]:
    """An answer for who has a token."""

    @wraps(answer)
    def guard(route: UploadRoute, *words: str) -> None:
        if "Authorization" in route.headers:
            return answer(route, *words)
        # Of an https address the library takes a 401 about a repository for this; of ours it must be told.
        return route.refuse(401, NO_TOKEN, "RepoNotFound" if route.path.startswith("/api/models/") else "")

    return guard


def writes(answer: Callable[..., None]) -> Callable[..., None]:
    """An answer for who may write to a repository."""

    @needs_token
    @wraps(answer)
    def guard(route: UploadRoute, repo: str, *words: str) -> None:
        return route.refuse(403, READ_ONLY) if route.server.fault == "read-only" else answer(route, repo, *words)

    return guard


class UploadRoute(RepositoryRoute):
    server: UploadHub
    payload: bytes
    cut: bool

    def do_POST(self) -> None:
        self.route()

    def do_PUT(self) -> None:
        self.route()

    def route(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        self.cut = self.command == "PUT" and self.server.once("cut-part")
        self.payload = self.rfile.read(size // 2 if self.cut else size)
        super().route()

    def routes(self) -> Routes:
        models, git = r"/api/models/([^/]+/[^/]+)", r"/([^/]+/[^/]+)\.git/info/lfs/objects"
        return (
            (r"GET /api/whoami-v2", self.account),
            (r"POST /api/validate-yaml", self.validate),
            (r"POST /api/repos/create", self.create),
            (rf"POST {models}/branch/([^/]+)", self.branch),
            (rf"POST {models}/preupload/([^/]+)", self.preupload),
            (rf"GET {models}/xet-write-token/([^/]+)", self.xet_key),
            (rf"POST {git}/batch", self.batch),
            (r"PUT /store/([0-9a-f]{64})(?:/(\d+))?", self.put),
            (r"POST /api/complete_multipart/([0-9a-f]{64})", self.complete),
            (rf"POST {git}/verify", self.verify),
            (rf"POST {models}/commit/([^/]+)", self.commit),
            *super().routes(),
        )

    @needs_token
    def account(self) -> None:
        token = {"displayName": "token", "role": "read" if self.server.fault == "read-only" else "write"}
        self.document(200, {"type": "user", "name": USER, "orgs": ORGS, "auth": {"type": "access_token", "accessToken": token}})

    def validate(self) -> None:
        text = json.loads(self.payload)["content"]
        verdict = {"errors": cards.errors(text), "warnings": cards.warnings(text)}
        messages = {kind: [{"message": line} for line in lines] for kind, lines in verdict.items()}
        self.document(400 if verdict["errors"] else 200, messages)

    @needs_token
    def create(self) -> None:
        request = json.loads(self.payload)
        namespace = request["organization"] or USER
        repo = f"{namespace}/{request['name']}"
        if self.server.fault == "read-only":
            return self.refuse(403, f'{NO_RIGHTS} "{namespace}"')
        if repo in self.server.repos:
            return self.refuse(409, "You already created this model repo", url=f"{self.server.url}/{repo}")
        self.server.seed(repo, {}, private=request.get("visibility") == "private" or request.get("private", False))
        return self.document(200, {"url": f"{self.server.url}/{repo}", "name": repo})

    @writes
    def branch(self, repo: str, name: str) -> None:
        if not (start := self.at(repo, json.loads(self.payload).get("startingPoint") or "main")):
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
        for file in json.loads(self.payload)["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            mode = "lfs" if head.by_lfs(path, file["size"], sample) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in head.files:
                entry = head.entry(path)
                answers[-1]["oid"] = entry.get("lfs", entry)["oid"]
        self.document(200, {"commitOid": head.oid, "files": answers})

    @writes
    def xet_key(self, repo: str, revision: str) -> None:
        if not self.server.xet:
            return self.reply(404)
        # The newer store's own client reads what the library reads from headers.
        expiry = int(time.time()) + 3600
        headers = {"X_Xet_Cas_Url": self.server.xet, "X_Xet_Access_Token": KEY, "X_Xet_Token_Expiration": str(expiry)}
        return self.document(200, {"casUrl": self.server.xet, "accessToken": KEY, "exp": expiry}, **headers)

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
        for entry in json.loads(self.payload)["objects"]:
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
            self.server.parts[oid, int(part)] = self.payload
        elif not self.keep(oid, self.payload):
            return self.reply(400)
        return self.reply(200, ETag=etag(self.payload))

    def complete(self, oid: str) -> None:
        parts = [
            (self.server.parts.get((oid, part["partNumber"]), b""), part["etag"]) for part in json.loads(self.payload)["parts"]
        ]
        whole = all(etag(part) == tag for part, tag in parts) and self.keep(oid, b"".join(part for part, _ in parts))
        self.document(200 if whole else 400, {"success": whole})

    def keep(self, oid: str, content: bytes) -> bool:
        """Whether a blob is what its name says; then it is kept."""
        true = hashlib.sha256(content).hexdigest() == oid
        self.server.blobs |= {oid: content} if true else {}
        return true

    @writes
    def verify(self, repo: str) -> None:
        entry = json.loads(self.payload)
        self.reply(200 if len(self.server.blobs.get(entry["oid"], b"")) == entry["size"] else 404)

    @writes
    def commit(self, repo: str, branch: str) -> None:
        server = self.server
        if server.fault == "silent-commit":
            return self.silence()
        if server.fault == "page-commit":
            return self.page()
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
        header, *operations = (json.loads(line) for line in self.payload.splitlines())
        if server.once("moved"):
            server.record(repo, branch, "Add another.txt", "", {"another.txt": b"of another writer"})
        head, changes = server.head(repo, branch), {one["value"]["path"]: self.content(**one) for one in operations}
        paths = {key: {one["value"]["path"] for one in operations if one["key"] == key} for key in ("lfsFile", "deletedFile")}
        lost = sorted(path for path in paths["lfsFile"] if changes[path] is None)
        if server.once("500-before-commit"):
            self.refuse(500, BROKEN)
        elif server.once("busy"):
            self.refuse(409, BUSY)
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
                content = changes[longest] or b""
                changes[longest] = content[:-1] + (b"?" if content[-1:] != b"?" else b"!")
            return server.record(repo, branch, header["value"]["summary"], header["value"]["description"], changes)
        return None

    def content(self, key: str, value: dict[str, Any]) -> bytes | None:
        """What an operation makes of its file: None where it deletes it, and for a blob that is not there."""
        if key == "file":
            return base64.b64decode(value["content"])
        return self.server.blobs.get(value["oid"]) if key == "lfsFile" and self.server.fault != "lost-blob" else None


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
