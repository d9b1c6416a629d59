#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0 (llama.cpp's gguf-py) and torch 2.13.0, in float32; a Llama with random weights.
#
# A Llama 3.1 stretches its rotary embedding (`rope_type: llama3`). In a GGUF file that is a tensor, rope_freqs.weight, with a divisor
# for each frequency, as llama.cpp's convert_hf_to_gguf.py writes it and its runtime applies it; there is no key for it. from_pretrained
# with `gguf_file` reads such a file, passes over that tensor and makes a model with the plain embedding: another model from the first
# tokens on, and no word of it. With the tensor and without it the same logits come out.
# Source: transformers/modeling_gguf_pytorch_utils.py, load_gguf_checkpoint; transformers/integrations/ggml.py, GGUF_CONFIG_MAPPING.
#
# Seen: {'unscaled, from GGUF': 0.0, 'scaled, from GGUF': 1.3, 'with and without rope_freqs': 0.0}, the largest differences of logits
# from the model that was saved, rounded. Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 safetensors==0.8.0 accelerate==1.15.0 torch==2.13.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'EOF'
import pathlib
import sys

import gguf
import numpy
import torch
from transformers import AutoModelForCausalLM
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 4, 2, 16, 2, 320
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 64
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}


def model_with(rope):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HEADS * HEAD_DIM,
            intermediate_size=96,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            vocab_size=VOCAB,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            rope_parameters=dict(rope),
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.08 if weight.ndim > 1 else 0.05) + (weight.ndim == 1))
    return model.float().eval()


def rows_for_llama_cpp(weight, heads):
    """The order in which llama.cpp's Llama has the rows of queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write(model, path, divisors=None):
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            array = rows_for_llama_cpp(array, heads) if part in name else array
        writer.add_tensor(names.get_name(name, (".weight",)), numpy.ascontiguousarray(array))
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(100)[None] * 3 % VOCAB).logits


def from_gguf(path):
    return logits(AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval())


scaled, plain = model_with(LLAMA3), model_with(PLAIN)
frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled.config, "cpu")
unscaled = 1.0 / 500000.0 ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
paths = {name: pathlib.Path(name).absolute() / "model.gguf" for name in ("plain", "scaled", "without")}
for path in paths.values():
    path.parent.mkdir()
write(plain, paths["plain"])
write(scaled, paths["scaled"], (unscaled / frequencies).numpy())
write(scaled, paths["without"])
loaded = {name: from_gguf(path) for name, path in paths.items()}
far = {
    "unscaled, from GGUF": float((loaded["plain"] - logits(plain)).abs().max()),
    "scaled, from GGUF": float((loaded["scaled"] - logits(scaled)).abs().max()),
    "with and without rope_freqs": float((loaded["scaled"] - loaded["without"]).abs().max()),
}
print({name: round(number, 1) for name, number in far.items()})
sys.exit(not (far["unscaled, from GGUF"] < 1e-4 and far["scaled, from GGUF"] > 0.1 and far["with and without rope_freqs"] == 0))
EOF
