"""Merge adapters of a kind that no plan knows by PEFT's own code, in float32; run by the reference environment's python.

Called as merge_by_peft.py ASKED ANSWER: files with JSON. ASKED is {"base": folder, "adapters": [{"folder", "weight"}], "dest"}.
The folder `dest` gets the base's weight files with their names, order and dtypes; a tensor that no adapter moves keeps its
bytes, another is W plus the sum of weight · (what PEFT's merge_and_unload makes of it - W), rounded once. Answers as
merge_weights.py does. Takes four bytes of memory for each weight of the base, and as much again for all that is moved where
there are several adapters or a weight is not 1. Ends with 1 and one line on standard error when PEFT cannot merge, or tensors
have no place in the files.
"""

import json
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class Failed(Exception):
    """Why there is no merge, in one line."""


def files(base: Path) -> list[Path]:
    """The weight files of a model, by name."""
    index = base / "model.safetensors.index.json"
    if index.is_file():
        return [base / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
    return [base / "model.safetensors"]


def header(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The first bytes of a safetensors file, up to its tensors, and these by name in the order of their bytes."""
    with path.open("rb") as file:
        size = file.read(8)
        text = file.read(struct.unpack("<Q", size)[0])
    entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
    return size + text, dict(sorted(entries.items(), key=lambda item: item[1]["data_offsets"]))


def stored(path: Path, start: int, entry: dict[str, Any]) -> Any:
    """A tensor of a file, or its bytes where it has no floats that can be added to."""
    begin, end = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(start + begin)
        content = bytearray(file.read(end - begin))
    if len(content) < end - begin:
        raise Failed(f"{path} ends within a tensor")
    if not content or entry["dtype"] not in DTYPES:
        return content
    return torch.frombuffer(content, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])


def merged(base: str, adapter: str) -> dict[str, Any]:
    """All tensors of a model with one adapter, by the names that its files have, in float32."""
    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    kind = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0], transformers.AutoModelForCausalLM)
    model = kind.from_pretrained(base, local_files_only=True, trust_remote_code=False, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter)
    if not hasattr(model, "merge_and_unload"):
        raise Failed(f"what an adapter of the kind {model.active_peft_config.peft_type.value} adds are no weights")
    # PEFT is silent about tensors that it has no module for.
    weights = peft.load_peft_weights(adapter, device="cpu")
    if strangers := peft.set_peft_model_state_dict(model, weights).unexpected_keys:
        raise Failed(f"{strangers[0]} has no module in {base}")
    model = model.merge_and_unload()
    return dict(revert_weight_conversion(model, model.state_dict()))


def moved(question: dict[str, Any]) -> dict[str, Any]:
    """The tensors that some adapter moves, with all updates, in float32."""
    base, adapters = Path(question["base"]), question["adapters"]
    sole = len(adapters) == 1 and adapters[0]["weight"] == 1
    fresh: dict[str, Any] = {}
    for adapter in adapters:
        try:
            tensors = merged(question["base"], adapter["folder"])
        except Exception as error:
            raise Failed(f"PEFT {peft.__version__} cannot merge {adapter['folder']}: {first(error)}") from error
        written = set()
        for path in files(base):
            raw, entries = header(path)
            for name, entry in entries.items():
                w = stored(path, len(raw), entry)
                result = tensors.pop(name, None)
                written.add(None if result is None else result.data_ptr())
                if result is None or isinstance(w, bytearray) or torch.equal(result, w.float()):
                    continue
                if result.shape != w.shape:
                    raise Failed(f"{name} has the shape {list(result.shape)} after PEFT's merge, and {list(w.shape)} in {path}")
                w = w.float()
                fresh[name] = result if sole else fresh.get(name, w) + adapter["weight"] * (result - w)
        # A tied tensor has its place under another name.
        for name, tensor in tensors.items():
            if tensor.data_ptr() not in written:
                raise Failed(f"PEFT's merge has {name}, for which the files of {base} have no place")
    return fresh


def write(source: Path, dest: Path, fresh: dict[str, Any]) -> list[int]:
    """Write a file anew; how many tensors, weights of those that are replaced, and weights whose bits changed."""
    raw, entries = header(source)
    updated = changed = 0
    with dest.open("wb") as file:
        file.write(raw)
        for name, entry in entries.items():
            value = stored(source, len(raw), entry)
            if name in fresh:
                rounded = fresh[name].to(value.dtype).contiguous()
                if not torch.isfinite(rounded).all():
                    raise Failed(f"{name}: a merged weight is infinite, NaN or too large for {entry['dtype']}")
                bits = BITS[value.element_size()]
                updated += value.numel()
                changed += int((rounded.view(bits) != value.view(bits)).sum())
                value = rounded
            file.write(value if isinstance(value, bytearray) else memoryview(value.reshape(-1).view(torch.uint8).numpy()))
    return [len(entries), updated, changed]


def first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main(asked: Path, answer: Path) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    question = json.loads(asked.read_text(encoding="utf-8"))
    dest = Path(question["dest"])
    try:
        with torch.no_grad():
            fresh = moved(question)
            dest.mkdir(parents=True, exist_ok=True)
            counts = [write(path, dest / path.name, fresh) for path in files(Path(question["base"]))]
    except (Failed, OSError, MemoryError) as error:
        sys.exit(f"merge_by_peft: {error}")
    sums = dict(zip(("tensors", "updated", "changed"), map(sum, zip(*counts, strict=True)), strict=True))
    answer.write_text(json.dumps(sums), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
