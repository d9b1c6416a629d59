"""Names of tensors that differ between libraries, as a table."""

from __future__ import annotations

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import names


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        # A vision-language model, as transformers 4 and 5 name its parts, either way round; and its text model alone.
        ("model.language_model.layers.0.q_proj.weight", "language_model.model.layers.0.q_proj.weight"),
        ("language_model.model.layers.0.q_proj.weight", "model.language_model.layers.0.q_proj.weight"),
        ("model.layers.0.q_proj.weight", "language_model.model.layers.0.q_proj.weight"),
        ("model.vision_tower.encoder.layers.1.fc1.weight", "vision_tower.vision_model.encoder.layers.1.fc1.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"),
        ("model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"),
        ("model.layers.0.mlp.experts.3.up_proj.weight", "model.layers.0.block_sparse_moe.experts.3.w3.weight"),
        ("model.layers.0.mlp.w1.weight", "model.layers.0.mlp.w1.weight"),
    ],
)
def test_a_tensor_is_found_by_what_is_left_of_its_name(name: str, stored: str) -> None:
    index = names.index([stored, "model.layers.7.mlp.up_proj.weight", "visual.layers.0.q_proj.weight"])
    assert names.find(index, name) == stored


def test_a_name_that_may_mean_two_tensors_is_refused_unless_it_is_one_of_them() -> None:
    index = names.index(["model.norm.weight", "language_model.norm.weight"])
    assert names.find(index, "model.norm.weight") == "model.norm.weight"
    assert names.find(index, "norm.bias") == ""
    with pytest.raises(OrchestrateError, match=r"norm\.weight may be model\.norm\.weight or language_model\.norm\.weight"):
        names.find(index, "norm.weight")
