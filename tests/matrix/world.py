"""Where the matrix is made: the product's environment, one with a newer transformers and a real llama.cpp, upstream's tags."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
import yaml

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import python_version
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system.command import clean_env
from tests.support import NOWHERE
from tests.support import ROOT
from tests.support.scratch import torch_index
from tests.support.stage import trees
from tests.support.stage.github import GitHub

OVERRIDES = ("torch==2.13.0", "sentencepiece==0.2.0")
JUDGE = ("transformers==5.23.0", "xllamacpp==2026.10.11549", "torch==2.13.0", "sentencepiece==0.2.1")
INSIDE = ROOT / "tests" / "inside"
# A tag, and where its tree comes from: the oldest out of the package that carried it in October 2024.
TAGS = {"b3878": "0.3.1", "b9821": "", "b10605": "", "b11434": ""}
NEWEST = "b11434"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """How the driver ended: its exit code, its JSON document (None without one) and what it said."""

    code: int
    document: dict[str, Any] | None
    text: str


class World(msgspec.Struct, frozen=True, kw_only=True):
    """A scratch folder, and the driver's settings for all that runs there."""

    scratch: Path
    env: dict[str, str]

    def run(self, folder: Path, tag: str, models: list[dict[str, Any]], *argv: str, command: str = "run") -> Run:
        """One command of the driver over a job of these models, whose folder gets all that it makes."""
        folder.mkdir(parents=True, exist_ok=True)
        known = {"tag": tag}
        asked = {"version": 1, "llama_cpp": known, "binaries": {"backend": "none"}, "models": models}
        asked["environment"] = {"torch": "cpu", "overrides": list(OVERRIDES)}
        (folder / "job.yaml").write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
        words = [sys.executable, "-m", "llamacpp_orchestrator", command, "job.yaml", "--json", *argv]
        done = subprocess.run(words, cwd=folder, env=self.env, capture_output=True, text=True, encoding="utf-8", check=False)
        try:
            document = json.loads(done.stdout)
        except ValueError:
            document = None
        return Run(code=done.returncode, document=document, text=done.stderr)


def world(scratch: Path) -> World:
    """The driver's settings here: a cache that lasts from one time to the next, no hub, packages for all tags but the oldest."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GIT_", "PYTHONPATH"))}
    cache = os.environ.get("ORCHESTRATE_CACHE_DIR") or str(lasting() / "cache")
    more = {"ORCHESTRATE_CACHE_DIR": cache, "ORCHESTRATE_LLAMA_CPP_FROM": "pypi", "HF_ENDPOINT": NOWHERE, "PYTHONUTF8": "1"}
    more |= {} if torch_index() else {"ORCHESTRATE_TORCH_INDEX": NOWHERE}
    return World(scratch=scratch, env=kept | more | {"PYTHONPATH": str(ROOT), "HF_HOME": str(scratch / "hf")})


def lasting() -> Path:
    """What is too dear to make each time."""
    return Path(platformdirs.user_cache_dir("llamacpp-orchestrator-tests")) / "matrix"


def product_python(here: World, model: Path) -> str:
    """The interpreter that the driver makes for the newest tag's scripts, which has transformers 4.57."""
    done = here.run(here.scratch / "setup", NEWEST, [{"source": str(model), "outtype": "f32"}], command="setup")
    done = here.run(here.scratch / "setup", NEWEST, [{"source": str(model), "outtype": "f32"}], "--force", command="plan")
    commands = [step["command"] for step in (done.document or {}).get("steps", ()) if step["name"].startswith("convert")]
    if not commands:
        raise SystemExit(f"error: the environment of {NEWEST} could not be made\n{done.text}")
    return shlex.split(commands[0])[0]


def judge_python() -> str:
    """An interpreter with a newer transformers and a real llama.cpp, made once."""
    key = hashlib.sha256(" ".join(JUDGE).encode()).hexdigest()[:12]
    venv = lasting() / f"judge-{key}"
    if not (venv / "complete").exists():
        shutil.rmtree(venv, ignore_errors=True)
        known = settings.load(os.environ).index
        env = dict(clean_env(**indexes.index_variables(known, None, os.environ)))
        python = python_version.choose_python(JUDGE[:1], (), known, None)
        subprocess.run((indexes.uv(), "venv", "--quiet", "--python", python, str(venv)), env=env, check=True)
        words = (indexes.uv(), "pip", "install", "--quiet", "--python", str(python_in(venv)), *JUDGE)
        subprocess.run(words, env=env, check=True)
        (venv / "complete").touch()
    return str(python_in(venv))


def inside(python: str, script: str, *argv: object) -> str:
    """What one of the scripts in tests/inside prints, run by another interpreter."""
    env = dict(clean_env(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1"))
    words = [python, str(INSIDE / script), *map(str, argv)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stderr.strip()[-600:]}")
    return done.stdout


@contextmanager
def upstream(here: World, tag: str) -> Iterator[World]:
    """A world whose git server has a tag that no package carries; the same world for others."""
    if not TAGS[tag]:
        yield here
        return
    root = here.scratch / "history"
    if not root.exists():
        tree = here.scratch / "trees" / tag
        tree.mkdir(parents=True)
        trees.checkout(TAGS[tag], tree)
        trees.history(root, {tag: (tree, "2024-10-04T15:18:16Z")})
    with GitHub(root) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        more: Mapping[str, str] = {"ORCHESTRATE_GITHUB_URL": server.url, "ORCHESTRATE_LLAMA_CPP_FROM": "git"}
        yield World(scratch=here.scratch, env={**here.env, **more})
        server.shutdown()


def checked(words: list[str]) -> None:
    """Run a program that must succeed."""
    subprocess.run(words, check=True)
