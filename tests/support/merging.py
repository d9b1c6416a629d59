"""Bases and adapters of zeros, as small as their headers allow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.merge.records import Adapter
from tests.support import makers

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def save(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file of zeros."""
    contents = {name: (dtype, shape, bytes(WIDTHS[dtype] * math.prod(shape))) for name, shape in shapes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(makers.packed(contents, metadata or {"format": "pt"}))


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 16,
}
LORA = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 2, "lora_alpha": 6}
LAYERS = {
    f"model.layers.{layer}.{name}": shape
    for layer in (0, 1)
    for name, shape in (
        ("self_attn.q_proj.weight", (8, 8)),
        ("self_attn.q_proj.bias", (8,)),
        ("mlp.up_proj.weight", (12, 8)),
        ("input_layernorm.weight", (8,)),
    )
}
MODEL = {"model.embed_tokens.weight": (16, 8), **LAYERS, "model.norm.weight": (8,), "lm_head.weight": (16, 8)}
TIED = {name: shape for name, shape in MODEL.items() if name != "lm_head.weight"}
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def make_base(folder: Path, shapes: Mapping[str, tuple[int, ...]] = MODEL, dtype: str = "BF16", **config: Any) -> Path:
    """A base with one file of zeros."""
    save(folder / "model.safetensors", shapes, dtype)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def make_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]], weight: float = 1.0, **config: Any) -> Adapter:
    """An adapter of zeros, its tensors by their names without PEFT's prefix."""
    save(folder / "adapter_model.safetensors", {f"base_model.model.{name}": shape for name, shape in shapes.items()})
    (folder / "adapter_config.json").write_text(json.dumps(LORA | config))
    return Adapter(name=folder.name, folder=folder, weight=weight)


def low_rank(module: str, out: int, inner: int, rank: int = 2) -> dict[str, tuple[int, ...]]:
    """The two matrices of a module."""
    return {f"{module}.lora_A.weight": (rank, inner), f"{module}.lora_B.weight": (out, rank)}
