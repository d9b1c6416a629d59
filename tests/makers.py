"""Small models and adapters, spoilt or made as a test needs them: JSON edited, tensors replaced, a tokenizer of bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tensor = tuple[str, list[int], bytes]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}), encoding="utf-8")


def zeros(*shape: int) -> Tensor:
    """A tensor of float zeros."""
    count = 4
    for length in shape:
        count *= length
    return "F32", list(shape), bytes(count)


def tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite a safetensors file with other tensors."""
    raw = path.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:end])
    header.pop("__metadata__", None)
    found = {name: (said["dtype"], said["shape"], raw[end:][slice(*said["data_offsets"])]) for name, said in header.items()}
    made, body = {}, b""
    for name, (kind, shape, content) in change(found).items():
        made[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(made).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def names(path: Path) -> list[str]:
    """The tensors of a safetensors file."""
    raw = path.read_bytes()
    return [name for name in json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]) if name != "__metadata__"]


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
