"""One read of a GGUF's bytes: their digest, and whether the numbers of its tensors are numbers."""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.job.tensor_types import DOUBLE
from llamacpp_orchestrator.job.tensor_types import HALF
from llamacpp_orchestrator.job.tensor_types import POWER
from llamacpp_orchestrator.job.tensor_types import SPREAD
from llamacpp_orchestrator.job.tensor_types import TENSOR_TYPES
from llamacpp_orchestrator.util.hashing import read_through

# Of which zeros can be compared with a source's: what a converter makes itself.
PLAIN = (0, 1, 8, 30)
WINDOW = 4096
CHUNK = 34 * WINDOW << 2  # whole blocks, whole windows, and little enough for a processor's cache
ZEROS = bytes(WINDOW)
AGAIN = "the file is cut or damaged: make or copy it again"
DAMAGED = "the weights are damaged, or too large for f16: try outtype bf16 or f32"
OVERFLOW = (
    "if its source is sound, a weight is too large for this type, whose blocks keep their scale as f16: take Q8_0, which "
    "holds larger ones, or bf16; or look into the checkpoint"
)


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


def read(
    name: str, file: io.FileIO, tensors: Sequence[Tensor], written: threading.Event | None = None
) -> tuple[str, tuple[str, ...]]:
    """Read all of a file once: its sha256, and the tensors that may be blank; IntegrityError at a number that is none."""
    # Not through a map of the file: its pages would count as our memory, and no other thread could run at a fault.
    digest, blank, parts = hashlib.sha256(), dict[str, None](), list(_parts(tensors))
    reading = iter(parts)

    def lengths() -> Iterator[int]:
        yield from (length for length, _ in parts)
        if written:
            written.wait()
        rest = os.fstat(file.fileno()).st_size - sum(length for length, _ in parts)
        yield from (min(CHUNK, rest - at) for at in range(0, rest, CHUNK))

    file.seek(0)
    try:
        for buffer in read_through(file, lengths(), digest, written):
            for tensor, begin, end in next(reading, (0, ()))[1]:
                _look(name, tensor, buffer, begin, end)
                if tensor.type in PLAIN and _may_be_blank(buffer, begin, end):
                    blank[tensor.name] = None
    except EOFError:
        cut = next((f"tensor {tensor.name[:80]}" for tensor, _, _ in next(reading, (0, ()))[1]), "it")
        raise IntegrityError(f"{name} is cut: {cut} was longer a moment ago", AGAIN) from None
    return digest.hexdigest(), tuple(blank)


def _parts(tensors: Iterable[Tensor]) -> Iterator[tuple[int, list[tuple[Tensor, int, int]]]]:
    """The parts in which a file is read, in their order: the length of each, and where in it whole blocks of tensors lie."""
    length, held, before = 0, list[tuple[Tensor, int, int]](), 0
    for tensor in sorted(tensors, key=lambda one: (one.start, one.size)):
        row = TENSOR_TYPES.get(tensor.type)
        for looked, space, step in ((False, tensor.start - before, 1), (row and row.floats, tensor.size, row.size if row else 1)):
            whole = CHUNK // step * step
            for at in range(0, space, whole):
                count = min(whole, space - at)
                if length + count > CHUNK:
                    yield length, held
                    length, held = 0, []
                held += [(tensor, length, length + count)] if looked else []
                length += count
        before = tensor.start + tensor.size
    yield length, held


def _look(name: str, tensor: Tensor, chunk: bytearray, begin: int, end: int) -> None:
    row = TENSOR_TYPES[tensor.type]
    if any(_is_bad(chunk, begin, end, row.size, last, kind) for last, kind in row.floats):
        hint = OVERFLOW if row.size > 8 else DAMAGED
        raise IntegrityError(f"{name}: tensor {tensor.name[:80]} holds NaN or infinite numbers", hint)


def _is_bad(chunk: bytearray, begin: int, end: int, step: int, last: int, kind: str) -> bool:
    tops = chunk[begin + last : end : step]
    if kind == POWER:
        return b"\xff" in tops
    if kind == HALF:
        return any(bytes([sign | top]) in tops for sign in (0, 0x80) for top in range(0x7C, 0x80))
    if kind == SPREAD:  # its exponent is the last three of the upper four bits here, and the first two of two bytes before
        return _both(tops, 0x70, chunk[begin + last - 2 : end : step], 0xC0)
    # Only a huge number has such a last byte; the one before tells whether its exponent is full.
    huge = b"\x7f" in tops or b"\xff" in tops
    return huge and _both(tops, 0x7F, chunk[begin + last - 1 : end : step], 0xF0 if kind == DOUBLE else 0x80)


def _both(tops: bytearray, these: int, lows: bytearray, those: int) -> bool:
    """Whether somewhere all of these bits are set, and all of those in the other byte beside it."""
    first, second = (
        int.from_bytes(each.translate(bytes(value & bits == bits for value in range(256))), "little")
        for each, bits in ((tops, these), (lows, those))
    )
    return bool(first & second)


def _may_be_blank(chunk: bytearray, begin: int, end: int) -> bool:
    return chunk.find(ZEROS, begin, end) >= 0 if end - begin >= WINDOW else not any(chunk[begin:end])
