"""The two ends of a vocabulary: which updates each gets, and sizes that fit or do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import plan
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.merge.records import Plan
from llamacpp_orchestrator.merge.records import Tensor
from tests.support.merging import MODEL
from tests.support.merging import TIED
from tests.support.merging import low_rank
from tests.support.merging import make_adapter
from tests.support.merging import make_base

E, H = "model.embed_tokens", "lm_head"
LOOK_UP = {f"{E}.lora_embedding_A": (2, 16), f"{E}.lora_embedding_B": (8, 2)}
WIDE = {f"{E}.lora_embedding_A": (2, 20), f"{E}.lora_embedding_B": (8, 2)}
TOKENS = "token_adapter.trainable_tokens_delta"


def ends(found: Plan) -> dict[str, Tensor]:
    return {
        tensor.name: tensor for file in found.files for tensor in file.tensors if tensor.name in (f"{E}.weight", f"{H}.weight")
    }


def short(found: Plan) -> dict[str, list[str]]:
    kinds = {name: ["rows" if one.indices else one.kind for one in tensor.updates] for name, tensor in ends(found).items()}
    return {name.removesuffix(".weight"): kinds[name] for name in kinds}


@pytest.mark.parametrize(
    ("shapes", "config", "changes"),
    [
        (LOOK_UP, {}, {E: ["lora"], H: []}),
        (low_rank(H, 16, 8), {}, {E: [], H: ["lora"]}),
        (LOOK_UP | low_rank(H, 16, 8), {"ensure_weight_tying": True}, {E: ["lora"]}),
        ({f"{E}.weight": (16, 8)}, {"modules_to_save": ["embed_tokens"]}, {E: ["tensor"], H: []}),
        ({f"{E}.weight": (16, 8)}, {"modules_to_save": ["model.embed_tokens"], "ensure_weight_tying": True}, {E: ["tensor"]}),
        ({f"{H}.weight": (16, 8)}, {"modules_to_save": ["lm_head"]}, {E: [], H: ["tensor"]}),
        (
            {f"{E}.weight": (16, 8), f"{H}.weight": (16, 8)},
            {"modules_to_save": ["lm_head", "wte"]},
            {E: ["tensor"], H: ["tensor"]},
        ),
        ({f"{E}.{TOKENS}": (1, 8)}, {"trainable_token_indices": [3]}, {E: ["rows"]}),
        ({f"{E}.{TOKENS}": (1, 8), f"{H}.{TOKENS}": (1, 8)}, {"trainable_token_indices": [3]}, {E: ["rows"]}),
        (
            {f"{E}.{TOKENS}": (1, 8), f"{H}.{TOKENS}": (1, 8)},
            {"trainable_token_indices": {"embed_tokens": [3], "lm_head": [4]}},
            {E: ["rows"], H: ["rows"]},
        ),
        ({f"{H}.{TOKENS}": (1, 8)}, {"trainable_token_indices": {"lm_head": [4]}}, {E: [], H: ["rows"]}),
        # Resized: one matrix still, whether it was saved by one name or by both; the base of a matrix of its own for the look-up.
        ({f"{E}.weight": (20, 8), f"{H}.weight": (20, 8)}, {}, {E: ["tensor"]}),
        ({f"{E}.weight": (20, 8)}, {}, {E: ["tensor"]}),
        ({f"{E}.base_layer.weight": (20, 8)} | WIDE, {}, {E: ["tensor", "lora"], H: ["tensor"]}),
        ({f"{E}.{TOKENS}": (2, 8)}, {"trainable_token_indices": [16, 17]}, {E: ["rows"]}),
    ],
)
def test_what_changes_one_end_of_a_tied_vocabulary_parts_them(
    shapes: Any, config: dict[str, Any], changes: Any, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", TIED, tie_word_embeddings=True)
    found = plan.plan(base, "base", [make_adapter(tmp_path / "mine", shapes, **config)])
    assert short(found) == changes
    assert (H in changes) == ('"tie_word_embeddings": false' in found.texts.get("config.json", ""))
    assert (H in changes) == any("ties both ends" in note for note in found.notes)
    rows = {tensor.shape[0] for tensor in ends(found).values()}
    assert rows == {next((shape[0] for shape in shapes.values() if shape[0] > 16), 18 if "[16, 17]" in str(config) else 16)}
    head = ends(found).get(f"{H}.weight")
    assert not head or not head.base or head.base.file == str(base / "model.safetensors")


def test_a_tied_head_that_has_a_tensor_keeps_it_and_config_says_so(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", MODEL, tie_word_embeddings=True, text_config={"tie_word_embeddings": True})
    found = plan.plan(base, "base", [make_adapter(tmp_path / "mine", LOOK_UP)])
    assert short(found) == {E: ["lora"], H: []} and found.texts["config.json"].count('"tie_word_embeddings": false') == 2
    rows = make_adapter(tmp_path / "rows", {f"{E}.{TOKENS}": (1, 8)}, trainable_token_indices=[3])
    assert short(plan.plan(base, "base", [rows])) == {E: ["rows"], H: ["rows"]}


def test_ends_that_every_adapter_moves_together_stay_one(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", TIED)
    one = make_adapter(tmp_path / "one", LOOK_UP | low_rank(H, 16, 8), ensure_weight_tying=True)
    two = make_adapter(tmp_path / "two", {f"{E}.{TOKENS}": (1, 8)}, trainable_token_indices=[3])
    found = plan.plan(base, "base", [one, two])
    assert short(found) == {E: ["lora", "rows"]}
    assert "the adapter one moves both ends of the vocabulary once; PEFT's own merge would do it twice" in found.notes
    three = make_adapter(tmp_path / "three", low_rank(H, 16, 8))
    assert short(plan.plan(base, "base", [one, two, three])) == {E: ["lora", "rows"], H: ["lora", "rows", "lora"]}


def test_embeddings_that_peft_saves_beside_matrices_are_no_modules_of_their_own(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    every = [make_adapter(tmp_path / name, {f"{E}.base_layer.weight": (16, 8)} | LOOK_UP) for name in ("one", "two")]
    found = ends(plan.plan(base, "base", every))[f"{E}.weight"]
    assert found.base and [one.kind for one in found.updates] == ["tensor", "lora"] * 2


def test_an_encoder_with_a_decoder_cannot_have_two_matrices(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", TIED, is_encoder_decoder=True)
    with pytest.raises(OrchestrateError, match="one end of the vocabulary of base"):
        plan.plan(base, "base", [make_adapter(tmp_path / "mine", LOOK_UP)])


BOTH = {f"{E}.weight": (20, 8), f"{H}.weight": (20, 8)}


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ([({f"{E}.weight": (20, 8)}, {})], r"resize one end of the vocabulary of base to 20 tokens; lm_head\.weight has 16"),
        ([({f"{E}.{TOKENS}": (1, 8)}, {"trainable_token_indices": [17]})], "trains tokens that base has not"),
        ([(BOTH, {}), (LOOK_UP, {})], "do not agree on the size of the vocabulary"),
        ([(BOTH, {}), ({f"{E}.weight": (20, 8)}, {"modules_to_save": ["embed_tokens"]})], "both hold a whole"),
        (
            [({f"{E}.base_layer.weight": (20, 8), f"{H}.base_layer.weight": (20, 8)} | WIDE, {})] * 2,
            "two adapters resize the vocabulary of base",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(adapters: Any, said: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    every: list[Adapter] = [
        make_adapter(tmp_path / f"a{number}", shapes, **config) for number, (shapes, config) in enumerate(adapters)
    ]
    with pytest.raises(OrchestrateError, match=said) as refused:
        plan.plan(base, "base", every)
    assert refused.value.hint


def test_a_vocabulary_may_shrink(tmp_path: Path) -> None:
    shapes = {f"{E}.weight": (10, 8), f"{H}.weight": (10, 8)}
    found = plan.plan(make_base(tmp_path / "base"), "base", [make_adapter(tmp_path / "mine", shapes)])
    assert {tensor.shape for tensor in ends(found).values()} == {(10, 8)} and '"vocab_size": 10' in found.texts["config.json"]
