"""Layers that an adapter repeats: names, numbers of layers, and what a config lists for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import plan
from tests.support.merging import MODEL
from tests.support.merging import low_rank
from tests.support.merging import make_adapter
from tests.support.merging import make_base

MAP = [[0, 2], [1, 2]]
LAST = "model.layers.2.self_attn.q_proj"


def test_repeated_layers_are_tensors_of_their_own(tmp_path: Path) -> None:
    towers = {"vision_tower.layers.0.fc1.weight": (8, 8), "model.encoder.layer.1.fc.weight": (8, 8)}
    text = {"num_hidden_layers": 2, "layer_types": ["full", "sliding"], "no_rope_layers": [1, 2, 3]}
    base = make_base(tmp_path / "base", MODEL | towers, text_config=text, layer_types=["full", "sliding"])
    found = plan.plan(base, "base", [make_adapter(tmp_path / "mine", low_rank(LAST, 8, 8), layer_replication=MAP)])
    tensors = {tensor.name: tensor for file in found.files for tensor in file.tensors}
    assert len(tensors) == len(MODEL) + 4 + 3 and "vision_tower.layers.0.fc1.weight" in tensors
    assert tensors[f"{LAST}.weight"].updates and not tensors["model.layers.1.self_attn.q_proj.weight"].updates
    assert tensors[f"{LAST}.weight"].base == tensors["model.layers.1.self_attn.q_proj.weight"].base
    assert found.notes == ("each layer that the adapter mine repeats has its own update; PEFT's own merge would add all to each",)
    config = json.loads(found.texts["config.json"])
    assert config["num_hidden_layers"] == 3 and config["layer_types"] == ["full", "sliding", "sliding"]
    assert config["text_config"] == text | {"num_hidden_layers": 3, "layer_types": ["full", "sliding", "sliding"]}
    (base / "config.json").write_text(json.dumps({"text_config": text}))
    found = plan.plan(base, "base", [make_adapter(tmp_path / "mine", low_rank(LAST, 8, 8), layer_replication=MAP)])
    assert json.loads(found.texts["config.json"]) == {"text_config": config["text_config"]}


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ([[0, 3]], IntegrityError, "names layers that base, with 2, has not"),
        ([[1, 1]], IntegrityError, "names layers that base"),
        ([[0, 2, 3]], IntegrityError, "no list of first and last layers"),
        (7, IntegrityError, "no list of first and last layers"),
    ],
)
def test_a_map_that_is_none(given: Any, kind: type[OrchestrateError], said: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with pytest.raises(kind, match=said):
        plan.plan(base, "base", [make_adapter(tmp_path / "mine", low_rank(LAST, 8, 8), layer_replication=given)])


def test_a_base_of_more_layers_is_for_one_adapter(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    every = [
        make_adapter(tmp_path / "one", low_rank(LAST, 8, 8), layer_replication=MAP),
        make_adapter(tmp_path / "two", {"norm.weight": (8,)}),
    ]
    with pytest.raises(OrchestrateError, match="builds a base of its own") as refused:
        plan.plan(base, "base", every)
    assert "alone" in refused.value.hint
