"""Proof that a GGUF is whole, as upstream's exit code proves nothing: its header, each tensor's place and its numbers."""

from __future__ import annotations

import io
import mmap
import os
import struct
import sys
import threading
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.job.tensor_types import TENSOR_TYPES
from llamacpp_orchestrator.util.hashing import POLL_SECONDS
from llamacpp_orchestrator.verify import numbers
from llamacpp_orchestrator.verify.numbers import AGAIN
from llamacpp_orchestrator.verify.numbers import Tensor

# A value's type → its struct format; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MAX_KEYS, MAX_TENSORS, MAX_STRINGS, MAX_NAME, MAX_DIMENSIONS = 1 << 16, 1 << 18, 1 << 23, 1 << 16, 4
LONGEST_TEXT = 1 << 24
LENGTH = struct.Struct("<Q")
WANTED = ("general.", "split.", "adapter.")


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """What the header of a sound GGUF says; `split` is (number, count), `split_tensors` what all shards hold together.

    If all of it was read, `sha256` is of that, and `blank` names the tensors that are zero over WINDOW bytes or from end to end.
    """

    version: int
    tensors: int
    architecture: str
    name: str
    kind: str
    size: int
    split: tuple[int, int] = (0, 1)
    split_tensors: int = 0
    adapter_alpha: float | None = None
    file_type: int | None = None
    sha256: str = ""
    blank: tuple[str, ...] = ()


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """All that the headers of one output say: the metadata of its first file, and every tensor with the file it lies in."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[Path, Tensor]]


def check(path: Path) -> Checks:
    """Read the header and check every tensor's place; IntegrityError says what is wrong and what likely made it so."""
    with _reading(path) as file:
        return _head(path.name, file)[0]


def check_set(paths: Sequence[Path], followed: Checks | None = None) -> tuple[Checks, ...]:
    """Check all the files of one output, their numbers too: not NaN, not infinite; shards must agree and be complete.

    The only file need not be read again where it was `followed`.
    """
    found = (followed,) if followed and len(paths) == 1 else tuple(map(_whole, paths))
    first = paths[0].name
    if (count := found[0].split[1]) != len(found) or any(one.split[1] != count for one in found):
        raise IntegrityError(f"{first} is one of {count} shards, but {len(found)} are here", AGAIN)
    if sorted(one.split[0] for one in found) != list(range(count)):
        raise IntegrityError(f"the shards of {first} do not number from 1 to {count}", AGAIN)
    total = sum(one.tensors for one in found)
    if count > 1 and total != found[0].split_tensors:
        raise IntegrityError(f"the shards of {first} hold {total} tensors and promise {found[0].split_tensors}", AGAIN)
    return found


def follow(path: Path, written: threading.Event) -> Checks | None:
    """What check_set finds of a file, read while it is written from its beginning to its end; None where that cannot be."""
    while not (begun := _begun(path)):
        if written.is_set():
            return None
        written.wait(POLL_SECONDS)
    with suppress(IntegrityError), _reading(path) as file:
        if os.fstat(file.fileno()).st_size >= max(tensor.start + tensor.size for tensor in begun[1]):
            return None  # as long as it will be, so nothing tells what of it is still to be written
        sha256, blank = numbers.read(path.name, file, begun[1], written)
        checks, _ = _head(path.name, file)
        if _begun(path) == begun:
            return msgspec.structs.replace(checks, sha256=sha256, blank=blank)
    return None


def _begun(path: Path) -> tuple[bytes, list[Tensor]] | None:
    """The bytes before the first tensor, and the tensors that a file will hold; None while its header is not there."""
    failures = (OSError, ValueError, EOFError, struct.error, OverflowError, IntegrityError)
    with suppress(*failures), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tensors = _header(path.name, data, sys.maxsize)[2]
        begin = min(tensor.start for tensor in tensors)
        return (data[:begin], tensors) if len(data) >= begin else None
    return None


