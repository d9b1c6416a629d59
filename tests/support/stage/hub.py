"""The hub's routes for one repository, with the faults that hubs have; large files come from another host name."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from llamacpp_orchestrator.util.pointers import LFS
from tests.support import makers

COMMIT, OTHER = "a" * 40, "c" * 40
KEY = "key-of-the-newer-store"
LARGE = 1000  # what is larger is served the LFS way

Routes = tuple[tuple[str, Callable[..., None]], ...]


def safetensors(*names: str) -> bytes:
    """A file of weights with so many tensors of zeros."""
    return makers.packed({name: makers.zeros(512) for name in names})


MODEL = {"config.json": b"{}", "README.md": b"hello", "tokenizer.json": b"{1}", "model.safetensors": safetensors("a", "b")}


class Hub(ThreadingHTTPServer):
    """The hub's routes for one repository, and plainly for others; the file store answers under another host name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Route)
        self.files = dict(MODEL)
        self.others: dict[str, dict[str, bytes]] = {}
        self.fault = ""
        self.seen: Counter[str] = Counter()
        self.tokens: list[str] = []
        self.strayed: list[str] = []  # what was asked of another host name with a token
        self.commit = COMMIT  # where the branches are
        self.gone: set[str] = set()  # commits that are no longer there
        self.xet = ""  # where the newer store is said to be
        self.busy: tuple[str, dict[str, str]] = ("", {})  # what begins so is refused (429), with such headers
        self.over = threading.Event()
        port = self.server_address[1]
        self.url, self.store = f"http://127.0.0.1:{port}", f"http://localhost:{port}"


