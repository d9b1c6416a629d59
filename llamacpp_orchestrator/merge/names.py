"""The tensors of a base by the names that an adapter has for them: libraries add and drop parts that say nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted

# Parts that a wrapper of the model adds: transformers' base_model_prefix, and those of models that see or hear as well.
SILENT = frozenset(
    ("model", "language_model", "vision_model", "transformer", "gpt_neox", "backbone", "bert", "roberta", "distilbert")
)
# What transformers 5 renames in its classes for models with experts, and writes back when it saves (conversion_mapping.py).
MIXTRAL = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}

Index = Mapping[tuple[str, ...], tuple[str, ...]]


def key(name: str) -> tuple[str, ...]:
    """What is left of a tensor's name without silent parts, in the words of transformers 5."""
    parts = ["mlp" if part == "block_sparse_moe" else part for part in name.split(".") if part not in SILENT]
    inside = re.search(r"\.experts\.\d+\.(w[123])\.", name)
    return tuple(MIXTRAL.get(part, part) if inside else part for part in parts)


def index(names: Iterable[str]) -> Index:
    """The names of a base's tensors by what is left of them."""
    result: dict[tuple[str, ...], tuple[str, ...]] = {}
    for name in names:
        result[key(name)] = (*result.get(key(name), ()), name)
    return result


def find(index: Index, name: str) -> str:
    """The base's own name of a tensor that an adapter names, "" for none; OrchestrateError where it may be one of several."""
    names = index.get(key(name), ())
    if name in names:
        return name
    if len(names) > 1:
        message = f"{quoted(name)} may be {quoted(names[0])} or {quoted(names[1])} of the base"
        raise OrchestrateError(
            message, "rename the adapter's tensors to those of the base (load both with PEFT, and save the adapter)"
        )
    return names[0] if names else ""
