"""Tensors in safetensors files: their bits, the numbers that these stand for, and how both are read, written and copied.

A stored tensor is {"file", "offset", "dtype", "shape", "rows", "columns"} as merge/records.py has it.
"""

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "BOOL": 1, "C64": 8}
SIZES |= {f"{sign}{8 * size}": size for sign in "IU" for size in (1, 2, 4, 8)}
INFINITY = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}  # its bits, in what can be added to


class Failed(Exception):
    """Why there is no merge, in one line."""


def decode(bits: Any, dtype: str, work: str) -> Any:
    """The numbers that bits stand for, as floats of the dtype `work`; an array of its own."""
    if dtype == "BF16":
        wide = bits.astype("<u4")
        wide <<= 16
        return wide.view("<f4").astype(work, copy=False)
    return bits.view(f"<f{SIZES[dtype]}").astype(work)


def encode(values: Any, dtype: str, bits: Any) -> None:
    """Put floats into bits of a dtype, rounded to the nearest, ties to even; the values are lost."""
    if dtype == "BF16":
        wide = values.astype("<f4", copy=False).view("<u4")
        odd = wide >> 16
        odd &= 1
        odd += 0x7FFF
        wide += odd
        wide >>= 16
        bits[...] = wide
    else:
        bits.view(f"<f{SIZES[dtype]}")[...] = values


def is_finite(bits: Any, dtype: str) -> bool:
    """Whether bits hold finite numbers only; the largest of each sign tells."""
    size, least = SIZES[dtype], INFINITY[dtype]
    return not bits.size or bool(bits.view(f"<i{size}").max() < least and bits.max() < least | 1 << (8 * size - 1))


def matrix(shape: list[int], leading: int = 1) -> tuple[int, int]:
    """Rows and columns of a tensor, so many of whose first dimensions make the rows."""
    rows = columns = 1
    for number, length in enumerate(shape):
        rows, columns = (rows * length, columns) if number < leading else (rows, columns * length)
    return rows, columns


def extent(stored: dict[str, Any], leading: int = 1) -> tuple[int, int]:
    """Rows and columns of the part of a stored tensor that is meant."""
    rows, columns = matrix(stored["shape"], leading)
    rows = len(range(*stored["rows"])) if stored.get("rows") else rows
    return rows, len(range(*stored["columns"])) if stored.get("columns") else columns


def fill(file: Any, space: memoryview) -> None:
    """Read until a space is full."""
    while len(space):
        count = file.readinto(space)
        if not count:
            raise Failed(f"{file.name} ends within a tensor")
        space = space[count:]


def read(stored: dict[str, Any], begin: int, end: int, leading: int = 1) -> Any:
    """The bits of some rows of the part of a stored tensor that is meant."""
    width, size = matrix(stored["shape"], leading)[1], SIZES[stored["dtype"]]
    first, _, step = stored.get("rows") or (0, 0, 1)
    bits = numpy.empty(((end - begin - 1) * step + 1, width), f"<u{size}")
    with Path(stored["file"]).open("rb", buffering=0) as file:
        file.seek(stored["offset"] + (first + begin * step) * width * size)
        fill(file, memoryview(bits).cast("B"))
    return bits[::step, slice(*stored["columns"])] if stored.get("columns") else bits[::step]


def name_of(stored: dict[str, Any]) -> str:
    """A stored tensor as its file names it."""
    file = Path(stored["file"])
    with contextlib.suppress(OSError, ValueError, struct.error), file.open("rb") as content:
        length = struct.unpack("<Q", content.read(8))[0]
        for name, entry in json.loads(content.read(length)).items():
            if name != "__metadata__" and entry["data_offsets"][0] + 8 + length == stored["offset"]:
                return f"{name} in {file}"
    return f"the tensor at byte {stored['offset']} of {file}"


def numbers(stored: dict[str, Any], begin: int, end: int, work: str) -> Any:
    """Some rows of what an adapter holds, as floats; each has to be is_finite."""
    if stored["dtype"] not in INFINITY:
        raise Failed(f"{name_of(stored)} is of the type {stored['dtype']}")
    values = decode(read(stored, begin, end), stored["dtype"], work)
    if not numpy.isfinite(values).all():
        raise Failed(f"{name_of(stored)} holds infinite numbers or NaN")
    return values


def write(file: Any, space: memoryview) -> None:
    """Write all of a space at the file's position."""
    count = len(space)
    while len(space):
        space = space[file.write(space) :]
    start_writeback(file, count)


def start_writeback(file: Any, count: int) -> None:
    """Have the system begin to put the last bytes on the disk: else a later fsync waits for all of them."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), file.tell() - count, count, os.POSIX_FADV_DONTNEED)


def copy(source: str, offset: int, dest: str, to: int, count: int) -> None:
    """Copy bytes from one file into another, within the kernel where it can."""
    with Path(source).open("rb", buffering=0) as old, Path(dest).open("r+b", buffering=0) as new:
        ends, done = (old.fileno(), new.fileno()), 0
        with contextlib.suppress(AttributeError, OSError):  # Linux alone has it, and not between all kinds of disks
            while part := os.copy_file_range(*ends, count - done, offset + done, to + done):
                done += part
        old.seek(offset + done)
        new.seek(to + done)
        start_writeback(new, done)
        buffer = memoryview(bytearray(min(count - done, 1 << 20)))
        while done < count:
            space = buffer[: count - done]
            fill(old, space)
            write(new, space)
            done += len(space)