class Route(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.route()

    def do_GET(self) -> None:
        self.route()

    def route(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.seen[f"{self.command} {path}"] += 1
        if (token := self.headers.get("Authorization")) and token != f"Bearer {KEY}":
            self.server.tokens.append(token)
            self.server.strayed += [path] if f"http://{self.headers['Host']}" != self.server.url else []
        begins, headers = self.server.busy
        if begins and f"{self.command} {path}".startswith(begins):
            return self.reply(429, b"", **headers)
        for pattern, answer in self.routes():
            if match := re.fullmatch(pattern, f"{self.command} {self.path.partition('?')[0]}"):
                return answer(*(unquote(word or "") for word in match.groups()))
        return self.reply(404)

    def routes(self) -> Routes:
        """What is answered by what, as patterns of a method and a quoted path."""
        return (
            (r"\w+ /api/models/(.+)/revision/(.+)", self.revision),
            (r"\w+ /api/models/(.+)/tree/(.+)", self.tree),
            (r"\w+ /api/models/(.+)/xet-read-token/(.+)", self.key),
            (r"\w+ /newer/(.+)", self.silence),
            (r"\w+ /login", self.page),
            (r"\w+ /store/(.+)", self.body),
            (r"\w+ /org/m/resolve/([^/]+)/(.+)", self.resolve),
            (r"\w+ /(org/[^/]+)/resolve/[^/]+/(.+)", self.resolve_other),
        )

    def revision(self, repo: str, revision: str) -> None:
        fault = self.server.fault
        errors = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound"), "revision": (404, "RevisionNotFound"),
                  "private": (401, "RepoNotFound"), "401": (401, ""), "403": (403, ""),
                  "404": (404, ""), "429": (429, ""), "503": (503, "")}  # fmt: skip
        if fault == "silent":
            return self.silence()
        if fault in errors or (fault.startswith("once-") and self.server.seen[f"GET {self.path}"] == 1):
            status, code = errors[fault.removeprefix("once-")]
            return self.reply(status, b"", X_Error_Code=code, **({"Retry_After": "0"} if status == 429 else {}))
        if fault == "page":
            return self.page()
        if fault == "page-redirect":
            return self.reply(302, Location=f"{self.server.store}/login")
        if fault == "odd-json":
            return self.document(200, ["log in"])
        if revision in self.server.gone:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else self.server.commit
        sha = {"no-sha": None, "odd-sha": "main", "other-commit": OTHER}.get(fault, commit)
        return self.document(200, {"id": repo, "sha": sha})

    def tree(self, repo: str, commit: str) -> None:
        listed: list[dict[str, Any]] = [{"type": "directory", "path": "sub", "oid": "0" * 40}]
        for name, content in self.server.others.get(repo, self.server.files).items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob(content)}
            if len(content) > LARGE:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
                entry |= {"xetHash": "b" * 64} if self.server.xet else {}
            if self.server.fault == "oid-escape":
                entry["oid"] = "../beside"
            listed.append(entry)
        if self.server.fault == "page-tree":
            return self.page()
        if self.server.fault == "next-elsewhere":
            link = f'<{self.server.store}/steal>; rel="next"'
            return self.document(200, [], Link=link)
        return self.document(200, listed)

    def resolve(self, commit: str, name: str) -> None:
        content, fault = self.server.files.get(name), self.server.fault
        refusals = {"file-gated": (403, "GatedRepo"), "file-401": (401, ""), "file-403": (403, ""), "file-404": (404, "")}
        if fault in refusals:
            return self.reply(refusals[fault][0], X_Error_Code=refusals[fault][1])
        if fault == "page-head":
            return self.page()
        if fault == "page-head-redirect":
            return self.reply(302, Location=f"{self.server.store}/login")
        if commit in self.server.gone:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        if content is None:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        if fault == "pointer" and len(content) > LARGE:
            content = LFS + b"v1\noid sha256:00\n"
        known = {"X_Repo_Commit": {"commit-escape": "../beside", "other-commit": OTHER}.get(fault, commit)}
        if len(content) > LARGE:
            digest = "../beside" if fault == "etag-escape" else hashlib.sha256(content).hexdigest()
            if self.server.xet:
                known |= {"X_Xet_Hash": "b" * 64, "Link": f'<{self.keys()}/{commit}>; rel="xet-auth"'}
            known |= {"X_Linked_Size": str(len(content)), "X_Linked_ETag": f'"{digest}"'}
            return self.reply(302, b"", ETag='"x"', Location=f"{self.server.store}/store/{name}", **known)
        etag = "../beside" if fault == "etag-escape" else blob(content)
        return self.reply(200, content, ETag=f'"{etag}"', **known)

    def resolve_other(self, repo: str, name: str) -> None:
        """A file of another repository, large or small, without a detour."""
        content = self.server.others.get(repo, {}).get(name)
        if content is None:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        digest = hashlib.sha256(content).hexdigest() if len(content) > LARGE else blob(content)
        return self.reply(200, content, ETag=f'"{digest}"', X_Repo_Commit=COMMIT)

    def body(self, name: str) -> None:
        content, fault = self.server.files[name], self.server.fault
        first = self.server.seen[f"GET /store/{name}"] == 1
        if fault == "corrupt" or (fault == "corrupt-once" and first):
            content = content[:-1] + bytes([content[-1] ^ 255])
        elif fault == "short":
            content = content[:-100]
        elif fault == "get-500" and first:
            return self.reply(500)
        elif fault.startswith("page-file"):
            page = b"<!DOCTYPE html><title>log in</title>"
            content = page.ljust(len(content)) if fault == "page-file-as-long" else page
        elif self.command == "GET" and (fault in ("stall", "cut") or (fault == "cut-once" and first)):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:10])
            return self.silence(seconds=20 if fault == "stall" else 0)
        return self.reply(200, content)

    def keys(self) -> str:
        """Where the keys for the newer store are had."""
        place = self.server.store if self.server.fault == "keys-elsewhere" else self.server.url
        return f"{place}/api/models/org/m/xet-read-token"

    def key(self, repo: str, commit: str) -> None:
        # A key that is soon too old is asked for again, by the newer store's own client.
        soon = str(int(time.time()) + (61 if self.server.fault == "keys-elsewhere" else 3600))
        self.reply(200, X_Xet_Cas_Url=self.server.xet, X_Xet_Access_Token=KEY, X_Xet_Token_Expiration=soon)

    def page(self) -> None:
        self.reply(200, b"<html>log in</html>", Content_Type="text/html")

    def silence(self, path: str = "", seconds: float = 20) -> None:
        self.server.over.wait(seconds)
        self.close_connection = True

    def document(self, status: int, content: object, **headers: str) -> None:
        self.reply(status, json.dumps(content).encode(), Content_Type="application/json", **headers)

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
