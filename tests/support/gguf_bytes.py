"""GGUF files, byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from llamacpp_orchestrator.verify import gguf as verify_gguf

ARCH = ("general.architecture", 8, "llama")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(kind: int, held: Any) -> bytes:
    if kind == 8:
        return text(held)
    if kind == 9:
        item, items = held
        return struct.pack("<IQ", item, len(items)) + b"".join(value(item, one) for one in items)
    return struct.pack("<" + verify_gguf.SCALARS[kind], held)


def gguf(
    tensors: Sequence[tuple[str, Sequence[int], int, int]] = (("a", (4,), 0, 0),),
    keys: Sequence[tuple[str, int, Any]] = (ARCH,),
    data: bytes = bytes(32),
    version: int = 3,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(text(key) + struct.pack("<I", kind) + value(kind, held) for key, kind, held in keys)
    for name, shape, kind, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head + bytes(-len(head) % 32) + data
