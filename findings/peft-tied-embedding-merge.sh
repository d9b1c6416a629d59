#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0 and torch 2.13.0, in float32; a Llama with random weights and tied embeddings.
#
# LoRA or DoRA on `embed_tokens` changes the look-up alone while it is not merged, one on `lm_head` the head alone. merge_and_unload adds
# the update to the weight that both share: the merged model is another one than was trained. A warning comes when the adapter is made,
# none when it is merged, with safe_merge or without. Without tied embeddings both agree.
# Source: peft/tuners/lora/layer.py, Embedding.merge and Linear.merge: `base_layer.weight.data += delta_weight`.
#
# Seen: tied embed_tokens, tied DoRA and tied lm_head 0.05 or more apart, the same untied within 1e-5. Ends with 1 where that has changed.
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


def trained(tied, **keywords):
    """A model of its own with an adapter whose matrices are random."""
    adapted = peft.get_peft_model(model(tie_word_embeddings=tied), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **keywords)).eval()
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1)
    return adapted


apart = {}
with torch.no_grad():
    for tied in (True, False):
        for kind, keywords in {
            "embed_tokens": {"target_modules": ["embed_tokens"]},
            "DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
            "lm_head": {"target_modules": ["lm_head"]},
        }.items():
            adapted = trained(tied, **keywords)
            before = adapted(TOKENS).logits
            after = adapted.merge_and_unload(safe_merge=True)(TOKENS).logits
            apart[f"{'tied' if tied else 'untied'} {kind}"] = float((after - before).abs().max())
print({name: f"{value:.2g}" for name, value in apart.items()})
sys.exit(not all((value > 0.05) if name.startswith("tied") else (value < 1e-5) for name, value in apart.items()))
EOF
