"""Tiny models as today's transformers saves them, with weights so large that each number of the config acts: models.py FOLDER."""

import sys
from pathlib import Path

import torch
import transformers

SHAPE = {
    "vocab_size": 32_000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}  # fmt: skip
CAPS = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 20.0}
# Each with how large its embedding is, and by how much a layer's matrix lengthens what it is given.
MODELS = {
    "llama": (transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA3), 0.02, 2.0),
    "headed": (transformers.LlamaConfig(**SHAPE, rope_parameters=PLAIN, tie_word_embeddings=False), 1.0, 1.0),
    "experts": (
        transformers.Qwen3MoeConfig(
            **SHAPE, rope_parameters=PLAIN, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64
        ),
        1.0,
        1.0,
    ),
    "gemma2": (
        transformers.Gemma2Config(**SHAPE, rope_parameters=PLAIN, sliding_window=64, query_pre_attn_scalar=16, **CAPS),
        0.1,
        2.0,
    ),
}
for name, (config, embedding, gain) in MODELS.items():
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(7)
    for key, tensor in model.named_parameters():
        if tensor.dim() > 1:
            scale = embedding if "embed" in key else gain / tensor.shape[-1] ** 0.5
            tensor.data = torch.randn(tensor.shape, generator=generator) * scale
    model.to(torch.bfloat16).save_pretrained(Path(sys.argv[1]) / name)
