"""A scratch folder for the tools beside the tests, with real inputs and an environment of its own."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.system import settings
from tests.support import NOWHERE
from tests.support import ROOT

# Upstream's own pin has no build for every machine; both sides get this one.
TORCH = "torch==2.13.0"
# Variables that would change what is measured: of a user's own set-up, or of a machine that runs tests.
DROPPED = ("ORCHESTRATE_", "HF_", "GIT_", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONPATH", "VIRTUAL_ENV", "DVC_")
KEPT = ("ORCHESTRATE_TORCH_INDEX", "ORCHESTRATE_CONFIG")


class Failed(Exception):
    """A command that ended badly: nothing was measured."""


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


def run(argv: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> str:
    """stdout of a command."""
    done = subprocess.run(argv, capture_output=True, env=dict(env), cwd=cwd, check=False, encoding="utf-8", errors="replace")
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise Failed(f"`{' '.join(argv)[:200]}` ended with {done.returncode}:\n{said}")
    return done.stdout
