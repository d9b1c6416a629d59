"""The headers of safetensors files, and the JSON files of a model, read with care."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models.weight_files import AGAIN
from llamacpp_orchestrator.util import pointers

Shapes = Mapping[str, tuple[int, ...]]


class Stored(msgspec.Struct, frozen=True):
    """The entry of one tensor in a safetensors header; offsets in bytes from the end of the header."""

    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object out of a model's folder; OrchestrateError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OrchestrateError(f"{path} is not JSON: {error}", "download or copy it again") from error
    if not isinstance(value, dict):
        raise OrchestrateError(f"{path} is not a JSON object", "download or copy it again")
    return value


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; IntegrityError for one that is cut, damaged, or only a Git LFS pointer."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        pointer, way = pointers.kind(path)
        if pointer:
            raise IntegrityError(f"{path.name} is {pointer}, not weights", way)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise IntegrityError(f"{path.name} ({size} bytes) is not a safetensors file", AGAIN)
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            tensors = {key: msgspec.convert(value, Stored) for key, value in header.items() if key != "__metadata__"}
            whole = 8 + length + max((value.data_offsets[1] for value in tensors.values()), default=0)
        except (ValueError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"{path.name} has a damaged header", AGAIN) from error
    if size != whole:
        how = "cut" if size < whole else "too long"
        raise IntegrityError(f"{path.name} is {how}: its header says {whole} bytes, it has {size}", AGAIN)
    return dict(header)


def data_begin(path: Path) -> int:
    """The byte at which the numbers begin in a safetensors file whose header is sound."""
    with path.open("rb") as file:
        return 8 + int(struct.unpack("<Q", file.read(8))[0])


def check_safetensors(path: Path) -> None:
    """Raise IntegrityError for a file that is not whole, OrchestrateError for one without tensors."""
    if not [key for key in safetensors_header(path) if key != "__metadata__"]:
        raise OrchestrateError(f"{path.name} holds no tensors", "was the model or adapter saved whole?")