def contents(paths: Sequence[Path], keys: tuple[str, ...] = ("",)) -> Contents:
    """The metadata, by the beginnings of its keys, and the tensors of one output, which check_set has found to be whole."""
    metadata: dict[str, Any] = {}
    tensors: dict[str, tuple[Path, Tensor]] = {}
    for path in sorted(paths):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _, meta, placed = _header(path.name, data, path.stat().st_size, wanted=(*WANTED, *keys))
        metadata = metadata or meta
        tensors.update({tensor.name: (path, tensor) for tensor in placed})
    return Contents(metadata=metadata, tensors=tensors)


def bits_per_weight(contents: Contents, size: int) -> float:
    """The bits that a weight of an output takes; where a type is unknown, all `size` bytes of its files count as weights."""
    tensors = [tensor for _, tensor in contents.tensors.values()]
    held = sum(tensor.size for tensor in tensors) if all(tensor.size for tensor in tensors) else size
    return round(8 * held / max(1, sum(tensor.elements for tensor in tensors)), 4)


def _whole(path: Path) -> Checks:
    with _reading(path) as file:
        checks, tensors = _head(path.name, file)
        sha256, blank = numbers.read(path.name, file, tensors)
        return msgspec.structs.replace(checks, sha256=sha256, blank=blank)


@contextmanager
def _reading(path: Path) -> Iterator[io.FileIO]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}", "was it moved or removed?") from error
    except (struct.error, EOFError, OverflowError) as error:
        raise IntegrityError(f"{path.name} ends in the middle of its header", AGAIN) from error


def _head(name: str, file: io.FileIO) -> tuple[Checks, list[Tensor]]:
    if not (size := os.fstat(file.fileno()).st_size):
        raise IntegrityError(f"{name} is empty", AGAIN)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        checks, _, tensors = _header(name, data, size)
    return checks, tensors


def _header(
    name: str, data: mmap.mmap, size: int, wanted: tuple[str, ...] = WANTED
) -> tuple[Checks, dict[str, Any], list[Tensor]]:
    if data[:4] != b"GGUF":
        made = "llama-quantize writes the header last, so it was cut off" if not any(data[:4]) else "is it another format?"
        raise IntegrityError(f"{name} is no GGUF: it begins with {data[:4]!r}; {made}", AGAIN)
    version, count, keys = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        big = version & 0xFFFF == 0 and version >> 24 in (2, 3)
        why = "is big-endian, for machines of another kind" if big else f"has GGUF version {version}; 2 and 3 are known"
        raise IntegrityError(f"{name} {why}", "convert it without --bigendian" if big else AGAIN)
    if keys > MAX_KEYS or count > MAX_TENSORS:
        raise IntegrityError(f"{name} promises {keys} keys and {count} tensors, more than any model has", AGAIN)
    meta: dict[str, Any] = {}
    at = 24
    for _ in range(keys):
        key, at = _text(data, at)
        kind, at = _unpack("I", data, at)
        value, at = _value(data, at, kind, wanted=key.startswith(wanted))
        meta[key] = value
    checks = _facts(version, count, size, meta)
    if not count and not (checks.split_tensors and checks.split[1] > 1):
        raise IntegrityError(f"{name} holds no weights (0 tensors)", "are the model's *.safetensors there, and an adapter's too?")
    if not checks.architecture and not checks.split[0]:
        raise IntegrityError(f"{name} names no architecture, so nothing can load it", AGAIN)
    return checks, meta, _tensors(name, data, at, checks, meta.get("general.alignment", 32))


def _facts(version: int, count: int, size: int, meta: dict[str, Any]) -> Checks:
    def typed(key: str, kind: type) -> Any:
        return value if type(value := meta.get(key)) is kind else kind()

    return Checks(
        version=version,
        tensors=count,
        architecture=typed("general.architecture", str),
        name=typed("general.name", str),
        kind=typed("general.type", str),
        size=size,
        split=(typed("split.no", int), typed("split.count", int) or 1),
        split_tensors=typed("split.tensors.count", int),
        adapter_alpha=typed("adapter.lora.alpha", float) if "adapter.lora.alpha" in meta else None,
        file_type=typed("general.file_type", int) if "general.file_type" in meta else None,
    )


