"""Whether a file is a whole GGUF: read from its header alone, trusting nothing that the header says."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import IntegrityError

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
# ggml type → (weights in a block, bytes of a block), as ggml.h lays them out
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84), 11: (256, 110),
    12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
MOST_TENSORS = 1_000_000
MOST_KEYS = 100_000
REMEDY = "the file was moved aside or left as it is; make it again: orchestrate run JOB --force"


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """What the header of a sound GGUF says; `split` is (number of this file, count of files)."""

    version: int
    tensors: int
    architecture: str
    name: str
    kind: str
    size: int
    split: tuple[int, int] = (0, 1)
    split_tensors: int = 0


class _Reader(msgspec.Struct):
    data: Any
    size: int
    at: int = 0

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > self.size:
            raise IntegrityError("its header is cut short")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode(errors="replace")

    def skip(self, count: int) -> None:
        if self.at + count > self.size:
            raise IntegrityError("its header is cut short")
        self.at += count

    def value(self, kind: int, depth: int = 0) -> Any:
        """A scalar or text; of an array only that it is all there."""
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY or depth > 3:
            raise IntegrityError(f"its header has a value of unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in SCALARS:
            self.skip(count * struct.calcsize(SCALARS[inner]))
        elif inner == STRING:
            unpack, data, size, at = struct.Struct("<Q").unpack_from, self.data, self.size, self.at
            for _ in range(count):
                if at + 8 > size:
                    raise IntegrityError("its header is cut short")
                at += 8 + unpack(data, at)[0]
            self.at = at
            self.skip(0)
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None


def check(path: Path) -> Checks:
    """Read one file's header; IntegrityError says what is wrong with it: no GGUF, cut, no tensors, a tensor outside of the file."""
    size = path.stat().st_size
    try:
        if size < 24:
            raise IntegrityError("it is too short to be a GGUF")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _check(_Reader(data, size))
    except IntegrityError as error:
        raise IntegrityError(f"{path.name} is not a sound GGUF: {error.message}", REMEDY) from error


def _check(reader: _Reader) -> Checks:
    if reader.take(4) != b"GGUF":
        raise IntegrityError("it does not begin with GGUF")
    version = reader.number("<I")
    if version not in (2, 3):
        raise IntegrityError("it is big-endian" if version & 0xFFFF == 0 else f"its version {version} is unknown")
    tensors, keys = reader.number("<Q"), reader.number("<Q")
    if tensors > MOST_TENSORS or keys > MOST_KEYS:
        raise IntegrityError(f"its header claims {tensors} tensors and {keys} keys")
    meta: dict[str, Any] = {}
    for _ in range(keys):
        key = reader.text()
        meta[key] = reader.value(reader.number("<I"))
    alignment = meta.get("general.alignment", 32)
    split = (meta.get("split.no", 0), meta.get("split.count", 1) or 1)
    if not tensors and not split[1] > 1:
        raise IntegrityError("it holds no tensors, so the model or adapter had no weights that upstream knows")
    if not isinstance(alignment, int) or alignment < 1:
        raise IntegrityError(f"its alignment is {alignment}")
    _check_tensors(reader, tensors, alignment)
    texts = {short: str(meta.get(f"general.{short}", "")) for short in ("architecture", "name", "type")}
    return Checks(
        version=version, tensors=tensors, architecture=texts["architecture"], name=texts["name"], kind=texts["type"], size=reader.size,
        split=split, split_tensors=meta.get("split.tensors.count", tensors),
    )  # fmt: skip


def _check_tensors(reader: _Reader, count: int, alignment: int) -> None:
    found: list[tuple[int, int, str]] = []
    names: set[str] = set()
    for _ in range(count):
        name, dimensions = reader.text(), reader.number("<I")
        if dimensions > 8 or name in names:
            raise IntegrityError(f"its tensor {name!r} {'is there twice' if name in names else 'has too many dimensions'}")
        names.add(name)
        elements = 1
        row = 1
        for axis in range(dimensions):
            length = reader.number("<Q")
            elements *= length
            row = length if axis == 0 else row
        kind, offset = reader.number("<I"), reader.number("<Q")
        block, width = BLOCKS.get(kind, (1, 0))
        if row % block or offset % alignment:
            raise IntegrityError(f"its tensor {name!r} is not aligned")
        found.append((offset, elements // block * width, name))
    start = -(-reader.at // alignment) * alignment
    before = 0
    for offset, length, name in sorted(found):
        if offset < before:
            raise IntegrityError(f"its tensor {name!r} overlaps another")
        if start + offset + length > reader.size:
            raise IntegrityError(f"it is cut: tensor {name!r} ends at byte {start + offset + length}, the file at {reader.size}")
        before = offset + length


def check_set(paths: tuple[Path, ...]) -> tuple[Checks, ...]:
    """Check all files of one output; the parts of a split model must be all there and hold all of its tensors."""
    found = tuple(check(path) for path in paths)
    count = found[0].split[1]
    if sorted(checks.split[0] for checks in found) != list(range(count)):
        raise IntegrityError(f"{paths[0].name} is one of {count} parts, and {len(found)} are there", REMEDY)
    if count > 1 and sum(checks.tensors for checks in found) != found[0].split_tensors:
        raise IntegrityError(f"the parts of {paths[0].name} hold {sum(c.tensors for c in found)} of {found[0].split_tensors} tensors", REMEDY)
    return found
