"""What a command answers to a test."""

from __future__ import annotations

import json
from typing import Any

import msgspec


class Answer(msgspec.Struct):
    """What one command said: its exit code and both streams."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)