def _tensors(name: str, data: mmap.mmap, at: int, checks: Checks, alignment: Any) -> list[Tensor]:
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise IntegrityError(f"{name} has the alignment {alignment!r}, which is no power of two", AGAIN)
    found: dict[str, Tensor] = {}
    for _ in range(checks.tensors):
        key, at = _text(data, at)
        dimensions, at = _unpack("I", data, at)
        if dimensions > MAX_DIMENSIONS:
            raise IntegrityError(f"{name}: tensor {key[:80]} has {dimensions} dimensions", AGAIN)
        *shape, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, at)
        at += 8 * dimensions + 12
        if key in found:
            raise IntegrityError(f"{name} holds tensor {key[:80]} twice", AGAIN)
        if offset % alignment:
            raise IntegrityError(f"{name}: tensor {key[:80]} begins at {offset}, not at a multiple of {alignment}", AGAIN)
        found[key] = Tensor(key, kind, offset, _bytes(name, key, kind, shape), tuple(shape))
    begin = -(-at // alignment) * alignment
    placed = [msgspec.structs.replace(one, start=begin + one.start) for one in found.values()]
    _check_places(name, sorted(placed, key=lambda one: (one.start, one.size)), checks.size)
    return placed


def _bytes(name: str, tensor: str, kind: int, shape: list[int]) -> int:
    row = TENSOR_TYPES.get(kind)
    if row is None:
        return 0
    if shape and shape[0] % row.elements:
        raise IntegrityError(f"{name}: the rows of tensor {tensor[:80]} are not whole blocks of {row.elements}", AGAIN)
    total = 1
    for length in shape:
        total *= length
    return total // row.elements * row.size


def _check_places(name: str, placed: list[Tensor], size: int) -> None:
    end, before = 0, ""
    for one in placed:
        if one.start < end:
            raise IntegrityError(f"{name}: tensors {before[:80]} and {one.name[:80]} overlap", AGAIN)
        end, before = one.start + one.size, one.name
        if end > size:
            raise IntegrityError(f"{name} is cut: tensor {before[:80]} ends at byte {end}, the file at {size}", AGAIN)


def _unpack(form: str, data: mmap.mmap, at: int) -> tuple[Any, int]:
    return struct.unpack_from(f"<{form}", data, at)[0], at + struct.calcsize(f"<{form}")


def _text(data: mmap.mmap, at: int) -> tuple[str, int]:
    length, at = _unpack("Q", data, at)
    if length > MAX_NAME or at + length > len(data):
        raise EOFError
    return data[at : at + length].decode("utf-8", "replace"), at + length


def _value(data: mmap.mmap, at: int, kind: int, wanted: bool) -> tuple[Any, int]:
    if kind in SCALARS:
        return _unpack(SCALARS[kind], data, at)
    if kind == 8:
        (length,) = LENGTH.unpack_from(data, at)
        end = at + 8 + length
        return data[at + 8 : min(end, at + 8 + LONGEST_TEXT)].decode("utf-8", "replace") if wanted else None, end
    if kind != 9:
        raise EOFError
    item, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if item in SCALARS:
        end = at + count * struct.calcsize(SCALARS[item])
        return list(struct.unpack_from(f"<{count}{SCALARS[item]}", data, at)) if wanted and end <= len(data) else None, end
    if item != 8 or count > MAX_STRINGS:
        raise EOFError
    unpack, texts = LENGTH.unpack_from, []
    for _ in range(count):
        end = at + 8 + unpack(data, at)[0]
        if wanted:
            texts.append(data[at + 8 : end].decode("utf-8", "replace"))
        at = end
    return texts if wanted else None, at
