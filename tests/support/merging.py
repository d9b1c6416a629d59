"""Bases and adapters of zeros, and a merge carried out in plain NumPy by the words of its plan."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.merge.records import File
from llamacpp_orchestrator.merge.records import Plan
from llamacpp_orchestrator.merge.records import Stored
from llamacpp_orchestrator.merge.records import Tensor
from llamacpp_orchestrator.merge.records import Update

Array = Any
TYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2", "I64": "<i8"}


def carry_out(plan: Plan, dest: Path) -> None:
    """Write the files of a plan."""
    dest.mkdir(parents=True)
    for name, text in plan.texts.items():
        (dest / name).write_text(text, encoding="utf-8")
    for name, origin in plan.copies.items():
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin, dest / name)
    for file in plan.files:
        write(file, dest / file.path)


def write(file: File, path: Path) -> None:
    blobs = [packed(values(tensor), tensor.dtype) for tensor in file.tensors]
    header: dict[str, Any] = {"__metadata__": file.metadata} if file.metadata else {}
    begin = 0
    for tensor, blob in zip(file.tensors, blobs, strict=True):
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, begin + len(blob)]}
        begin += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read(stored: Stored) -> Array:
    """A stored tensor, or the part of it that is meant, in float32."""
    with Path(stored.file).open("rb") as file:
        file.seek(stored.offset)
        kind = numpy.dtype(TYPES[stored.dtype])
        count = int(numpy.prod(stored.shape, dtype=numpy.int64))
        raw = numpy.frombuffer(file.read(count * kind.itemsize), kind).reshape(stored.shape)
    array = (raw.astype(numpy.uint32) << 16).view(numpy.float32) if stored.dtype == "BF16" else raw.astype(numpy.float32)
    rows, columns = (slice(*part) if part else slice(None) for part in (stored.rows, stored.columns))
    return array[rows, columns] if stored.rows or stored.columns else array


def values(tensor: Tensor) -> Array:
    base = numpy.zeros(tensor.shape, numpy.float32)
    if tensor.base:
        given = read(tensor.base)[: tensor.shape[0]] if tensor.shape else read(tensor.base)
        base[: len(given)] = given
    total = base.copy()
    for update in tensor.updates:
        at = (update.at,) if update.at is not None else (update.indices,) if update.indices is not None else (Ellipsis,)
        place = tuple(list(part) if isinstance(part, tuple) else part for part in at)
        matrix = base[place].T if update.transposed else base[place]
        change = change_of(update, matrix)
        total[place] += numpy.float32(update.weight) * (change.T if update.transposed else change)
    return total


def change_of(update: Update, matrix: Array) -> Array:
    if update.kind == "tensor":
        assert update.tensor
        return read(update.tensor) - matrix
    if update.kind == "vector":
        assert update.tensor
        return numpy.float32(update.scale) * read(update.tensor)
    assert update.a and update.b
    product = (read(update.b) @ read(update.a)) * numpy.float32(update.scale)
    if update.kind == "lora":
        return product
    assert update.magnitude
    directions = matrix + product
    lengths = numpy.linalg.norm(directions, axis=1)
    return (read(update.magnitude) / lengths)[:, None] * directions - matrix


def packed(array: Array, dtype: str) -> bytes:
    """Numbers as a file holds them, rounded once to the nearest, ties to even."""
    if dtype != "BF16":
        return bytes(array.astype(TYPES[dtype]).tobytes())
    bits = numpy.ascontiguousarray(array, numpy.float32).view(numpy.uint32)
    return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())


def save(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file of zeros."""
    tensors = tuple(Tensor(name=name, dtype=dtype, shape=shape) for name, shape in shapes.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    write(File(path=path.name, tensors=tensors, metadata=metadata or {"format": "pt"}), path)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 16,
}
LORA = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 2, "lora_alpha": 6}
LAYERS = {
    f"model.layers.{layer}.{name}": shape
    for layer in (0, 1)
    for name, shape in (
        ("self_attn.q_proj.weight", (8, 8)),
        ("self_attn.q_proj.bias", (8,)),
        ("mlp.up_proj.weight", (12, 8)),
        ("input_layernorm.weight", (8,)),
    )
}
MODEL = {"model.embed_tokens.weight": (16, 8), **LAYERS, "model.norm.weight": (8,), "lm_head.weight": (16, 8)}
TIED = {name: shape for name, shape in MODEL.items() if name != "lm_head.weight"}
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def make_base(folder: Path, shapes: Mapping[str, tuple[int, ...]] = MODEL, dtype: str = "BF16", **config: Any) -> Path:
    """A base with one file of zeros."""
    save(folder / "model.safetensors", shapes, dtype)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def make_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]], weight: float = 1.0, **config: Any) -> Adapter:
    """An adapter of zeros, its tensors by their names without PEFT's prefix."""
    save(folder / "adapter_model.safetensors", {f"base_model.model.{name}": shape for name, shape in shapes.items()})
    (folder / "adapter_config.json").write_text(json.dumps(LORA | config))
    return Adapter(name=folder.name, folder=folder, weight=weight)


def low_rank(module: str, out: int, inner: int, rank: int = 2) -> dict[str, tuple[int, ...]]:
    """The two matrices of a module."""
    return {f"{module}.lora_A.weight": (rank, inner), f"{module}.lora_B.weight": (out, rank)}
