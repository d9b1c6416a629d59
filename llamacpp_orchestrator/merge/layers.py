"""Layers that an adapter repeats: the base as it is with them, so that all else takes it for one that was saved so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import names
from llamacpp_orchestrator.merge.adapter_parts import Parts
from llamacpp_orchestrator.merge.base_files import Base
from llamacpp_orchestrator.merge.records import Stored
from llamacpp_orchestrator.models import adapter_scaling

LISTS = ("layers", "h", "layer")  # where PEFT looks for them (tuners_utils.py, replicate_layers)
# What a config says of each layer in turn.
BY_LAYER = (
    "layer_types", "layers_block_type", "no_rope_layers", "intermediate_size", "num_key_value_heads", "num_attention_heads",
)  # fmt: skip


def replicate(base: Base, every: Sequence[Parts]) -> Base:
    """The base with layers in the order of an adapter's `layer_replication`; as it is for adapters without one."""
    if not any(parts.config.get("layer_replication") for parts in every):
        return base
    if len(every) > 1:
        message = "an adapter with layer_replication builds a base of its own, with more layers"
        raise OrchestrateError(message, "merge it alone; others fit the result only if they were trained on it")
    order = _order(every[0], base)
    files = {}
    for path, file in base.files.items():
        tensors: dict[str, Stored] = {}
        for name, tensor in file.tensors.items():
            tensors |= dict.fromkeys(_names(name, order), tensor)
        files[path] = msgspec.structs.replace(file, tensors=tensors)
    whole = {name: tensor for file in files.values() for name, tensor in file.tensors.items()}
    config = _config(base.config, order)
    return msgspec.structs.replace(base, files=files, tensors=whole, index=names.index(whole), config=config)


def _order(parts: Parts, base: Base) -> list[int]:
    """The base's layer for each of the result; IntegrityError for a map that is none."""
    count = base.text.get("num_hidden_layers")
    try:
        ends = msgspec.convert(parts.config["layer_replication"], list[tuple[int, int]])
    except msgspec.ValidationError as error:
        raise adapter_scaling.damaged(
            parts.adapter.name, f"layer_replication is no list of first and last layers: {error}"
        ) from error
    if not isinstance(count, int) or any(not 0 <= start < end <= count for start, end in ends):
        raise adapter_scaling.damaged(
            parts.adapter.name, f"layer_replication names layers that {base.name}, with {count}, has not"
        )
    return [layer for start, end in ends for layer in range(start, end)]


def _names(name: str, order: Sequence[int]) -> list[str]:
    """The names that a tensor has in the result: one for each time that its layer is in it."""
    parts = name.split(".")
    place = next((at for at, part in enumerate(parts[:-1]) if part in LISTS and parts[at + 1].isdigit()), None)
    if place is None or not {*parts[:place]} <= names.SILENT | {"encoder"}:
        return [name]
    numbers = [number for number, layer in enumerate(order) if layer == int(parts[place + 1])]
    return [".".join((*parts[: place + 1], str(number), *parts[place + 2 :])) for number in numbers]


def _config(config: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """A config whose number of layers, and whatever it lists for each of them, is that of the result."""
    result, count = dict(config), config.get("num_hidden_layers")
    if count is not None:
        result["num_hidden_layers"] = len(order)
    for key in BY_LAYER:
        if isinstance(values := config.get(key), list) and len(values) == count:
            result[key] = [values[layer] for layer in order]
    if isinstance(inner := config.get("text_config"), dict):
        result["text_config"] = _config(inner, order)
    return result
