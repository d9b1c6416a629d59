"""A resolution by uv, and the reason of its failure, which uv does not tell in every mode."""

from __future__ import annotations

import re

import msgspec

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command

UNKNOWN, REFUSED = "not found in the package registry", re.compile(r"\b40[13]\b")


def answer(command: Command, timeout: float) -> str:
    """What uv answers; CommandFailed in its words, with the refusal of an index where that is why it found nothing.

    uv takes an index that refuses (401, 403) for one without the package, and tells of it only where it takes the first index
    that knows a name: so it is asked once more in that mode.
    """
    try:
        return process.capture(command, timeout)
    except CommandFailed as error:
        if UNKNOWN in error.tail and not REFUSED.search(error.tail):
            env = tuple((name, "first-index" if name == "UV_INDEX_STRATEGY" else value) for name, value in command.env)
            try:
                process.capture(msgspec.structs.replace(command, env=env), timeout)
            except CommandFailed as refusal:
                if REFUSED.search(refusal.tail):
                    raise refusal from error
        raise
