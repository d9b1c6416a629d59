"""The table of types against upstream's own."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.job import tensor_types
from llamacpp_orchestrator.job.tensor_types import FILE_TYPES
from llamacpp_orchestrator.job.tensor_types import TENSOR_TYPES


@pytest.mark.parametrize("tag", ["b9760", "b11434"])
def test_it_is_upstreams(tag: str, tree: Callable[[str], Path]) -> None:
    constants = runpy.run_path(str(tree(tag) / "gguf-py" / "gguf" / "constants.py"))
    theirs = {int(kind): (kind.name.lower(), *sizes) for kind, sizes in constants["GGML_QUANT_SIZES"].items()}
    ours = {row.number: (row.name, row.elements, row.size) for row in TENSOR_TYPES.values()}
    theirs.pop(9)  # stands in no file, and was larger at first
    assert theirs.items() <= ours.items()
    assert tag != "b11434" or theirs.keys() | {9} == ours.keys()


def test_the_names_and_numbers_of_files_are_upstreams(tree: Callable[[str], Path]) -> None:
    constants = runpy.run_path(str(tree("b11434") / "gguf-py" / "gguf" / "constants.py"))
    numbers = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): int(kind) for kind in constants["LlamaFileType"]}
    assert FILE_TYPES.keys() - {"COPY", "Q3_K", "Q4_K", "Q5_K"} <= numbers.keys()  # those are other names of the tool
    assert all(numbers[name] == row.matrix for name, row in FILE_TYPES.items() if row.matrix)


@pytest.mark.parametrize(
    ("name", "bits", "matrix", "everywhere"),
    [("q8_0", 8.5, False, True), ("Q2_K_S", 3.4, True, True), ("24", 16.0, True, False), ("Q1_0", 1.5, False, False)],
)
def test_a_type(name: str, bits: float, matrix: bool, everywhere: bool) -> None:
    assert tensor_types.bits(name) == bits
    assert (tensor_types.needs_matrix(name), tensor_types.is_in_every_tag(name)) == (matrix, everywhere)
