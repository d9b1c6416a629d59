"""Adapters: their config, their tensors, and the base that they are tried on."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.models import adapter
from tests.fuzz.common import altered
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_bytes
from tests.fuzz.common import json_text
from tests.fuzz.common import reading

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
# What takes a backtracking engine for ever on a name such as the module's.
SLOW = ("(a+)+b", "(.*)*x", "(\\w+\\.?)+!", "(.|.)*!", "(a|a)*!", "((.*)+)+!", "(\\w*_?)*!", ".*.*.*.*.*.*.*.*!")
slow = st.sampled_from(SLOW).map(
    lambda pattern: json_bytes(CONFIG | {"alpha_pattern": {pattern: 4}, "rank_pattern": {pattern: 4}})
)


@fuzzed(st.tuples(json_text(CONFIG) | slow, altered(TENSORS), json_text(BASE)))
def test_adapters(said: tuple[bytes, Any, bytes]) -> None:
    config, tensors, base = said
    with folder() as here:
        (here / "adapter").mkdir()
        (here / "base").mkdir()
        (here / "adapter" / "adapter_config.json").write_bytes(config)
        header = json_bytes(tensors)
        (here / "adapter" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(256))
        (here / "base" / "config.json").write_bytes(base)
        found = reading(lambda: adapter.check(here / "adapter", here / "base", "mine", "org/base"))
        assert found is None or all(len(note) < 1000 for note in found.notes)
