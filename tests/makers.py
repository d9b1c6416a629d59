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


def write(path: Path, contents: dict[str, Tensor]) -> None:
    """Write a safetensors file."""
    header, body = {}, b""
    for name, (kind, shape, content) in contents.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    raw = path.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:end])
    header.pop("__metadata__", None)
    return {name: (said["dtype"], said["shape"], raw[end:][slice(*said["data_offsets"])]) for name, said in header.items()}


def tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite a safetensors file with other tensors."""
    write(path, change(read(path)))


def shards(folder: Path, count: int = 2) -> list[str]:
    """Divide a model's one file into shards with an index; their names."""
    whole = folder / "model.safetensors"
    found, weight_map = read(whole), {}
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
