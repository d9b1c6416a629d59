"""Whether an adapter belongs to its base, told from shapes and names before anything is converted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamacpp_orchestrator import hub
from llamacpp_orchestrator.errors import OrchestrateError

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\..*?(\w+)\.lora_([AB])(?:\.\w+)?\.weight$")
# (module, matrix, axis) whose length is the base's hidden size: what reads the residual stream, and what writes to it.
HIDDEN = {(name, "A", 1) for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")} | {
    (name, "B", 0) for name in ("o_proj", "down_proj")
}


def check(adapter: Path, base: Path, name: str, base_name: str) -> None:
    """Raise OrchestrateError when the adapter in one folder cannot have been trained on the base in another."""
    tensors = hub.safetensors_header(adapter / "adapter_model.safetensors")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    found = mismatch({key: tuple(value["shape"]) for key, value in tensors.items() if key != "__metadata__"}, config)
    if found:
        raise OrchestrateError(
            f"the adapter {name} was not trained on {base_name}: {found}",
            f"list it under its own base; adapter_config.json names {_trained_on(adapter)}",
        )


def mismatch(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str:
    """What about an adapter's tensors contradicts a base's config, in words; "" when nothing does."""
    inner = {**config, **config.get("text_config", {})} if isinstance(config.get("text_config"), dict) else config
    layers, hidden = inner.get("num_hidden_layers"), inner.get("hidden_size")
    for key in sorted(shapes):
        match = LAYER.search(key)
        if not match or "vision" in key or "visual" in key:
            continue
        layer, module, matrix = int(match[1]), match[2], match[3]
        if isinstance(layers, int) and layer >= layers:
            return f"it has a layer {layer}, the base has {layers} layers"
        for axis, length in enumerate(shapes[key]):
            if (module, matrix, axis) in HIDDEN and isinstance(hidden, int) and length != hidden:
                return f"{module} of layer {layer} has {length} where the base's hidden size is {hidden}"
    return ""


def _trained_on(adapter: Path) -> str:
    try:
        named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        named = None
    return str(named or "no base")
