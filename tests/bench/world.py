"""Where the rows are measured: a scratch folder with a cache of its own, real inputs, and jobs over them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.bench.clock import orchestrate
from tests.bench.clock import timed
from tests.support import TAG
from tests.support.scratch import TORCH
from tests.support.scratch import World
from tests.support.scratch import run


def write_job(folder: Path, *models: Mapping[str, Any], tag: str = TAG, backend: str = "none") -> Path:
    """A job file that asks for these models."""
    environment = {"torch": "cpu", "overrides": [TORCH]}
    job = {"version": 1, "llama_cpp": {"tag": tag}, "binaries": {"backend": backend}, "environment": environment}
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
    for command in {command[1]: command for command in asked if command[1].endswith(".py")}.values():
        run(command, env)
    return lambda: sum(timed(command, env) for command in asked)
