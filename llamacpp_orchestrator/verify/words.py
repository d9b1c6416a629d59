"""The record that the checks of an output's words take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.system.interpreter import Interpreter


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """An output whose words are checked, with its source: as it is (`view`), and in the form that transformers is given."""

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    view: Path
    translated: Path
    interpreter: Interpreter
    log: Path
