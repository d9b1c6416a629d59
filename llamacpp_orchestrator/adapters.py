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

# What a GGUF adapter cannot express, by its key in adapter_config.json.
UNTRUE = {
    "use_rslora": "rsLoRA scales by alpha / sqrt(rank)",
    "alpha_pattern": "alpha_pattern gives modules an alpha of their own",
    "rank_pattern": "rank_pattern gives modules a rank of their own",
    "use_dora": "DoRA also trains magnitudes",
    "modules_to_save": "modules_to_save holds whole modules that were trained",
}


def check(adapter: Path, base: Path, name: str, base_name: str) -> None:
    """Raise OrchestrateError when the adapter in one folder cannot have been trained on the base in another."""
    refuse(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")), name)
    tensors = hub.safetensors_header(adapter / "adapter_model.safetensors")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    found = mismatch({key: tuple(value["shape"]) for key, value in tensors.items() if key != "__metadata__"}, config)
    if found:
        raise OrchestrateError(
            f"the adapter {name} was not trained on {base_name}: {found}",
            f"list it under its own base; adapter_config.json names {_trained_on(adapter)}",
        )


def refuse(config: Mapping[str, Any], name: str) -> None:
    """Raise OrchestrateError for an adapter that upstream would convert without complaint into one that acts wrongly.

    A GGUF adapter has one alpha, and the runtime scales every module by alpha / rank; what PEFT does otherwise is lost.
    """
    kind = config.get("peft_type", "LORA")
    reasons = [words for key, words in UNTRUE.items() if config.get(key)]
    if str(config.get("bias", "none")) != "none":
        reasons.append("it trains biases")
    if kind != "LORA" or reasons:
        why = f"it is of the type {kind}, not LORA" if kind != "LORA" else "; ".join(reasons)
        raise OrchestrateError(
            f"the adapter {name} cannot become a GGUF adapter that acts as it was trained to: {why}",
            "merge it into its base (PEFT's merge_and_unload), save the result and convert that as a model",
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
