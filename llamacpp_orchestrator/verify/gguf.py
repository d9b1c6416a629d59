"""Proof that a GGUF is whole, as upstream's exit code proves nothing: its header, each tensor's place and its numbers."""

from __future__ import annotations

import io
import math
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.job.tensor_types import DOUBLE
from llamacpp_orchestrator.job.tensor_types import HALF
from llamacpp_orchestrator.job.tensor_types import POWER
from llamacpp_orchestrator.job.tensor_types import SPREAD
from llamacpp_orchestrator.job.tensor_types import TENSOR_TYPES

# Of which zeros can be compared with a source's: what a converter makes itself.
PLAIN = (0, 1, 8, 30)
# A value's type → its struct format; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MAX_KEYS, MAX_TENSORS, MAX_STRINGS, MAX_NAME, MAX_DIMENSIONS = 1 << 16, 1 << 18, 1 << 23, 1 << 16, 4
LONGEST_TEXT = 1 << 24
LENGTH = struct.Struct("<Q")
WANTED = ("general.", "split.", "adapter.")
WINDOW = 4096
CHUNK = 34 * WINDOW << 2  # whole blocks, whole windows, and little enough for a processor's cache
ZEROS = bytes(WINDOW)
AGAIN = "the file is cut or damaged: make or copy it again"
DAMAGED = "the weights are damaged, or too large for f16: try outtype bf16 or f32"
OVERFLOW = (
    "if its source is sound, a weight is too large for this type, whose blocks keep their scale as f16: take Q8_0, which "
    "holds larger ones, or bf16; or look into the checkpoint"
)


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """What the header of a sound GGUF says; `split` is (number, count), `split_tensors` what all shards hold together.

    `blank` names the tensors, if their numbers were looked at, that are zero over WINDOW bytes or from end to end.
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
    blank: tuple[str, ...] = ()


class Tensor(msgspec.Struct, frozen=True):
    """A tensor's place: where it starts in the file, and how many bytes it takes; 0 for a type that we do not know."""

    name: str
    type: int
    start: int
    size: int
    shape: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """All that the headers of one output say: the metadata of its first file, and every tensor with the file it lies in."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[Path, Tensor]]


def check(path: Path) -> Checks:
    """Read the header and check every tensor's place; IntegrityError says what is wrong and what likely made it so."""
    return _checked(path, numbers=False)


def check_set(paths: Sequence[Path]) -> tuple[Checks, ...]:
    """Check all the files of one output, their numbers too: not NaN, not infinite; shards must agree and be complete."""
    found = tuple(_checked(path, numbers=True) for path in paths)
    first = paths[0].name
    if (count := found[0].split[1]) != len(found) or any(one.split[1] != count for one in found):
        raise IntegrityError(f"{first} is one of {count} shards, but {len(found)} are here", AGAIN)
    if sorted(one.split[0] for one in found) != list(range(count)):
        raise IntegrityError(f"the shards of {first} do not number from 1 to {count}", AGAIN)
    total = sum(one.tensors for one in found)
    if count > 1 and total != found[0].split_tensors:
        raise IntegrityError(f"the shards of {first} hold {total} tensors and promise {found[0].split_tensors}", AGAIN)
    return found


def contents(paths: Sequence[Path]) -> Contents:
    """All metadata and tensors of one output, which check_set has found to be whole."""
    metadata: dict[str, Any] = {}
    tensors: dict[str, tuple[Path, Tensor]] = {}
    for path in sorted(paths):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _, meta, placed = _header(path.name, data, path.stat().st_size, everything=True)
        metadata = metadata or meta
        tensors.update({tensor.name: (path, tensor) for tensor in placed})
    return Contents(metadata=metadata, tensors=tensors)


def bits_per_weight(contents: Contents, size: int) -> float:
    """The bits that a weight of an output takes; where a type is unknown, all `size` bytes of its files count as weights."""
    tensors = [tensor for _, tensor in contents.tensors.values()]
    held = sum(tensor.size for tensor in tensors) if all(tensor.size for tensor in tensors) else size
    return round(8 * held / max(1, sum(tensor.elements for tensor in tensors)), 4)


def _checked(path: Path, numbers: bool) -> Checks:
    try:
        with path.open("rb") as file:
            if not (size := path.stat().st_size):
                raise IntegrityError(f"{path.name} is empty", AGAIN)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                checks, _, tensors = _header(path.name, data, size)
            return msgspec.structs.replace(checks, blank=_scan(path.name, file, tensors)) if numbers else checks
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}", "was it moved or removed?") from error
    except (struct.error, EOFError, OverflowError) as error:
        raise IntegrityError(f"{path.name} ends in the middle of its header", AGAIN) from error


def _header(name: str, data: mmap.mmap, size: int, everything: bool = False) -> tuple[Checks, dict[str, Any], list[Tensor]]:
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
        value, at = _value(data, at, kind, wanted=everything or key.startswith(WANTED))
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


def _scan(name: str, file: io.BufferedReader, tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """Read all numbers once; IntegrityError at one that is none. The tensors that may be blank."""
    # Not through a map of the file: its pages would count as our memory, and no other thread could run at a fault.
    buffer, blank = bytearray(CHUNK), []
    for tensor in tensors:
        file.seek(tensor.start)
        suspect = False
        row = TENSOR_TYPES.get(tensor.type)
        places, step = (row.floats, row.size) if row else ((), 1)
        whole = CHUNK // step * step
        for at in range(0, tensor.size if places else 0, whole):
            count = min(whole, tensor.size - at)
            if file.readinto(memoryview(buffer)[:count]) != count:
                raise IntegrityError(f"{name} is cut: tensor {tensor.name[:80]} was longer a moment ago", AGAIN)
            if any(_is_bad(buffer, count, step, last, kind) for last, kind in places):
                raise IntegrityError(
                    f"{name}: tensor {tensor.name[:80]} holds NaN or infinite numbers", OVERFLOW if step > 8 else DAMAGED
                )
            suspect = suspect or (tensor.type in PLAIN and _may_be_blank(buffer, count))
        if suspect:
            blank.append(tensor.name)
    return tuple(blank)


def _is_bad(chunk: bytearray, count: int, step: int, last: int, kind: str) -> bool:
    tops = chunk[last:count:step]
    if kind == POWER:
        return b"\xff" in tops
    if kind == HALF:
        return any(bytes([sign | top]) in tops for sign in (0, 0x80) for top in range(0x7C, 0x80))
    if kind == SPREAD:  # its exponent is the last three of the upper four bits here, and the first two of two bytes before
        return _both(tops, 0x70, chunk[last - 2 : count : step], 0xC0)
    # Only a huge number has such a last byte; the one before tells whether its exponent is full.
    huge = b"\x7f" in tops or b"\xff" in tops
    return huge and _both(tops, 0x7F, chunk[last - 1 : count : step], 0xF0 if kind == DOUBLE else 0x80)


def _both(tops: bytearray, these: int, lows: bytearray, those: int) -> bool:
    """Whether somewhere all of these bits are set, and all of those in the other byte beside it."""
    first, second = (
        int.from_bytes(each.translate(bytes(value & bits == bits for value in range(256))), "little")
        for each, bits in ((tops, these), (lows, those))
    )
    return bool(first & second)


def _may_be_blank(chunk: bytearray, count: int) -> bool:
    return chunk.find(ZEROS, 0, count) >= 0 if count >= WINDOW else not any(chunk[:count])


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
