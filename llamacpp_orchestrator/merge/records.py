"""The plan of a merge: every tensor of the merged files, where it is read and what is added; `merge_weights` carries it out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter to merge: its files in one folder, and the share of its own update that is added (1: all of it)."""

    name: str
    folder: Path
    weight: float = 1.0


class Stored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tensor in a safetensors file: its first byte in that file, dtype as the format names it, and shape.

    `rows` and `columns` are (start, stop, step) of the part that is meant of a matrix; None: all of it.
    """

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    rows: tuple[int, int, int] | None = None
    columns: tuple[int, int, int] | None = None


class Update(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one adapter adds to a tensor W, reckoned in float32 from the base's own W, and then added `weight` times.

    - `lora`: scale · (b @ a), with b of shape (out, rank) and a of shape (rank, in).
    - `dora`: the same into V = W + scale · (b @ a), and V · magnitude / ‖V‖ (of each row) - W.
    - `tensor`: the tensor itself - W. With `indices`, only those rows of W, in the order of the tensor's.
    - `vector`: scale · the tensor.

    `transposed`: the update is of W's transpose (norms, too). `at`: of the matrix W[at] in a stack.
    """

    kind: Literal["lora", "dora", "tensor", "vector"]
    weight: float = 1.0
    scale: float = 1.0
    a: Stored | None = None
    b: Stored | None = None
    magnitude: Stored | None = None
    tensor: Stored | None = None
    indices: tuple[int, ...] | None = None
    transposed: bool = False
    at: int | None = None


class Tensor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tensor of a merged file: its base, padded with rows of zeros or cut to its own shape, with the sum of all updates.

    No `base`: the updates alone make it. Without updates its bytes are the base's.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: Stored | None = None
    updates: tuple[Update, ...] = ()


class File(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A safetensors file to write: its tensors in the order of their bytes, and the entries of its `__metadata__`."""

    path: str
    tensors: tuple[Tensor, ...]
    metadata: dict[str, str] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A merge: weight files, small files with a text of their own, and those that are copied, by name with their origin.

    `by_peft`: why PEFT must merge it itself, "" where the plan says it all; then there are no files.
    """

    files: tuple[File, ...] = ()
    texts: dict[str, str] = {}
    copies: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    by_peft: str = ""
