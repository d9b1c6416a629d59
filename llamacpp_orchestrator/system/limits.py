"""How much memory a job and each of its children may take."""

from __future__ import annotations

import msgspec

from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.command import Limits
from llamacpp_orchestrator.system.settings import Settings

SHARE = 0.9  # of what is free: the rest is for the system, and for us


def bound(settings: Settings) -> int:
    """The bytes of memory that all steps at work may take together: what was asked for, or most of what is free; 0 if unknown."""
    return settings.memory or int(host.available() * SHARE)


def limits(settings: Settings) -> Limits:
    """What one program may take; of memory no more than the machine has, where that can be had from the system (sandbox.py)."""
    most = settings.limits.memory or (host.resources()[1] if host.system() == "linux" else 0)
    return msgspec.structs.replace(settings.limits, memory=most)
