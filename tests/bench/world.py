"""Where the rows are measured: a scratch folder with a cache of its own, real inputs, and jobs over them."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.system import settings
from tests.bench.clock import orchestrate
from tests.bench.clock import run
from tests.bench.clock import timed
from tests.stage import TAG

# Upstream's own pin has no build for every machine; both sides get this one.
TORCH = "torch==2.13.0"
NOWHERE = "http://127.0.0.1:9"
# Variables that would change what is measured: of a user's own set-up, or of a machine that runs tests.
DROPPED = ("ORCHESTRATE_", "HF_", "GIT_", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONPATH", "VIRTUAL_ENV", "DVC_")
KEPT = ("ORCHESTRATE_TORCH_INDEX", "ORCHESTRATE_CONFIG")


class World(msgspec.Struct, frozen=True, kw_only=True):
    """The scratch folder of one benchmark."""

    scratch: Path

    def folder(self, name: str) -> Path:
        """A folder in it, empty at first."""
        made = self.scratch / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def env(self, **more: str) -> dict[str, str]:
        """The environment of every command: the machine's, the cache that all rows share, and what a row adds."""
        own = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(DROPPED)}
        own |= {"ORCHESTRATE_CACHE_DIR": str(self.scratch / "cache"), "ORCHESTRATE_LLAMA_CPP_FROM": "pypi"}
        own |= {"HF_HOME": str(self.scratch / "hf"), "PYTHONUTF8": "1"}
        return own | ({} if torch_index() else {"ORCHESTRATE_TORCH_INDEX": NOWHERE}) | more


@functools.cache
def torch_index() -> str:
    """PyTorch's own index for the small build, where it can be reached; else torch comes from the configured indexes."""
    return indexes.places("cpu", settings.load(os.environ), lambda text: None)[1] or ""


@functools.cache
def data(scratch: Path) -> Path:
    """tiny-llama, lora-a and lora-b, as the demo makes them."""
    folder = scratch / "data"
    run([sys.executable, "configs/demo_data.py", str(folder)], os.environ)
    return folder


def write_job(folder: Path, *models: Mapping[str, Any], tag: str = TAG) -> Path:
    """A job file that asks for these models."""
    environment = {"torch": "cpu", "overrides": [TORCH]}
    job = {"version": 1, "llama_cpp": {"tag": tag}, "binaries": {"backend": "none"}, "environment": environment}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job | {"models": [dict(model) for model in models]}, sort_keys=False), encoding="utf-8")
    return path


def fleet(source: object, count: int) -> dict[str, Any]:
    """A model with so many adapters, which differ in their names alone."""
    loras = [{"source": f"{source}/lora-a", "name": f"lora-{number:03}"} for number in range(count)]
    return {"source": f"{source}/tiny-llama", "outtype": "f16", "loras": loras}


def commands(job: Path, env: Mapping[str, str], other: str = "by-hand") -> list[list[str]]:
    """The bare upstream commands of a job, that write to a folder beside the job's own."""
    steps = json.loads(orchestrate("plan", job, "--force", "--json", env=env))["steps"]
    (job.parent / other).mkdir(exist_ok=True)
    mine, theirs = str(job.parent / "dist"), str(job.parent / other)
    return [[word.replace(mine, theirs) for word in shlex.split(step["command"])] for step in steps if step["command"]]


def by_hand(world: World, asked: list[list[str]]) -> Callable[[], float]:
    """Upstream's scripts, one process after the other, as a person calls them.

    Their bytecode lies in a folder of its own, warm as in an environment that pip has made: so they leave none for the driver.
    """
    env = world.env(HF_HUB_OFFLINE="1", PYTHONPYCACHEPREFIX=str(world.scratch / "bytecode"))
    for command in {command[1]: command for command in asked}.values():
        run(command, env)
    return lambda: sum(timed(command, env) for command in asked)
