"""Write the weight files of a merge: copies, and tensors with their updates; run by the environment's python.

Called as merge_weights.py ASKED ANSWER: files with JSON. ASKED has `files`, as in merge/records.py, and `dest`, the folder that
they are written to. The sums are float32 (float64 where the base is), rounded once to the tensor's own dtype, to the nearest,
ties to even.
ANSWER tells {"tensors": written, "updated": weights that have an update, "changed": those of them whose stored bits are others}.
Says "45%|" on standard output now and then. Ends with 1 and one line on standard error when a file is too short, or a number is
infinite, none at all, or too large for its dtype; what was written until then is of no use.
"""

import collections
import ctypes
import functools
import json
import math
import os
import struct
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The threads are ours: each works on other rows.
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "MKL", "OMP")}, VECLIB_MAXIMUM_THREADS="1")
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD and
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD (malloc.h): each step uses the pages of the last, and clears none anew

import numpy
from stored_tensors import INFINITY
from stored_tensors import SIZES
from stored_tensors import Failed
from stored_tensors import copy
from stored_tensors import decode
from stored_tensors import encode
from stored_tensors import extent
from stored_tensors import is_finite
from stored_tensors import matrix
from stored_tensors import numbers
from stored_tensors import read
from stored_tensors import write

PIECE, BLOCK, RUN = 1 << 20, 1 << 17, 1 << 26  # weights of a task; of a step in it, which stay in the cache; bytes of a copy
ALL = slice(None)


# What an update has to say of rows of W, in W's own orientation: which of them, their values, and whether these replace W's.


def product(update: dict[str, Any], begin: int, end: int) -> Any:
    """Rows of scale · (b @ a)."""
    a, b = update["a"], update["b"]
    change = a[:, begin:end].T @ b.T if update.get("transposed") else b[begin:end] @ a
    if update["scale"] != 1.0:
        change *= change.dtype.type(update["scale"])
    return change


def lora(update: dict[str, Any], w: Any, begin: int, end: int) -> tuple[Any, Any, bool]:
    return ALL, product(update, begin, end), False


def dora(update: dict[str, Any], w: Any, begin: int, end: int) -> tuple[Any, Any, bool]:
    values = product(update, begin, end)
    values += w
    if update.get("transposed"):
        values *= update["magnitude"] / update["norms"]
    else:
        norms = numpy.sqrt((values * values).sum(axis=1))
        values *= (update["magnitude"][begin:end] / norms)[:, None]
    return ALL, values, True


def tensor(update: dict[str, Any], w: Any, begin: int, end: int) -> tuple[Any, Any, bool]:
    if update.get("indices") is not None:
        places = numpy.flatnonzero((update["indices"] >= begin) & (update["indices"] < end))
        return update["indices"][places] - begin, update["values"][places], True
    if update.get("transposed"):
        return ALL, update["values"][:, begin:end].T.copy(), True
    return ALL, numbers(update["tensor"], begin, end, w.dtype.str), True


def vector(update: dict[str, Any], w: Any, begin: int, end: int) -> tuple[Any, Any, bool]:
    values = numbers(update["tensor"], begin, end, w.dtype.str)
    values *= values.dtype.type(update.get("scale", 1.0))
    return ALL, values, False


KINDS = {"lora": lora, "dora": dora, "tensor": tensor, "vector": vector}


def apply(updates: list[dict[str, Any]], w: Any, begin: int, end: int) -> tuple[Any, Any]:
    """Rows of W with all updates, and which of them have any."""
    total: Any = None
    mask = numpy.zeros(len(w), bool)
    for update in updates:
        rows, values, instead = KINDS[update["kind"]](update, w, begin, end)
        weight = update.get("weight", 1.0)
        mask[rows] = True
        if instead and weight == 1.0 and len(updates) == 1:
            w[rows] = values
            return w, mask
        if instead:
            values -= w[rows]
        if weight != 1.0:
            values *= values.dtype.type(weight)
        if total is None and rows is ALL:
            total = values
        else:
            total = numpy.zeros_like(w) if total is None else total
            total[rows] += values
    w += total
    return w, mask


