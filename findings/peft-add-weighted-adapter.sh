#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0 and torch 2.13.0, in float32; a Qwen2 with random weights.
#
# add_weighted_adapter(["one", "two"], [1, 1], ..., combination_type="cat") is to give the sum of both updates, and does for plain LoRA. With
# an adapter with rsLoRA first, "cat" and "svd" give a multiple of it: the new adapter takes over that flag, and its factor is no longer 1.
# Magnitudes of DoRA and the biases of `lora_bias` are not combined. There is no warning.
# Source: peft/tuners/lora/model.py, add_weighted_adapter: the config of the first adapter with `r=new_rank, lora_alpha=new_rank`; its ways to
# combine take lora_A and lora_B alone.
#
# Seen, as the distance of the logits from those of the sum: plain below 1e-5, the others above 0.01. Ends with 1 where that has changed.
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
    config = transformers.Qwen2Config(**SIZES, **more)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def trained(**keywords):
    """A model of its own with an adapter whose matrices are random."""
    adapted = peft.get_peft_model(model(), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **keywords)).eval()
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1)
    return adapted


KINDS = {
    "plain": ({}, {}),
    "rsLoRA first": ({"use_rslora": True}, {}),
    "rsLoRA second": ({}, {"use_rslora": True}),
    "DoRA": ({"use_dora": True}, {}),
    "lora_bias": ({"lora_bias": True}, {}),
}
apart = {}
with torch.no_grad():
    for kind, sides in KINDS.items():
        for name, keywords in zip(("one", "two"), sides):
            trained(target_modules=["q_proj", "v_proj"], **keywords).save_pretrained(name)
        start = model().state_dict()
        due = dict(start)
        for name in ("one", "two"):
            alone = peft.PeftModel.from_pretrained(model(), name).merge_and_unload().state_dict()
            due = {key: value + alone[key] - start[key] for key, value in due.items()}
        reference = model()
        reference.load_state_dict(due)
        adapted = peft.PeftModel.from_pretrained(model(), "one", adapter_name="one")
        adapted.load_adapter("two", "two")
        for combination in ("cat", "svd"):
            adapted.add_weighted_adapter(["one", "two"], [1.0, 1.0], combination, combination_type=combination, svd_rank=8)
            adapted.set_adapter(combination)
            apart[f"{kind}, {combination}"] = float((adapted.eval()(TOKENS).logits - reference(TOKENS).logits).abs().max())
print({name: f"{value:.2g}" for name, value in apart.items()})
right = ("plain", "rsLoRA second")
sys.exit(not all((value < 1e-5) if name.startswith(right) else (value > 0.01) for name, value in apart.items()))
EOF
