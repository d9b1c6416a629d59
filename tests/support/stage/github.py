"""github.com and its API for one repository: git's own smart HTTP backend, the release's assets and their downloads."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import TAG

GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
GIT |= {
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
}


class GitHub(http.server.ThreadingHTTPServer):
    """git's own smart HTTP backend, the release API and its downloads."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Route)
        self.root, self.archive, self.limited, self.seen = root, b"", False, list[str]()
        self.digests, self.fetches = True, 0
        self.ending, self.platforms = ".tar.gz", ["ubuntu", "macos"]
        self.named: dict[str, bytes | None] = {}  # release → its nightly-tag.txt; the last one is the newest
        self.answers: dict[str, Callable[[Route], None]] = {}  # in the place of what a path that begins so would get
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Route(http.server.BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append(path)
        for begin, answer in self.server.answers.items():
            if path.startswith(begin):
                return answer(self)
        if path.endswith("/nightly-tag.txt"):
            return self.nightly(path)
        if path.startswith("/ggml-org/llama.cpp/releases/download/"):
            return self.reply(200 if path.endswith(f"-x64{self.server.ending}") else 404, self.server.archive)
        if path.startswith("/repos/"):
            if self.server.limited:
                return self.reply(403, b"{}", **{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4102444800"})
            asked = list(self.server.named)[-1:] if path.endswith("/releases/latest") else [path.rpartition("/")[2]]
            if asked and asked[0] in self.server.named:
                return self.reply(200, json.dumps(self.promoted(asked[0])).encode())
            return self.reply(200 if path.endswith(f"/{TAG}") else 404, json.dumps(self.release()).encode())
        return self.git(b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.server.fetches += b"command=fetch" in said
        self.git(body)

    def release(self) -> dict[str, Any]:
        names = [f"llama-{TAG}-bin-{platform}-x64{self.server.ending}" for platform in self.server.platforms]
        place = f"{self.server.url}/ggml-org/llama.cpp/releases/download/{TAG}"
        digest = "sha256:" + hashlib.sha256(self.server.archive).hexdigest()
        size = len(self.server.archive)
        return {
            "assets": [
                {
                    "name": name,
                    "size": size,
                    "digest": digest if self.server.digests else None,
                    "browser_download_url": f"{place}/{name}",
                }
                for name in names
            ]
        }

    def promoted(self, name: str) -> dict[str, Any]:
        """A release without programs."""
        content = self.server.named[name]
        url = f"{self.server.url}/ggml-org/llama.cpp/releases/download/{name}/nightly-tag.txt"
        asset = {"name": "nightly-tag.txt", "size": len(content or b""), "digest": None, "browser_download_url": url}
        if content and self.server.digests:
            asset["digest"] = "sha256:" + hashlib.sha256(content).hexdigest()
        return {"tag_name": name, "assets": [] if content is None else [asset]}

    def nightly(self, path: str) -> None:
        """The file that names a build; that of the newest release is found by a redirect."""
        if path.endswith("/releases/latest/download/nightly-tag.txt") and self.server.named:
            newest = list(self.server.named)[-1]
            return self.reply(302, Location=f"/ggml-org/llama.cpp/releases/download/{newest}/nightly-tag.txt")
        content = self.server.named.get(path.split("/")[-2])
        return self.reply(404 if content is None else 200, content or b"")

    def git(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            **os.environ,
            **GIT,
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
        }
        environment |= {
            "REQUEST_METHOD": self.command,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
        }
        environment |= {"CONTENT_LENGTH": str(len(body)), "GIT_PROTOCOL": self.headers.get("Git-Protocol", "")}
        environment |= {"HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", "")}
        done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        self.reply(int(headers.pop("Status", "200")[:3]), content, **headers)

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def git(*words: str, at: Path, **environment: str) -> str:
    env = {**os.environ, **GIT, **environment}
    return subprocess.run(["git", *words], cwd=at, check=True, capture_output=True, text=True, env=env).stdout


def release(script: str) -> bytes:
    """An archive in the layout of today's releases, whose programs are a script."""
    return packed(dict.fromkeys(("llama-quantize", "llama-cli"), script.encode()))


def packed(programs: Mapping[str, bytes]) -> bytes:
    """An archive in the layout of today's releases with programs by name."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz", compresslevel=1) as tar:
        for name, content in programs.items():
            entry = tarfile.TarInfo(f"llama-{TAG}/{name}")
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return whole.getvalue()
