"""Merges: an adapter's config and tensors, and the config and index of the base that it is to be merged into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.merge import check
from llamacpp_orchestrator.merge import plan
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.models.weight_files import INDEX
from tests.fuzz.common import altered
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_bytes
from tests.fuzz.common import json_text
from tests.fuzz.common import reading
from tests.support import makers
from tests.support.merging import CONFIG
from tests.support.merging import LORA
from tests.support.merging import TIED
from tests.support.merging import Q
from tests.support.merging import make_base

EXPERTS = "model.layers.0.mlp.experts"
BASE = {**TIED, f"{EXPERTS}.gate_up_proj": (3, 4, 8), f"{EXPERTS}.down_proj": (3, 8, 2)}
MODEL = {**CONFIG, "tie_word_embeddings": True, "text_config": {"vocab_size": 16, "layer_types": ["a", "b"]}}
INDEXED = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(BASE, "model.safetensors")}
SHAPES = {
    f"{Q}.lora_A.weight": (2, 8),
    f"{Q}.lora_B.weight": (8, 2),
    f"{Q}.lora_B.bias": (8,),
    f"{Q}.lora_magnitude_vector": (8,),
    "model.embed_tokens.lora_embedding_A": (2, 16),
    "model.embed_tokens.lora_embedding_B": (8, 2),
    "lm_head.token_adapter.trainable_tokens_delta": (1, 8),
    "model.norm.weight": (8,),
    f"{EXPERTS}.base_layer.lora_A.weight": (6, 8),
    f"{EXPERTS}.base_layer.lora_B.weight": (4, 6),
    f"{EXPERTS}.lora_A.weight": (6, 2),
    f"{EXPERTS}.lora_B.weight": (8, 6),
}
KEYS = {
    **LORA,
    "use_dora": True,
    "lora_bias": True,
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    "trainable_token_indices": {"lm_head": [3]},
    "modules_to_save": ["norm"],
    "rank_pattern": {"k_proj": 4},
}
OTHERS = ({**LORA, "layer_replication": [[0, 2], [1, 2]]}, {**LORA, "init_lora_weights": "pissa"}, {"peft_type": "LOHA"})


def header(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    begin = 0
    for name, shape in shapes.items():
        end = begin + 4 * (shape[0] * (shape[1] if shape[1:] else 1))
        entries[f"base_model.model.{name}"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    return entries


TENSORS = header(SHAPES)
SIZE = max(entry["data_offsets"][1] for entry in TENSORS.values())


def answers(ask: Callable[[Path, str, list[Adapter]], Any], said: tuple[bytes, Any, bytes, bytes]) -> Any:
    config, tensors, model, index = said
    with folder() as here:
        mine = here / "mine"
        mine.mkdir()
        (mine / "adapter_config.json").write_bytes(config)
        (mine / "adapter_model.safetensors").write_bytes(makers.safetensors(json_bytes(tensors), bytes(SIZE)))
        base = make_base(here / "base", BASE)
        (base / "config.json").write_bytes(model)
        (base / INDEX).write_bytes(index)
        return reading(lambda: ask(base, "org/base", [Adapter(name="mine", folder=mine)]))


inputs = st.tuples(json_text(KEYS, *OTHERS), altered(TENSORS), json_text(MODEL), json_text(INDEXED))


@fuzzed(inputs)
def test_plans_of_merges(said: tuple[bytes, Any, bytes, bytes]) -> None:
    found = answers(plan.plan, said)
    assert found is None or bool(found.files) != bool(found.by_peft)


@fuzzed(inputs)
def test_merges_by_small_files(said: tuple[bytes, Any, bytes, bytes]) -> None:
    found = answers(check.check, said)
    assert found is None or all(len(note) < 1000 for note in found)


def test_what_is_altered_is_valid_to_begin_with() -> None:
    whole = json_bytes(KEYS), TENSORS, json_bytes(MODEL), json_bytes(INDEXED)
    assert answers(plan.plan, whole).files and answers(check.check, whole) == ()
