"""Code that a model brings with it, and whether a job allows it."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models.safetensors import read_json
from llamacpp_orchestrator.models.weight_files import matches


def check_code(folder: Path, names: Iterable[str], source: str) -> None:
    """Raise OrchestrateError where any config asks to run code: transformers looks into a tokenizer's and a processor's too."""
    for name in (name for name in names if matches(name, ("*config.json",))):
        try:
            config = read_json(folder / name)
        except OrchestrateError:
            if name in ("config.json", "tokenizer_config.json"):
                raise
            continue  # upstream may do without it, and no code is found in it
        check_remote_code(config, source, name)


def check_remote_code(config: Mapping[str, Any], source: str, file: str = "config.json") -> None:
    """Raise OrchestrateError for a model whose config asks to run its own Python code, which upstream would do unasked."""
    if any(part.get("auto_map") for part in (config, *config.values()) if isinstance(part, Mapping)):
        raise OrchestrateError(
            f"{source} wants to run Python code of its own (auto_map in its {file})",
            "nothing of it was run; read its *.py files, and if you trust them set `trust_remote_code: true` for this model",
        )
