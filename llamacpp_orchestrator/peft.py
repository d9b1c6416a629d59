"""PEFT for the deepest check: a folder of packages that lies beside the environment of upstream's scripts, which has none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import indexes
from llamacpp_orchestrator import process
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.steps import Tell
from llamacpp_orchestrator.work import Work

# With what it needs besides that environment's own packages.
PACKAGES = ("peft==0.18.1", "accelerate==1.12.0", "psutil==7.2.2")


def folder(work: Work, lock: Lock, log: Path, tell: Tell) -> Path:
    """The folder, filled when it is not there; NetworkError when it may not be, CommandFailed with uv's words."""
    python = str(building.python(work, lock))
    made_for = lock.environment.pin().digest() if lock.environment else python
    key = hashlib.sha256(msgspec.json.encode((PACKAGES, made_for))).hexdigest()

    def make(dest: Path) -> None:
        work.online(f"PEFT, with which adapters are compared ({', '.join(PACKAGES)}),")
        tell("fetching PEFT")
        index, _ = indexes.places("upstream", work.settings, tell)
        argv = (indexes.uv(), "pip", "install", "--no-config", "--no-build", "--no-deps", "--python", python)
        try:
            process.stream(Command((*argv, "--target", str(dest / "packages"), *PACKAGES), env=indexes.uv_env(index, None)), log)
        except CommandFailed as error:
            hint = "check the network, or set an index that can be reached (PIP_INDEX_URL); `verify: load` does without PEFT"
            raise indexes.failed(error, "PEFT could not be installed", hint, log) from error

    return work.store.ensure("environments", f"peft-{key[:32]}", make) / "packages"