# A part: the matrix that a tensor is, or one of a stack of them, in the file that is written; and its updates with their factors.


def parts(tensor: dict[str, Any], path: str, offset: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The matrices of a tensor, each with its updates: one, or all of a stack where updates are of these."""
    updates, shape, dtype = tensor.get("updates", []), tensor["shape"], tensor["dtype"]
    stack = [update["at"] for update in updates if "at" in update]
    if stack and (len(stack) < len(updates) or len(shape) < 3 or not 0 <= min(stack) <= max(stack) < shape[0]):
        raise Failed(f"{tensor['name']}: not all of its updates are of matrices in a stack of {shape}")
    leading, count = (2, shape[0]) if stack else (1, 1)
    rows, columns = matrix(shape, leading)
    base = tensor.get("base") or {"file": "", "offset": 0, "dtype": dtype, "shape": [0] * leading + shape[leading:]}
    if (updates or base["dtype"] != dtype) and {base["dtype"], dtype} - INFINITY.keys():
        raise Failed(f"{tensor['name']}: nothing can be added to numbers of the type {base['dtype']}")
    height, width = extent(base, folds := leading if len(base["shape"]) == len(shape) else 1)
    if width != columns or (folds == 2 and base["shape"][1] != shape[1]):
        raise Failed(f"{tensor['name']}: its base, of the shape {base['shape']}, does not fit {shape}")
    part = {"name": tensor["name"], "dtype": dtype, "base": base, "folds": folds, "last": height, "path": path, "offset": offset}
    part |= {"columns": columns, "step": max(1, BLOCK // max(1, columns)), "work": "<f8" if dtype == "F64" else "<f4"}
    for number in range(count):
        own = [update for update in updates if update.get("at") in (None, number)]
        yield {**part, "top": number * (rows // count), "height": rows // count}, own


def factor(stored: dict[str, Any], work: str, cache: dict[Any, Any]) -> Any:
    """The part of a stored matrix that is meant, as floats; all matrices of a stack share what one read of it gave."""
    key = stored["file"], stored["offset"]
    if key not in cache:
        bare = {name: value for name, value in stored.items() if name not in ("rows", "columns")}
        cache[key] = numbers(bare, 0, matrix(stored["shape"])[0], work)
    rows, columns = (slice(*stored[name]) if stored.get(name) else ALL for name in ("rows", "columns"))
    return numpy.ascontiguousarray(cache[key][rows, columns])


def prepare(part: dict[str, Any], update: dict[str, Any], cache: dict[Any, Any]) -> dict[str, Any]:
    """An update with its factors, which fit the part."""
    height, columns, transposed = part["height"], part["columns"], update.get("transposed")
    out, into = (columns, height) if transposed else (height, columns)
    factors = dict(update)
    if update["kind"] in ("lora", "dora"):
        a, b = (factor(update[name], part["work"], cache) for name in "ab")
        scale = update.get("scale", 1.0)
        if math.frexp(scale)[0] == 0.5:  # a power of two changes no digit, wherever it comes in
            b, scale = b * b.dtype.type(scale), 1.0
        factors |= {"a": a, "b": b, "scale": scale}
        fits = (b.shape[0], a.shape[1], a.shape[0]) == (out, into, b.shape[1])
    elif (indices := update.get("indices")) is not None:
        factors |= {"indices": numpy.array(indices, int), "values": factor(update["tensor"], part["work"], cache)}
        fits = factors["values"].shape == (len(indices), into) and all(0 <= row < out for row in indices) and not transposed
    else:
        factors |= {"values": factor(update["tensor"], part["work"], cache)} if transposed else {}
        fits = extent(update["tensor"]) == (out, into)
    if update["kind"] == "dora":
        factors["magnitude"] = factor(update["magnitude"], part["work"], cache).ravel()
        fits = fits and factors["magnitude"].size == out
    if not fits:
        raise Failed(f"{part['name']}: what an adapter has for it does not fit {height} rows and {columns} columns")
    if update["kind"] == "dora" and transposed:
        factors["norms"] = norms(part, factors)
    return factors


def norms(part: dict[str, Any], update: dict[str, Any]) -> Any:
    """Norms of V's columns, summed row by row as PEFT's torch does for a transposed tensor."""
    total = numpy.zeros(part["columns"], part["work"])
    for begin in range(0, part["height"], part["step"]):
        end = min(begin + part["step"], part["height"])
        values = product(update, begin, end)
        values += decode(base_rows(part, begin, end), part["base"]["dtype"], part["work"])
        values *= values
        values[0] += total
        total = values.sum(axis=0)
    return numpy.sqrt(total)


def base_rows(part: dict[str, Any], begin: int, end: int) -> Any:
    """The bits of rows of the base; those of zeros where it has no more."""
    begin, end = begin + part["top"], end + part["top"]
    last = min(end, part["last"])
    if begin < last == end:
        return read(part["base"], begin, end, part["folds"])
    bits = numpy.zeros((end - begin, part["columns"]), f"<u{SIZES[part['base']['dtype']]}")
    if begin < last:
        bits[: last - begin] = read(part["base"], begin, last, part["folds"])
    return bits


def update_rows(part: dict[str, Any], updates: list[dict[str, Any]], begin: int, old: Any, new: Any) -> tuple[int, int]:
    """Fill in the bits that some rows have after their updates; how many rows have any, and how many weights are others."""
    origin, dtype = part["base"]["dtype"], part["dtype"]
    if not updates and origin == dtype:
        new[...] = old
        return 0, 0
    with numpy.errstate(all="ignore"):  # what is not finite is looked for below
        w = decode(old, origin, part["work"])
        if origin != dtype:
            encode(w.copy(), dtype, new)
            old = new.copy()
        w, mask = apply(updates, w, begin, begin + len(old)) if updates else (w, numpy.ones(len(old), bool))
        encode(w, dtype, new)
    rows = int(numpy.count_nonzero(mask))
    if rows < len(old):
        new[~mask] = old[~mask]
    if not is_finite(new if rows == len(old) else new[mask], dtype):
        raise Failed(f"{part['name']}: a merged weight is infinite, NaN or too large for {dtype}")
    return rows if updates else 0, int(numpy.count_nonzero(new != old))


def write_rows(part: dict[str, Any], updates: list[dict[str, Any]], begin: int, end: int) -> tuple[int, int]:
    """Write rows of a part; how many weights have an update, and how many of these changed."""
    old = base_rows(part, begin, end)
    new = numpy.empty(old.shape, f"<u{SIZES[part['dtype']]}")
    updated = changed = 0
    for start in range(0, end - begin, part["step"]):
        here = slice(start, start + part["step"])
        rows, others = update_rows(part, updates, begin + start, old[here], new[here])
        updated += rows * part["columns"]
        changed += others
    with Path(part["path"]).open("r+b", buffering=0) as file:
        file.seek(part["offset"] + (part["top"] + begin) * part["columns"] * SIZES[part["dtype"]])
        write(file, memoryview(new).cast("B"))
    return updated, changed


# Files.


def write_header(file: dict[str, Any], path: Path) -> list[int]:
    """Write a file's header, and make it as long as it will be; the offset of each tensor."""
    header: dict[str, Any] = {"__metadata__": file["metadata"]} if file.get("metadata") else {}
    offsets, at = [], 0
    for tensor in file["tensors"]:
        if tensor["dtype"] not in SIZES:
            raise Failed(f"{tensor['name']}: the type {tensor['dtype']} is not known")
        rows, columns = matrix(tensor["shape"])
        offsets.append(at)
        at += rows * columns * SIZES[tensor["dtype"]]
        header[tensor["name"]] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [offsets[-1], at]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as content:
        content.write(struct.pack("<Q", len(text)) + text)
        content.truncate(8 + len(text) + at)
    return [8 + len(text) + offset for offset in offsets]


def kept_bytes(part: dict[str, Any], updates: list[dict[str, Any]], begin: int, end: int) -> tuple[str, int, int, int] | None:
    """Where the bytes of rows lie that stay as they are: file, offset, offset in the new file, count; None for others."""
    base, (first, _, step) = part["base"], part["base"].get("rows") or (0, 0, 1)
    for indices in (update.get("indices") for update in updates):
        if indices is None or ((indices >= begin) & (indices < end)).any():
            return None
    if base["dtype"] != part["dtype"] or base.get("columns") or step != 1:
        return None
    size, top = part["columns"] * SIZES[part["dtype"]], part["top"] + begin
    count = max(0, min(top + end - begin, part["last"]) - top)
    return base["file"], base["offset"] + (first + top) * size, part["offset"] + top * size, count * size


def tasks(file: dict[str, Any], path: Path, tell: Callable[[int], Iterable[Callable[[], Any]]]) -> Iterator[Callable[[], Any]]:
    """All that is to be done for a file, in its order; what lies side by side in both files is copied at once.

    `tell` is given how many numbers each tensor has, and answers with what tells how far it is.
    """
    run: Any = None
    for tensor, offset in zip(file["tensors"], write_header(file, path), strict=True):
        cache: dict[Any, Any] = {}
        for part, updates in parts(tensor, str(path), offset):
            factors = [prepare(part, update, cache) for update in updates]
            rows = part["step"] if any("indices" in update for update in updates) else max(1, PIECE // max(1, part["columns"]))
            for begin in range(0, part["height"], rows):
                end = min(begin + rows, part["height"])
                same = kept_bytes(part, factors, begin, end)
                if same is None:
                    yield functools.partial(write_rows, part, factors, begin, end)
                elif run and (run[0], run[1] + run[3], run[2] + run[3]) == same[:3] and run[3] + same[3] <= RUN:
                    run = (*run[:3], run[3] + same[3])
                else:
                    yield from copies(run, path)
                    run = same
        yield from tell(math.prod(tensor["shape"]))
    yield from copies(run, path)


def copies(run: Any, path: Path) -> Iterator[Callable[[], Any]]:
    """The copy of a run of bytes, where there is one."""
    if run and run[3]:
        yield functools.partial(copy, *run[:2], str(path), *run[2:])


def merge(plan: dict[str, Any], dest: Path, threads: int) -> dict[str, int]:
    """Carry out a plan; what it has written and changed."""
    counts, tensors, done = numpy.zeros(2, int), [tensor for file in plan["files"] for tensor in file["tensors"]], 0
    total = max(1, sum(math.prod(tensor["shape"]) for tensor in tensors))

    def tell(size: int) -> Iterator[Callable[[], Any]]:
        nonlocal done
        before, done = done, done + size
        if 100 * before // total < 100 * done // total:
            yield functools.partial(print, f"{100 * done // total}%|", flush=True)

    pending: collections.deque[Any] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        for file in plan["files"]:
            for task in tasks(file, dest / file["path"], tell):
                pending.append(pool.submit(task))
                if len(pending) > 2 * threads:
                    counts += pending.popleft().result() or 0
        for future in pending:
            counts += future.result() or 0
    return {"tensors": len(tensors), "updated": int(counts[0]), "changed": int(counts[1])}


def main(asked: Path, answer: Path) -> None:
    question = json.loads(asked.read_text(encoding="utf-8"))
    try:
        counts = merge(question, Path(question["dest"]), os.cpu_count() or 1)
    except (Failed, OSError, MemoryError) as error:
        sys.exit(f"merge_weights: {error}")
    answer.write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
