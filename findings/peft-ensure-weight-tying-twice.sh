#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0 and torch 2.13.0, in float32; a Llama with random weights and tied embeddings.
#
# With `ensure_weight_tying=True` LoRA on `embed_tokens` acts on the look-up and on the head. merge_and_unload merges either end into the
# weight that both share: the update is in it twice. When the adapter is made a warning speaks of complications; none comes on merging.
# Source: peft/tuners/lora/layer.py, Embedding.merge and Linear.merge, once for each end.
#
# Seen: the merged weight has moved by 2.0 times scaling * (B @ A). Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
# The small build of PyTorch comes from PyTorch's own index for processors, which pip has to know (PIP_EXTRA_INDEX_URL).
"$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install torch==2.13.0+cpu transformers==5.23.0 peft==0.21.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'EOF'
import sys

import peft
import torch
import transformers

TOKENS = torch.arange(3, 40)[None]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4, "vocab_size": 64}


def model(**more):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **more)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def trained(**keywords):
    """A model of its own with an adapter whose matrices are random."""
    adapted = peft.get_peft_model(model(tie_word_embeddings=True), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **keywords)).eval()
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1)
    return adapted


with torch.no_grad():
    adapted = trained(target_modules=["embed_tokens"], ensure_weight_tying=True)
    layer = adapted.get_input_embeddings()
    update, before = layer.get_delta_weight("default").clone(), layer.weight.clone()
    moved = adapted.merge_and_unload().get_input_embeddings().weight - before
    times = float((moved * update).sum() / (update * update).sum())
print(f"{times:.3f} times the update")
sys.exit(abs(times - 2) > 1e-3)
EOF
