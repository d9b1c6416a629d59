"""The small files of a merged model: which are copied from where, and which say something else than the base's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.merge import updates
from llamacpp_orchestrator.merge.adapter_parts import Parts
from llamacpp_orchestrator.merge.base_files import Base
from llamacpp_orchestrator.merge.records import File
from llamacpp_orchestrator.models.safetensors import read_json
from llamacpp_orchestrator.models.selection import TOKENIZER
from llamacpp_orchestrator.models.weight_files import INDEX
from llamacpp_orchestrator.models.weight_files import PICKLES
from llamacpp_orchestrator.models.weight_files import matches

Choice = tuple[dict[str, str], dict[str, str], tuple[str, ...]]


def choose(base: Base, every: Sequence[Parts], files: Sequence[File], rows: int | None, is_untied: bool) -> Choice:
    """Texts and copies by name for a plan, and notes on them."""
    copies = beside(base.folder, base.files)
    notes = [UNTIED.format(base=base.name)] if is_untied else []
    owners = [(parts, own) for parts in every if _trains(parts, base) and (own := _tokenizer(parts.adapter.folder))]
    owners.sort(key=lambda owner: not _resizes(owner[0], base))
    if owners:
        copies = {name: origin for name, origin in copies.items() if not matches(name, TOKENIZER)} | owners[0][1]
        notes.append(
            f"tokenizer and chat template are those of the adapter {owners[0][0].adapter.name}, which trains its vocabulary"
        )
        notes += [f"the tokenizer of the adapter {parts.adapter.name} is not used" for parts, _ in owners[1:]]
    elif rows is not None:
        notes.append(f"the vocabulary has {rows} tokens now, and no adapter brings a tokenizer: the base's stays")
    texts = {}
    if (config := _config(base, rows, is_untied)) != read_json(base.folder / "config.json"):
        texts["config.json"] = _text(config)
    if INDEX in copies and (index := _index(base, files)):
        texts[INDEX] = _text(index)
    copies = {name: origin for name, origin in copies.items() if name not in texts}
    return texts, copies, tuple(notes)


UNTIED = (
    "{base} ties both ends of its vocabulary, and an adapter changes one of them: the result has a matrix for each"
    " (tie_word_embeddings: false); PEFT's own merge would change both"
)


def beside(folder: Path, weights: Iterable[str]) -> dict[str, str]:
    """The files of a folder that are no weights of its own, by name with slashes."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = ((path.relative_to(folder).as_posix(), str(path)) for path in paths)
    left_out = set(weights)
    return {
        name: path for name, path in named if name not in left_out and not name.startswith(".") and not matches(name, PICKLES)
    }


def _trains(parts: Parts, base: Base) -> bool:
    """Tell whether an adapter has tokens, or an end of the vocabulary, of its own."""
    names = [updates.tensor_name(parts, base, name) for name in (*parts.wholes, *(f"{name}.weight" for name in parts.tokens))]
    return any(name in (updates.embedding_name(base), updates.head_name(base)) for name in names)


def _resizes(parts: Parts, base: Base) -> bool:
    return any(
        whole.shape != updates.shape_of(base, updates.tensor_name(parts, base, name)) for name, whole in parts.wholes.items()
    )


def _tokenizer(folder: Path) -> dict[str, str]:
    """The tokenizer's files of an adapter, {} without one: a template alone is none."""
    files = {name: path for name, path in beside(folder, ()).items() if matches(name, TOKENIZER)}
    return files if any(name in files for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")) else {}


def _config(base: Base, rows: int | None, is_untied: bool) -> dict[str, Any]:
    """The base's config with the number of tokens, and whether one matrix serves both ends, as they are after the merge."""
    size = {"vocab_size": rows} if rows is not None else {}
    ties = {"tie_word_embeddings": False} if is_untied else {}
    inner = base.config.get("text_config")
    if not isinstance(inner, dict):
        return base.config | ties | size
    # Which of the two a class reads differs between libraries; what neither says, the nested one has by default.
    is_outer = "vocab_size" in base.config
    inner = inner | ties | (size if "vocab_size" in inner or not is_outer else {})
    return base.config | ties | (size if is_outer else {}) | {"text_config": inner}


def _index(base: Base, files: Sequence[File]) -> dict[str, Any]:
    """The index of the weights, {} where that of the base says the same."""
    index = read_json(base.folder / INDEX)
    tensors = [(file.path, tensor) for file in files for tensor in file.tensors]
    places = {tensor.name: path for path, tensor in tensors}
    shapes = {tensor.name: tensor.shape for _, tensor in tensors}
    named = index.get("weight_map")
    if (
        isinstance(named, dict)
        and named.keys() == shapes.keys()
        and shapes == {name: one.shape for name, one in base.tensors.items()}
    ):
        return {}
    size = sum(math.prod(tensor.shape) * _width(tensor.dtype) for _, tensor in tensors)
    metadata = index.get("metadata")
    return index | {"metadata": (metadata if isinstance(metadata, dict) else {}) | {"total_size": size}, "weight_map": places}


def _width(dtype: str) -> int:
    """The bytes of a number by the name of its type: F32, BF16, F8_E4M3, BOOL."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
