"""A LoRA adapter of PEFT and its base, as documents."""

from __future__ import annotations

from typing import Any

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 8,
    "use_rslora": True,
    "rank_pattern": {"k_proj": 2},
    "alpha_pattern": {r"model\.layers\.\d+\..*q_proj": 16, "k_proj": 4},
    "bias": "none",
    "init_lora_weights": True,
    "peft_version": "0.18.0",
}
BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 16,
    "vocab_size": 32,
    "text_config": {"vocab_size": 32},
}
TENSORS: dict[str, Any] = {
    f"{MODULE}.lora_A.weight": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]},
    f"{MODULE}.lora_B.weight": {"dtype": "F32", "shape": [8, 4], "data_offsets": [128, 256]},
}
