"""Small models and adapters, spoilt or made as a test needs them: JSON edited, tensors replaced, a tokenizer of bytes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tensor = tuple[str, list[int], bytes]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}), encoding="utf-8")


def zeros(*shape: int, dtype: str = "F32") -> Tensor:
    """A tensor of zeros, in any type that a header may name."""
    bits = {"F8_E4M3": 8, "F8_E5M2": 8, "BF16": 16, "U8": 8, "I8": 8}.get(dtype, int(dtype[1:]) if dtype[1:].isdecimal() else 8)
    return dtype, list(shape), bytes(math.prod(shape) * bits // 8)


def ramp(*shape: int) -> Tensor:
    """A tensor of small floats, none of which is zero."""
    count, period = math.prod(shape), [(number % 7 - 3.5) / 64 for number in range(64)]
    return "F32", list(shape), (struct.pack("<64f", *period) * (count // 64 + 1))[: 4 * count]


def safetensors(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file around any header, which may state another length than its own."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def packed(contents: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file with tensors."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, (kind, shape, content) in contents.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    return safetensors(json.dumps(header).encode(), body)


def write(path: Path, contents: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(contents, metadata))


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file with its metadata, and where its data begin."""
    raw = path.read_bytes()
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:begin]), begin


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    header, begin = header_of(path)
    header.pop("__metadata__", None)
    data = path.read_bytes()[begin:]
    return {name: (said["dtype"], said["shape"], data[slice(*said["data_offsets"])]) for name, said in header.items()}


def tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite a safetensors file with other tensors."""
    write(path, change(read(path)))


def shards(folder: Path, count: int = 2) -> list[str]:
    """Divide a model's one file into shards with an index; their names."""
    whole = folder / "model.safetensors"
    found = read(whole)
    weight_map: dict[str, str] = {}
    files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for number, file in enumerate(files):
        part = dict(list(found.items())[number::count])
        write(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    whole.unlink()
    index = {
        "metadata": {"total_size": sum(len(content) for _, _, content in found.values())},
        "weight_map": weight_map,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return files


def names(path: Path) -> list[str]:
    """The tensors of a safetensors file."""
    return list(read(path))


# How a config names code that its model brings along.
OWN_CODE = {"AutoTokenizer": ["own.Own", None], "AutoProcessor": "own.Own"}


def bring_code(model: Path, mark: Path) -> None:
    """Put Python code beside a model: where it is run it leaves a mark, or says on stdout that it may not."""
    lines = (
        "try:",
        f"    open({str(mark)!r}, 'w').close()",
        "except OSError as error:",
        "    print('own code:', type(error).__name__)",
    )
    (model / "own.py").write_text("\n".join((*lines, "class Own: pass", "")), encoding="utf-8")


def byte_tokenizer(model: Path, *added: int) -> None:
    """Give a model a tokenizer of GPT-2's kind that knows the 256 bytes, and some added tokens by number."""
    (model / "tokenizer.model").unlink(missing_ok=True)
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in visible] + [chr(256 + number) for number in range(256 - len(visible))]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    said = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": f"<{number}>", **plain} for number in added],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "byte_fallback": False, "vocab": vocabulary, "merges": []},
    }
    (model / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")


# What transformers 5 calls a class that only reads tokenizer.json, and what it writes of its own accord.
BACKEND = dict.fromkeys(("PreTrainedTokenizerFast", "LlamaTokenizerFast"), "TokenizersBackend")
LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
OWN = {"backend": "tokenizers", "is_local": True, "local_files_only": False}


def save_anew(model: Path) -> None:
    """Rewrite a checkpoint's config and tokenizer as transformers 5.23 saves those of Llama 3 and Qwen 3; its weights stay."""
    path = model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = {"rope_type": "default", **(config.pop("rope_scaling", None) or {}), "rope_theta": config.pop("rope_theta")}
    dtype = config.pop("torch_dtype", "float32")
    written = config | {"rope_parameters": rope, "dtype": dtype, "transformers_version": "5.23.0"}
    path.write_text(json.dumps(written, indent=2, sort_keys=True), encoding="utf-8")
    path = model / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    template = said.pop("chat_template")
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    gone = ("add_bos_token", "add_eos_token", "added_tokens_decoder", "additional_special_tokens")
    special = said.get("additional_special_tokens")
    said = {key: value for key, value in said.items() if key not in gone} | OWN
    said |= {"extra_special_tokens": special} if special else {}
    said["tokenizer_class"] = BACKEND.get(said["tokenizer_class"], said["tokenizer_class"])
    path.write_text(json.dumps(said, indent=2, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    path = model / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    merges = whole["model"]["merges"]
    if said["tokenizer_class"] == "Qwen2Tokenizer":  # made anew, whatever was there
        whole["pre_tokenizer"]["pretokenizers"][-1] = {**LEVEL, "add_prefix_space": False, "use_regex": False}
        whole["decoder"] = LEVEL
    whole["model"]["merges"] = [pair if isinstance(pair, list) else pair.split(" ") for pair in merges]
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    (model / "special_tokens_map.json").unlink(missing_ok=True)


def small_decoder(model: Path, config: dict[str, Any]) -> None:
    """Weights that fit a config of Llama or Qwen 3, with a shared head: the same floats again and again."""
    width, inner, heads, keys, size = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], width], "model.norm.weight": [width]}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.{name}_layernorm.weight": [width] for name in ("input", "post_attention")}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": [inner, width] for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": [width, inner], f"{layer}.self_attn.o_proj.weight": [width, heads * size]}
        outputs = {"q": heads, "k": keys, "v": keys}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": [count * size, width] for name, count in outputs.items()}
        if config["model_type"] == "qwen3":
            shapes |= {f"{layer}.self_attn.{name}_norm.weight": [size] for name in "qk"}
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    block = struct.pack("<4096f", *(((number * 2654435761) % 4099) / 4099 - 0.5 for number in range(4096)))
    body = {}
    for name, shape in shapes.items():
        count = 4 * math.prod(shape)
        body[name] = ("F32", shape, (block * (count // len(block) + 1))[:count])
    write(model / "model.safetensors", body)
