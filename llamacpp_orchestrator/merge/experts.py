"""Experts that a library stacks into one parameter: which part of an adapter's matrices is whose, and where a file holds them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llamacpp_orchestrator.merge import names
from llamacpp_orchestrator.merge.adapter_parts import Module
from llamacpp_orchestrator.merge.names import Index
from llamacpp_orchestrator.merge.records import Stored

# The order in which transformers' classes make these parameters, which is the order of PEFT's wrappers, from the inside.
ORDER = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias")
# What transformers 5 concatenates by rows when it stacks the experts of a file.
HALVES = {"gate_up_proj": ("gate_proj", "up_proj")}
# Families whose stacks hold matrices as (in, out): use_experts_implementation(is_transposed=True) in transformers 5.23.
TRANSPOSED = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")


def targets(index: Index, module: str, parameters: Sequence[str]) -> tuple[str, ...]:
    """The parameters of a module that an adapter trains by their own names, in the order of PEFT's wrappers from the inside."""
    ends = {name.rpartition(".")[2] for name in parameters if _is_of(module, name.rpartition(".")[0])}
    own = [name for name in ends if names.find(index, f"{module}.{name}") or pieces(index, module, name)]
    return tuple(sorted(own, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)))


def _is_of(module: str, end: str) -> bool:
    return not end or f".{module}".endswith(f".{end}")


def pieces(index: Index, module: str, leaf: str) -> tuple[tuple[str, ...], ...]:
    """The tensors of a file that are stacked in memory: a row for each expert, its parts from the top down; () for none."""
    rows: list[tuple[str, ...]] = []
    while True:
        row = tuple(names.find(index, f"{module}.{len(rows)}.{part}.weight") for part in HALVES.get(leaf, (leaf,)))
        if not all(row):
            return tuple(rows)
        rows.append(row)


def matrices(module: Module, number: int, count: int, rows: tuple[int, int]) -> tuple[Stored, Stored]:
    """The matrices a and b of one expert of a stack: PEFT keeps ranks by expert in a, and experts by rank in b."""
    rank = module.a.shape[0] // count
    a = msgspec.structs.replace(module.a, rows=(number * rank, (number + 1) * rank, 1))
    columns = (number, module.b.shape[1], count)
    part = None if rows == (0, module.b.shape[0]) else (*rows, 1)
    return a, msgspec.structs.replace(module.b, rows=part, columns=columns)


def is_transposed(model_type: str) -> bool:
    """Tell whether a family's stacks hold square matrices as (in, out); of others the shapes tell."""
    return model_type in TRANSPOSED
