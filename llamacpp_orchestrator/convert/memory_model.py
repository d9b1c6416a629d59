"""The memory that a step takes, in bytes, by headers alone.

Upstream converts one tensor after the other, so the largest one decides. Measured at b11434 on Linux, as anonymous memory
(what is mapped from files the system may drop), in bytes for each number of the largest tensor, beside 0.24 GB for Python:

    from, to    f32    f16   bf16   q8_0      from bf16, to bf16 (largest tensors of 64, 256 and 512 million numbers)
    bf16       3.95   5.95   7.95   6.10      attention's q_proj, which is permuted    7.96
    f16        3.95   0      3.96             16 experts, which are stacked            8.13 (f32 to f32 4.10, f16 to f16 2.10)
    f32        0      1.96   3.97   2.10      several files, split or --use-temp-file  7.96
                                              FP8 with a scale for each block         12.12

    tokenizer.json of 3, 18 and 31 MB                         14 bytes for each of its bytes
    llama-quantize (for each number, beside its float32)      0.9 to Q4_K_M, 1.2 to Q8_0
    merging (beside twice the adapters' files)                0.04 GB for a model of 2 GB
    programs that compute (beside the model's own size)       0.02 GB to load, 0.25 GB for 512 tokens
    transformers 5.23.0 with a model in float32, 256 tokens   0.45 GB beside the model
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import msgspec

MARGIN = 1.1
INTERPRETER, TOKENIZER = 270_000_000, 15
REFERENCE = 500_000_000
MERGER = 150_000_000
PROGRAM, QUANTIZED = 400_000_000, 2
KEPT = {"F32": 4, "F16": 2}  # types that stay as they are in the file; all others become float32 first
UNPACKED = 12  # bytes of an FP8 number: itself, its scale and their product as float32
PACKED = {"I32": 8, "I16": 4, "U8": 2}  # numbers in one integer of GPTQ and its kind, with 4 bits for each
SIZES = {"f32": 4.0, "q8_0": 1.0625}
EXPERT = re.compile(r"(experts?)\.\d+\.")
# Upstream stacks experts, permutes or splits attention's matrices: for a moment there are two of them.
MOVED = re.compile(r"expert|attn|attention|qkv|[qkv]_proj")


class Weight(msgspec.Struct, frozen=True):
    """A tensor as upstream writes it: its name, how its numbers are stored, and how many there are."""

    name: str
    dtype: str
    elements: int


def weights(headers: Iterable[Mapping[str, Any]]) -> tuple[Weight, ...]:
    """The tensors that some safetensors files become, by their headers; the experts of a block are one."""
    by_name: dict[str, Weight] = {}
    for header in headers:
        for name, entry in header.items():
            if name != "__metadata__":
                dtype, whole = str(entry["dtype"]), EXPERT.sub(r"\1.", name)
                numbers = math.prod(entry["shape"]) * PACKED.get(dtype, 1)
                before = by_name[whole].elements if whole in by_name else 0
                by_name[whole] = Weight(whole, dtype, before + numbers)
    return tuple(by_name.values())


def conversion(tensors: Iterable[Weight], outtype: str, args: Sequence[str] = (), tokenizer: int = 0) -> int:
    """The bytes that upstream's script takes to write such tensors as a type, beside a tokenizer.json of so many bytes."""
    tensors = tuple(tensors)
    fused = 2 if "--fuse-gate-up-exps" in args else 1  # two stacks become one
    most = max((_most(weight, outtype) * (fused if "expert" in weight.name else 1) for weight in tensors), default=0.0)
    # Without laziness everything is there, as it will be written, before the first byte is.
    held = sum(weight.elements for weight in tensors) * SIZES.get(outtype, 2.0) if "--no-lazy" in args else 0.0
    return int(INTERPRETER + TOKENIZER * tokenizer + MARGIN * (most + held))


def _most(weight: Weight, outtype: str) -> float:
    """The most at one of two moments: when a tensor has been read and perhaps moved, and when it is being written."""
    width = KEPT.get(weight.dtype, 4)
    copied = 0 if weight.dtype in KEPT else width
    moved = width if MOVED.search(weight.name) else 0
    read = UNPACKED if re.match("F8|I|U", weight.dtype) else copied + moved
    # Types that numpy has need one copy or none; others are made row by row, and the rows then joined.
    same = {"f32": width == 4, "f16": width == 2}.get(outtype)
    written = 2 * SIZES.get(outtype, 2.0) if same is None else 0.0 if same else SIZES.get(outtype, 2.0)
    return weight.elements * max(float(read), (moved or copied) + written)


def adapter(file: int, tensors: Iterable[Weight], outtype: str) -> int:
    """The bytes that upstream's script takes for an adapter: what a conversion does, and all of its file at once."""
    return file + conversion(tensors, outtype)


def merging(adapters: int, pickle: int) -> int:
    """The bytes that it takes to merge adapters, whose files have so many, into a model of any size; a pickle is read whole."""
    return int(MERGER + MARGIN * max(2 * adapters, pickle))


def quantizing(tensors: Iterable[Weight], origin: str, mapped: bool = True) -> int:
    """The bytes that llama-quantize takes for such tensors in a file of the type `origin`, mapped or read."""
    width = 4 if origin == "f32" else 2
    per_number = QUANTIZED + (0 if width == 4 else 4) + (0 if mapped else width)
    return int(PROGRAM + MARGIN * per_number * max((weight.elements for weight in tensors), default=0))


def loading(files: int) -> int:
    """The bytes that a program takes which computes with a model: all of it, mapped or laid out anew."""
    return int(PROGRAM + MARGIN * files)


def comparing(tensors: Iterable[Weight], files: int) -> int:
    """The bytes that `verify: logits` takes: first what the tag's program takes, then the source in float32."""
    return max(loading(files), int(REFERENCE + MARGIN * 4 * sum(weight.elements for weight in tensors)))
