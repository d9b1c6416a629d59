"""What an adapter's file is read as, and the files that hold no whole adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.models.safetensors import data_begin
from tests.support import makers
from tests.support.merging import Q
from tests.support.merging import low_rank
from tests.support.merging import make_adapter
from tests.support.merging import save


def test_parts_are_told_by_their_names(tmp_path: Path) -> None:
    shapes = {
        f"{Q}.lora_A.german.weight": (2, 8),
        f"{Q}.lora_B.german.weight": (8, 2),
        f"{Q}.lora_B.german.bias": (8,),
        f"{Q}.lora_magnitude_vector.german": (8,),
        "mlp.experts.base_layer.lora_A.weight": (4, 8),
        "mlp.experts.base_layer.lora_B.weight": (8, 4),
        "wte.lora_embedding_A": (2, 16),
        "wte.lora_embedding_B": (8, 2),
        "wte.base_layer.weight": (16, 8),
        f"{Q}.base_layer.bias": (8,),
        "score.modules_to_save.default.weight": (3, 8),
        "head.modules_to_save.dense.weight": (3, 8),
        "head.original_module.dense.weight": (3, 8),
        "norm.weight": (8,),
        "lm_head.token_adapter.trainable_tokens_delta": (1, 8),
        "embed_tokens.trainable_tokens_delta.german": (1, 8),
    }
    parts = adapter_parts.read(make_adapter(tmp_path / "mine", shapes))
    assert [(module.name, module.depth, module.is_embedding) for module in parts.modules] == [
        (Q, 0, False),
        ("mlp.experts", 1, False),
        ("wte", 0, True),
    ]
    first = parts.modules[0]
    assert first.magnitude and first.bias and (first.a.shape, first.b.shape) == ((2, 8), (8, 2))
    assert sorted(parts.wholes) == sorted(("wte.weight", f"{Q}.bias", "score.weight", "head.dense.weight", "norm.weight"))
    assert parts.frozen == {parts.wholes["wte.weight"]} and sorted(parts.tokens) == ["embed_tokens", "lm_head"]
    path = tmp_path / "mine" / "adapter_model.safetensors"
    assert first.a.file == str(path) and first.a.offset == data_begin(path)


@pytest.mark.parametrize(
    ("shapes", "dtype", "said"),
    [
        ({}, "F32", "mine holds no tensors of its own"),
        ({"score.original_module.weight": (8, 8)}, "F32", "mine holds no tensors of its own"),
        ({f"{Q}.lora_A.weight": (2, 8)}, "F32", "q_proj has not two matrices"),
        ({f"{Q}.lora_A.weight": (2, 0), f"{Q}.lora_B.weight": (8, 2)}, "F32", "lora_A.weight has no elements"),
        (low_rank(Q, 8, 8) | {f"{Q}.lora_A.german.weight": (2, 8)}, "F32", "two tensors for one part of .*q_proj"),
        (low_rank(Q, 8, 8), "I64", "lora_A.weight is of the type I64"),
    ],
)
def test_what_is_no_whole_adapter_is_refused(shapes: dict[str, Any], dtype: str, said: str, tmp_path: Path) -> None:
    mine = make_adapter(tmp_path / "mine", {})
    save(mine.folder / "adapter_model.safetensors", {f"base_model.model.{name}": shape for name, shape in shapes.items()}, dtype)
    with pytest.raises(OrchestrateError, match=said) as refused:
        adapter_parts.read(mine)
    assert refused.value.hint


def test_a_file_that_is_cut_or_gone_is_told_with_the_adapters_name(tmp_path: Path) -> None:
    mine = make_adapter(tmp_path / "mine", low_rank(Q, 8, 8))
    weights = mine.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="the adapter mine is damaged: adapter_model.safetensors is cut"):
        adapter_parts.read(mine)
    weights.write_bytes(makers.safetensors(b'{"x": {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 60]}}', bytes(60)))
    with pytest.raises(IntegrityError, match="mine is damaged: .* x has not the bytes that its shape needs"):
        adapter_parts.read(mine)
    weights.unlink()
    with pytest.raises(OrchestrateError, match="the adapter mine has no adapter_model.safetensors"):
        adapter_parts.read(mine)
