"""Map a source's tensors to a GGUF's, by the tag's own name map; run by the environment's python.

Called as tensor_map.py QUESTION ANSWER. Both are JSON files. Question: {"package", "architecture", "blocks", "source":
{name: [file, start, end, dtype]}, "output": {name: [file, start, end, type]}, "names": those of all tensors of the output,
"expect": folder of the model or ""}. Answer: {"mapped": {source name: output name}, "known": names that the architecture has,
{bid} for the block, "zeros": {output name: [zeros, zeros that the source explains]}, "spare": zeros that the source has besides,
or -1, "expected": {output name: elements} by the model's class in transformers, or null where nobody knows}.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

WINDOW = 4096
CHUNK = 34 * WINDOW << 7  # whole blocks of q8_0, whole windows
# The largest number that becomes zero, by the type that it is written in; q8_0 also divides by 127.
TINY = {0: 1e-45, 1: 2.0**-25, 30: 1e-40, 8: 127 * 2.0**-25}
BLOCKS = {0: ("<u4", 1), 1: ("<u2", 1), 30: ("<u2", 1), 8: (("V", 34), 32)}
SIGN = {"<u4": 0x7FFFFFFF, "<u2": 0x7FFF}


def target(names: Any, name: str) -> str:
    """The name that the tag's converter gives to a tensor; the experts of a block become one tensor."""
    plain = re.sub(r"\.experts\.\d+\.", ".experts.", name.replace("language_model.", ""))
    plain = plain.replace("e_score_correction_bias", "e_score_correction.bias")
    for spelling in (plain, plain.split(".", 1)[-1], f"model.{plain}", f"transformer.{plain}"):
        if match := names.get_name(spelling, (".weight", ".bias")):
            return str(match)
    return ""


def pieces(place: list[Any]) -> Iterator[Any]:
    path, start, end, _ = place
    data = numpy.memmap(path, dtype=numpy.uint8, mode="r")
    for at in range(start, end, CHUNK):
        yield data[at : min(at + CHUNK, end)]


def has_gap(place: list[Any]) -> bool:
    """Tell whether 4 KB in a row are zero, or all of a smaller tensor."""
    for piece in pieces(place):
        whole = len(piece) // WINDOW * WINDOW
        if whole and not piece[:whole].view(numpy.uint64).reshape(-1, WINDOW // 8).any(axis=1).all():
            return True
        if not whole and not piece.any():
            return True
    return False


def zeros_written(place: list[Any]) -> int:
    count = 0
    for piece in pieces(place):
        if place[3] == 8:
            count += 32 * int((~piece.reshape(-1, 34).any(axis=1)).sum())
        else:
            kind = str(BLOCKS[place[3]][0])
            count += len(piece) // int(kind[-1]) - int(numpy.count_nonzero(piece.view(kind) & SIGN[kind]))
    return count


def zeros_due(place: list[Any], written: int) -> int | None:
    """The count of numbers of a source's tensor that become zero when written in a type; None for an unknown kind of numbers."""
    count = 0
    for piece in pieces(place):
        if place[3] == "BF16":
            numbers = (piece.view("<u2").astype(numpy.uint32) << 16).view(numpy.float32)
        elif place[3] in ("F64", "F32", "F16"):
            numbers = piece.view(f"<f{int(place[3][1:]) // 8}")
        else:
            return None
        count += int((numpy.abs(numbers) <= TINY[written]).sum())
    return count


def zeros(question: dict[str, Any], mapped: dict[str, str]) -> dict[str, list[int]]:
    sources: dict[str, list[str]] = {}
    for name, to in mapped.items():
        sources.setdefault(to, []).append(name)
    counts = {}
    for name, place in question["output"].items():
        if place[3] in TINY and place[2] > place[1] and has_gap(place):
            due = [zeros_due(question["source"][part], place[3]) for part in sources.get(name, ())]
            certain = [count for count in due if count is not None]
            counts[name] = [zeros_written(place), sum(certain) if certain and len(certain) == len(due) else -1]
    return counts


def spare(question: dict[str, Any], mapped: dict[str, str], counts: dict[str, list[int]]) -> int:
    """The count of zeros in what the source has for tensors that are not compared one by one; -1 where numbers are packed."""
    unknown = {name for name, (_, due) in counts.items() if due < 0}
    compared = set(question["names"]) - unknown
    count = 0
    for name, place in question["source"].items() if unknown else ():
        if place[3] in ("I64", "BOOL", "F8_E8M0"):  # counters, masks, scales
            continue
        # A converter may give a tensor another name than the map does, so what is all zeros counts in any case.
        if mapped[name] in compared and any(piece.any() for piece in pieces(place)):
            continue
        if place[3] in ("F8_E4M3", "F8_E5M2"):
            count += sum(len(piece) - int(numpy.count_nonzero(piece & 0x7F)) for piece in pieces(place))
            continue
        due = zeros_due(place, 1)
        if due is None:
            return -1
        count += due
    return count


def expected(folder: Path, names: Any) -> dict[str, int] | None:
    """The tensors of the model's class in transformers; nothing is loaded but its config."""
    import torch
    import transformers

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = getattr(transformers, config["architectures"][0])
        with torch.device("meta"):
            model = kind(kind.config_class.from_dict(config))
        shapes = {name: tensor.numel() for name, tensor in model.named_parameters()}
    except Exception as error:
        print(f"transformers cannot tell what this model consists of: {error}", file=sys.stderr)
        return None
    counts: dict[str, int] = {}
    for name, count in shapes.items():
        if to := target(names, name):
            counts[to] = counts.get(to, 0) + count
    return counts


def answer(question: dict[str, Any]) -> dict[str, Any]:
    sys.path.insert(0, question["package"])
    import gguf

    arch = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == question["architecture"]), None)
    if arch is None:
        mapped = dict.fromkeys(question["source"], "")
        counts = zeros(question, mapped)
        return {"mapped": {}, "known": [], "zeros": counts, "spare": spare(question, mapped, counts), "expected": None}
    names = gguf.get_tensor_name_map(arch, question["blocks"])
    mapped = {name: target(names, name) for name in question["source"]}
    if question["expect"]:
        return {"mapped": mapped, "known": [], "zeros": {}, "spare": -1, "expected": expected(Path(question["expect"]), names)}
    # Of a projector b11434 lists kinds that it gives no name.
    patterns = [f"{gguf.TENSOR_NAMES[kind]}.weight" for kind in gguf.MODEL_TENSORS[arch] if kind in gguf.TENSOR_NAMES]
    counts = zeros(question, mapped)
    return {"mapped": mapped, "known": patterns, "zeros": counts, "spare": spare(question, mapped, counts), "expected": None}


if __name__ == "__main__":
    result = answer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
