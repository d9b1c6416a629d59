"""What all runs share: the servers that they talk to, real inputs behind them, and the job."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from tests.support import TAG
from tests.support.scratch import TORCH
from tests.support.scratch import data
from tests.support.stage.github import GitHub
from tests.support.stage.github import git
from tests.support.stage.github import packed
from tests.support.stage.hub import Hub

ADAPTERS = ("lora-a", "lora-b")
# Once built for the tests, programs are kept; without any, nothing is quantized.
BUILDS = Path(platformdirs.user_cache_dir("llamacpp-orchestrator-tests")) / TAG / "programs"


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """The servers, where all worlds lie, and the programs, if there are any."""

    scratch: Path
    hub: Hub
    github: GitHub
    builds: tuple[Path, ...]

    def job(self, route: str, output: str = "dist") -> dict[str, Any]:
        """A small Llama from the hub, with two adapters, and quantized where there are programs for that.

        Built programs belong to the tree of one route; by the other they come as the release's archive.
        """
        backend = {"pypi": "source", "git": "cpu"}[route] if self.builds else "none"
        loras = [{"source": f"org/{name}", "name": name} for name in ADAPTERS]
        model = {"source": "org/m", "name": "m", "outtype": "f16", "loras": loras}
        return {
            "version": 1,
            "llama_cpp": {"tag": TAG},
            "binaries": {"backend": backend},
            "environment": {"torch": "cpu", "overrides": [TORCH]},
            "output": output,
            "models": [model | ({"quantize": ["Q8_0"]} if self.builds else {})],
        }


@contextlib.contextmanager
def scene(scratch: Path) -> Iterator[Scene]:
    """The servers as long as the block runs; GitHub's has nothing yet (`publish`)."""
    inputs, builds = data(scratch), tuple(path for path in BUILDS.glob("[!.]*") if path.is_dir())
    with Hub() as hub, GitHub(scratch / "git") as github, serving(hub), serving(github):
        hub.files = files(inputs / "tiny-llama")
        github.archive = packed(programs_of(builds[0])) if builds else b""
        hub.others = {f"org/{name}": files(inputs / name) for name in ADAPTERS}
        yield Scene(scratch=scratch, hub=hub, github=github, builds=builds)
        hub.over.set()


def files(folder: Path) -> dict[str, bytes]:
    """The files of a model, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def twin(first: Scene) -> Iterator[Scene]:
    """The same scene with servers of its own."""
    with Hub() as hub, GitHub(first.github.root) as github, serving(hub), serving(github):
        hub.files, hub.others, github.archive = first.hub.files, first.hub.others, first.github.archive
        yield msgspec.structs.replace(first, hub=hub, github=github)
        hub.over.set()


def programs_of(build: Path) -> dict[str, bytes]:
    """The programs of a build, by name."""
    return {path.name: path.read_bytes() for path in build.glob("llama-*")}


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """A server at work as long as the block runs."""
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()


def publish(scene: Scene, tree: Path) -> None:
    """Put a converter tree into the repository that GitHub serves, under the tag."""
    place = scene.github.root / "ggml-org" / "llama.cpp"
    shutil.copytree(tree, place)
    for words in (("init", "-q", "-b", "master"), ("add", "-A", "-f"), ("commit", "-q", "-m", "one"), ("tag", TAG)):
        git(*words, at=place)
    git("config", "uploadpack.allowFilter", "true", at=place)
