#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0 and torch 2.13.0, in float32; a Llama with random weights.
#
# An adapter of `init_lora_weights="pissa_niter_4"`, saved as save_pretrained does by default, makes another model each time it is loaded:
# loading takes the principal part out of the base anew, by a decomposition that begins with random numbers of no fixed seed. With "pissa",
# whose decomposition is exact, two loads agree. No warning.
# Source: peft/tuners/lora/layer.py, pissa_init: torch's svd_lowrank.
#
# Seen: two loads with pissa_niter_4 1e-3 or more apart, with pissa below 1e-5. Ends with 1 where that has changed.
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
    adapted = peft.get_peft_model(model(), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **keywords)).eval()
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1)
    return adapted


apart = {}
for kind in ("pissa", "pissa_niter_4"):
    trained(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=kind).save_pretrained(kind)
    with torch.no_grad():
        torch.manual_seed(2)
        one, two = (peft.PeftModel.from_pretrained(base, kind).eval()(TOKENS).logits for base in (model(), model()))
    apart[kind] = float((one - two).abs().max())
print({name: f"{value:.2g}" for name, value in apart.items()})
sys.exit(not (apart["pissa"] < 1e-5 and apart["pissa_niter_4"] > 1e-3))
EOF
