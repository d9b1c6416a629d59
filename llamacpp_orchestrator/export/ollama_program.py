"""The program of Ollama: whether it is here and new enough, and the environment that it gets."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env

# The first Ollama that renders a GGUF's own chat template (shouldPreferChatTemplate in its server/images.go).
OLDEST = (0, 30, 0)
UPDATE = "update it (https://ollama.com/download), or leave --ollama-create out"
VERSION = re.compile(r"version is v?(\d+)\.(\d+)\.(\d+)")


def check(contexts: Iterable[Context]) -> None:
    """Raise JobError where `ollama create` is asked for and there is nothing to create, or no program that can."""
    if not any(model.ollama for context in contexts for model in context.job.models):
        raise JobError("--ollama-create: no model of the job says `ollama: true`", "add it to those that Ollama should know")
    program = shutil.which("ollama")
    if not program:
        raise JobError(
            "--ollama-create: there is no `ollama` on PATH", "install it (https://ollama.com), or leave the option out"
        )
    with suppress(CommandFailed):  # what is wrong with it `ollama create` will say
        version = oldest(process.capture(Command((program, "--version"), env=env())))
        if version and version < OLDEST:
            installed, wanted = (".".join(map(str, each)) for each in (version, OLDEST))
            message = f"--ollama-create: Ollama {installed} is here; the chat template of a GGUF needs {wanted} or newer"
            raise JobError(message, UPDATE)


def oldest(text: str) -> tuple[int, ...]:
    """The lower of the versions that `ollama --version` gives, of its server and itself; () for none, and for a build (0.0.0)."""
    versions = [tuple(map(int, match.groups())) for match in VERSION.finditer(text)]
    return min((version for version in versions if any(version)), default=())


def env() -> tuple[tuple[str, str], ...]:
    """The environment of a call of it."""
    return clean_env(**{name: value for name, value in os.environ.items() if name.startswith("OLLAMA_")})
