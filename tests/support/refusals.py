"""A model in a folder, and what is said of it before it is converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models.weight_files import INDEX
from tests.support import makers

Tree = Callable[[str], Path]
LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
OLD, NEW = "0.3.1", "b11434"  # the former has the scripts of b3878


def model(folder: Path, tensors: dict[str, makers.Tensor], index: Any = None, **config: Any) -> Path:
    """A folder with a config, weights if there are any, and an index if one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    if tensors:
        makers.write(folder / "model.safetensors", tensors)
    if index is not None:
        (folder / INDEX).write_text(json.dumps(index))
    return folder


def refusal(tree: Tree, tag: str, folder: Path, **more: Any) -> str:
    """What is said of a model before it is converted, with the way out; "" when nothing is."""
    try:
        preflight.check_model(preflight.Subject(tree=tree(tag), tag=tag, folder=folder, source="org/m", **more))
    except OrchestrateError as error:
        return f"{error.message}\n{error.hint}"
    return ""
