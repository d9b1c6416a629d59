"""One place for runs: a cache, a home for models, a temporary folder and a job of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import yaml

from llamacpp_orchestrator.util.store import TAG as CACHE_TAG
from llamacpp_orchestrator.util.store import beside
from tests.crash.scene import Scene
from tests.support import folders
from tests.support.scratch import World as Bench

LIMIT_SECONDS = 240
# Python's compiled modules stay, as uv's cache does: they are no entries of ours, and cost most of a cold run's time.
# An environment is made alike by both routes: runs by one of them make it, and those by the other find it.
KEPT = {"pypi": ("home", "builds", "CACHEDIR.TAG"), "git": ("home", "builds", "CACHEDIR.TAG", "environments")}


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended: its exit code, what it said, and the seconds that it took."""

    code: int
    said: str
    seconds: float


class World(msgspec.Struct, frozen=True, kw_only=True):
    """A folder with all that a run writes to; `cache` and `output` may lie on other disks."""

    scene: Scene
    root: Path
    route: str
    cache: Path
    output: Path

    @property
    def job(self) -> Path:
        """The job file."""
        return self.root / "job.yaml"

    def env(self) -> dict[str, str]:
        """The environment of a run: the machine's package index and uv's cache, all else of our own."""
        places = {"ORCHESTRATE_CACHE_DIR": self.cache, "HF_HOME": self.root / "hf", "TMPDIR": self.root / "tmp"}
        places |= {"ORCHESTRATE_CONFIG": self.root / "config.yaml"}
        asked = {"ORCHESTRATE_LLAMA_CPP_FROM": self.route, "HF_ENDPOINT": self.scene.hub.url}
        asked |= dict.fromkeys(("ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_GITHUB_API_URL"), self.scene.github.url)
        return Bench(scratch=self.root).env(**{name: str(path) for name, path in places.items()}, **asked)

    def start(self) -> subprocess.Popen[str]:
        """Begin a run; its lines come on stderr."""
        argv = [sys.executable, "-m", "llamacpp_orchestrator", "run", str(self.job), "--verbose"]
        silent = subprocess.DEVNULL
        return subprocess.Popen(
            argv, env=self.env(), cwd=self.root, stdin=silent, stdout=silent, stderr=subprocess.PIPE, text=True
        )

    def run(self, on_line: Callable[[str, float], None] = lambda line, seconds: None) -> Ended:
        """A whole run; `on_line` gets each line with the seconds since the start."""
        began, child, said = time.monotonic(), self.start(), list[str]()
        assert child.stderr
        for line in child.stderr:
            said.append(line)
            on_line(line, time.monotonic() - began)
        return Ended(code=child.wait(LIMIT_SECONDS), said="".join(said), seconds=time.monotonic() - began)

    def sums(self) -> dict[str, str]:
        """Output → sha256."""
        return folders.sums(self.output)


def make(scene: Scene, name: str, route: str, cache: Path | None = None, output: Path | None = None) -> World:
    """A cold world, but for what is KEPT, in the place of what an earlier one of that name has left."""
    root = scene.scratch / name
    made = World(scene=scene, root=root, route=route, cache=cache or root / "cache", output=output or root / "dist")
    for path in (root / "hf", root / "tmp", root / "dist", *(each for each in root.glob("job*"))):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in made.cache.iterdir() if made.cache.is_dir() else ():
        if path.name not in KEPT[route]:
            shutil.rmtree(path)
    for path in (made.cache, root / "tmp"):
        path.mkdir(parents=True, exist_ok=True)
    (made.cache / "CACHEDIR.TAG").write_text(CACHE_TAG, encoding="utf-8")
    for entry in scene.builds if route == "pypi" else ():
        if not (made.cache / "builds" / entry.name).exists():
            shutil.copytree(entry, made.cache / "builds" / entry.name, copy_function=link)
            if beside(entry).exists():
                link(str(beside(entry)), str(beside(made.cache / "builds" / entry.name)))
    (root / "config.yaml").write_text("", encoding="utf-8")
    text = yaml.safe_dump(scene.job(route, os.path.relpath(made.output, root)), sort_keys=False)
    made.job.write_text(text, encoding="utf-8")
    return made


def link(source: str, to: str) -> None:
    """The same file in a second place; a copy on another disk."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)
