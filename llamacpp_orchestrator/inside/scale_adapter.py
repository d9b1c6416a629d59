"""A copy of an adapter whose B matrices carry what one alpha cannot say; run by the environment's python.

Called as scale_adapter.py FROM TO. TO holds factors.json: by what to multiply each tensor that it names. The products are
float32; all else stays byte for byte.
"""

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def scaled(raw: bytes, dtype: str, factor: float) -> bytes:
    if dtype == "BF16":
        values = (numpy.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = numpy.frombuffer(raw, f"<f{SIZES[dtype]}").astype("<f4")
    return (values * numpy.float32(factor)).astype("<f4").tobytes()


def rescale(source: Path, dest: Path, factors: dict[str, float]) -> None:
    with source.open("rb") as old, dest.open("wb") as new:
        length = struct.unpack("<Q", old.read(8))[0]
        header: dict[str, Any] = json.loads(old.read(length))
        metadata = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
        # Wide types first, so that every tensor stays aligned; the order is otherwise kept.
        sizes = {name: 4 if name in factors else SIZES.get(header[name]["dtype"], 1) for name in header}
        order = sorted(header, key=lambda name: (-sizes[name], header[name]["data_offsets"][0]))
        fresh, at = dict(metadata), 0
        for name in order:
            start, end = header[name]["data_offsets"]
            size = (end - start) * 4 // SIZES[header[name]["dtype"]] if name in factors else end - start
            fresh[name] = {**header[name], "data_offsets": [at, at + size]} | ({"dtype": "F32"} if name in factors else {})
            at += size
        text = json.dumps(fresh, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        new.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            start, end = header[name]["data_offsets"]
            old.seek(8 + length + start)
            raw = old.read(end - start)
            new.write(scaled(raw, header[name]["dtype"], factors[name]) if name in factors else raw)


def main(origin: Path, dest: Path) -> None:
    factors = json.loads((dest.parent / "factors.json").read_text(encoding="utf-8"))
    dest.mkdir()
    for path in sorted(origin.iterdir()):
        if path.name not in (WEIGHTS, CONFIG):
            shutil.copyfile(path, dest / path.name)
    config = json.loads((origin / CONFIG).read_text(encoding="utf-8"))
    config |= {"use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}
    (dest / CONFIG).write_bytes(json.dumps(config, indent=2, sort_keys=True).encode())
    rescale(origin / WEIGHTS, dest / WEIGHTS, factors)


main(Path(sys.argv[1]), Path(sys.argv[2]))
