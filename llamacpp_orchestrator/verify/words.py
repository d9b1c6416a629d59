"""What the checks of an output's words work with: the output, its source, and who answers questions about that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.system.interpreter import Interpreter


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """An output whose words are checked: its files and metadata, and its source, as it is and as transformers is shown it."""

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    view: Path
    shown: Path
    interpreter: Interpreter
    log: Path
