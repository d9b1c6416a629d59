#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0 and torch 2.13.0, in float32; a Llama with two layers and random weights.
#
# `layer_replication=[[0, 2], [1, 2]]` makes three layers of two, the last two of which share their weights and have adapters of their own.
# merge_and_unload adds the updates of both to the one weight: neither layer is what was trained, and save_pretrained of what comes out
# fails because of the weights that are shared. No warning before.
# Source: peft/tuners/tuners_utils.py, replicate_layers: clone_module(..., share_weights=True).
#
# Seen: merged 0.05 or more from unmerged, and RuntimeError on saving. Ends with 1 where that has changed.
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
    adapted = peft.get_peft_model(model(tie_word_embeddings=False), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **keywords)).eval()
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1)
    return adapted


with torch.no_grad():
    adapted = trained(target_modules=["q_proj", "v_proj", "down_proj"], layer_replication=[[0, 2], [1, 2]])
    before = adapted(TOKENS).logits
    merged = adapted.merge_and_unload()
    apart = float((merged(TOKENS).logits - before).abs().max())
try:
    merged.save_pretrained("merged")
    saved = "saved"
except RuntimeError as error:
    saved = f"RuntimeError: {str(error)[:50]}"
print(f"{apart:.2g}", saved)
sys.exit(apart < 0.05 or saved == "saved")
EOF
