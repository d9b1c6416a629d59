"""What one adapter adds to which tensor, and adapters of other bases, by headers of zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import base_files
from llamacpp_orchestrator.merge import updates
from llamacpp_orchestrator.merge.records import Update
from llamacpp_orchestrator.merge.updates import Changes
from tests.support.merging import MODEL
from tests.support.merging import TIED
from tests.support.merging import UP
from tests.support.merging import Q
from tests.support.merging import low_rank
from tests.support.merging import make_adapter
from tests.support.merging import make_base

EXPERTS = "model.layers.0.mlp.experts"
EMBEDDING = {"model.embed_tokens.lora_embedding_A": (2, 16), "model.embed_tokens.lora_embedding_B": (8, 2)}


def of(folder: Path, shapes: dict[str, Any], base: dict[str, Any] | None = None, keys: Any = None, **config: Any) -> Changes:
    """The changes of an adapter of zeros; `keys` are those of the base's config."""
    source = base_files.read(make_base(folder / "base", base or MODEL, **(keys or {})), "base")
    return updates.of(adapter_parts.read(make_adapter(folder / "mine", shapes, **config)), source, None)


def short(update: Update) -> tuple[Any, ...]:
    return (update.kind, round(update.scale, 3), update.transposed, update.at)


@pytest.mark.parametrize(
    ("shapes", "config", "changes"),
    [
        (low_rank(Q, 8, 8), {}, {f"{Q}.weight": [("lora", 3.0, False, None)]}),
        (low_rank(Q, 8, 8), {"use_rslora": True}, {f"{Q}.weight": [("lora", 4.243, False, None)]}),
        (
            low_rank(UP, 12, 8, 4) | low_rank(Q, 8, 8),
            {"rank_pattern": {"up_proj": 4}, "alpha_pattern": {"q_proj": 1}},
            {f"{UP}.weight": [("lora", 1.5, False, None)], f"{Q}.weight": [("lora", 0.5, False, None)]},
        ),
        # A square matrix is that of a Conv1D where the adapter's config says so, any other where its shape does.
        (low_rank(Q, 8, 8), {"fan_in_fan_out": True}, {f"{Q}.weight": [("lora", 3.0, True, None)]}),
        (low_rank(UP, 8, 12), {}, {f"{UP}.weight": [("lora", 3.0, True, None)]}),
        (
            low_rank(Q, 8, 8) | {f"{Q}.lora_magnitude_vector.weight": (1, 8), f"{Q}.lora_B.bias": (8,)},
            {"use_dora": True},
            {f"{Q}.weight": [("dora", 3.0, False, None)], f"{Q}.bias": [("vector", 3.0, False, None)]},
        ),
        (EMBEDDING, {}, {"model.embed_tokens.weight": [("lora", 3.0, True, None)]}),
        (
            EMBEDDING | {"model.embed_tokens.base_layer.weight": (16, 8)},
            {},
            {"model.embed_tokens.weight": [("tensor", 1.0, False, None), ("lora", 3.0, True, None)]},
        ),
        ({"norm.weight": (8,)}, {}, {"model.norm.weight": [("tensor", 1.0, False, None)]}),
        (
            {"lm_head.token_adapter.trainable_tokens_delta": (2, 8)},
            {"trainable_token_indices": {"lm_head": [3, 1]}},
            {"lm_head.weight": [("tensor", 1.0, False, None)]},
        ),
    ],
)
def test_each_part_changes_its_tensor(shapes: Any, config: dict[str, Any], changes: Any, tmp_path: Path) -> None:
    found = of(tmp_path, shapes, **config)
    assert {name: [short(update) for update in given] for name, given in found.items()} == changes


def test_an_adapter_that_took_its_start_out_of_the_base_is_what_has_changed_since(tmp_path: Path) -> None:
    base = base_files.read(make_base(tmp_path / "base"), "base")
    mine, first = (adapter_parts.read(make_adapter(tmp_path / name, low_rank(Q, 8, 8), 0.5)) for name in ("mine", "mine/first"))
    given = updates.of(mine, base, first)[f"{Q}.weight"]
    assert [(update.scale, update.weight) for update in given] == [(3.0, 0.5), (-3.0, 0.5)]
    assert [Path(update.a.file).parent.name for update in given if update.a] == ["mine", "first"]


def test_square_matrices_of_families_that_hold_them_transposed(tmp_path: Path) -> None:
    base = {"h.0.attn.c_proj.weight": (8, 8), "h.0.other.weight": (8, 8)}
    shapes = low_rank("transformer.h.0.attn.c_proj", 8, 8) | low_rank("transformer.h.0.other", 8, 8)
    found = of(tmp_path, shapes, base, {"model_type": "gpt2"})
    assert {name: given[0].transposed for name, given in found.items()} == {
        "h.0.attn.c_proj.weight": True,
        "h.0.other.weight": False,
    }


def test_an_embedding_of_as_many_tokens_as_numbers_is_still_one(tmp_path: Path) -> None:
    shapes = {"model.embed_tokens.lora_embedding_A": (2, 8), "model.embed_tokens.lora_embedding_B": (8, 2)}
    (update,) = of(tmp_path, shapes, {**MODEL, "model.embed_tokens.weight": (8, 8)})["model.embed_tokens.weight"]
    assert update.transposed


def test_experts_of_a_file_get_their_rows_of_what_is_stacked_in_memory(tmp_path: Path) -> None:
    base = {
        f"model.layers.0.block_sparse_moe.experts.{number}.{name}.weight": shape
        for number in (0, 1, 2)
        for name, shape in (("w1", (12, 8)), ("w2", (8, 12)), ("w3", (12, 8)))
    }
    stack = low_rank(f"{EXPERTS}.base_layer", 24, 8, 12) | low_rank(EXPERTS, 8, 12, 6)
    found = of(
        tmp_path,
        stack,
        base,
        target_parameters=["mlp.experts.gate_up_proj", "down_proj", "gate.weight"],
        rank_pattern={"gate_up_proj": 4},
    )
    assert len(found) == 9
    (update,) = found["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    assert update.a and update.b and update.scale == 1.5
    assert (update.a.rows, update.b.rows, update.b.columns) == ((4, 8, 1), (12, 24, 1), (1, 12, 3))
    (update,) = found["model.layers.0.block_sparse_moe.experts.2.w2.weight"]
    assert update.a and update.b and update.scale == 3
    assert (update.a.rows, update.b.rows, update.b.columns) == ((4, 6, 1), None, (2, 6, 3))


@pytest.mark.parametrize(
    ("shape", "model_type", "transposed"),
    [((3, 24, 8), "llama4_text", False), ((3, 8, 24), "gpt_oss", True), ((3, 8, 8), "gpt_oss", True), ((3, 8, 8), "x", False)],
)
def test_stacks_of_a_file_are_changed_matrix_by_matrix(shape: Any, model_type: str, transposed: bool, tmp_path: Path) -> None:
    out = max(shape[1:])
    stack = low_rank(EXPERTS, out, 8, 6)
    keys = {"model_type": model_type}
    found = of(tmp_path, stack, {f"{EXPERTS}.gate_up_proj": shape}, keys, target_parameters=["experts.gate_up_proj"])
    assert [short(update) for update in found[f"{EXPERTS}.gate_up_proj"]] == [("lora", 3.0, transposed, at) for at in range(3)]


def test_a_stack_that_is_the_weight_of_a_module(tmp_path: Path) -> None:
    base = {"model.layers.0.moe.input_linear.weight": (3, 12, 8)}
    found = of(tmp_path, low_rank("model.layers.0.moe.input_linear", 12, 8, 6), base, target_parameters=["input_linear.weight"])
    assert len(found["model.layers.0.moe.input_linear.weight"]) == 3


def test_a_parameter_that_is_one_matrix(tmp_path: Path) -> None:
    base = {f"{EXPERTS}.table": (12, 8), "model.layers.0.mlp.gate.weight": (4, 8)}
    shapes = low_rank(EXPERTS, 12, 8) | low_rank("model.layers.0.mlp.gate", 4, 8)
    found = of(tmp_path, shapes, base, target_parameters=["experts.table", "gate.weight"])
    assert [short(*given) for given in found.values()] == [("lora", 3.0, False, None)] * 2


@pytest.mark.parametrize(
    ("shapes", "config", "said"),
    [
        (
            low_rank("model.layers.7.self_attn.q_proj", 8, 8),
            {},
            r"it changes model\.layers\.7\S+, and the base has no such tensor$",
        ),
        (low_rank(Q, 8, 9), {}, "q_proj give 8 x 9, the base has 8 x 8"),
        (EMBEDDING | {"model.embed_tokens.lora_embedding_A": (2, 17)}, {}, "embed_tokens give 17 x 8, the base has 16 x 8"),
        (low_rank(Q, 8, 8) | {f"{Q}.lora_B.bias": (9,)}, {}, "its bias for .*q_proj is 9"),
        ({"score.weight": (3, 8)}, {}, "changes score.weight, .* new head"),
        ({"logit_scale": (3, 8)}, {}, "changes logit_scale"),
        ({"norm.weight": (9,)}, {}, "norm.weight is 9, in the base 8"),
        ({"lm_head.weight": (16, 9)}, {}, "lm_head.weight is 16 x 9, in the base 16 x 8"),
        (
            {"embed_tokens.token_adapter.trainable_tokens_delta": (1, 9)},
            {"trainable_token_indices": [1]},
            "its tokens are 1 x 9, the base's vocabulary 16 x 8",
        ),
        (low_rank(EXPERTS, 8, 8), {"target_parameters": ["experts.gate_up_proj"]}, "and the base has no such tensor"),
    ],
)
def test_an_adapter_of_another_base_is_refused(shapes: Any, config: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(OrchestrateError, match=f"mine does not fit base: .*{said}") as refused:
        of(tmp_path, shapes, **config)
    assert "names org/base" in refused.value.hint


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (low_rank(EXPERTS, 8, 9, 6), "give 8 x 9, the base has 24 x 8"),
        (low_rank(EXPERTS, 24, 8, 4), "the rank 2, but its"),
        (low_rank(f"{EXPERTS}.base_layer", 24, 8, 6) | low_rank(EXPERTS, 24, 8, 6), "names 1 of .*experts, it holds 2"),
    ],
)
def test_stacks_that_do_not_fit(shapes: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(OrchestrateError, match=said):
        of(tmp_path, shapes, {f"{EXPERTS}.gate_up_proj": (3, 24, 8)}, target_parameters=["experts.gate_up_proj"])


@pytest.mark.parametrize(
    ("out", "inner", "said"),
    [(24, 9, "do not give .*gate_proj.weight, 12 x 8"), (12, 8, "do not give .*up_proj"), (36, 8, "have 36 rows, the base 24")],
)
def test_experts_that_do_not_fit(out: int, inner: int, said: str, tmp_path: Path) -> None:
    base = {f"{EXPERTS}.{number}.{name}.weight": (12, 8) for number in (0, 1) for name in ("gate_proj", "up_proj")}
    with pytest.raises(OrchestrateError, match=said):
        of(tmp_path, low_rank(EXPERTS, out, inner, 4), base, target_parameters=["experts.gate_up_proj"])


@pytest.mark.parametrize(
    ("shapes", "config", "said"),
    [
        (low_rank(Q, 8, 8, 3), {}, "the rank 2, but its lora_A is 3 x 8"),
        (low_rank(Q, 8, 8) | {f"{Q}.lora_magnitude_vector": (9,)}, {}, "has 9 magnitudes for 8"),
        ({"embed_tokens.token_adapter.trainable_tokens_delta": (2, 8)}, {"trainable_token_indices": [1]}, "names 1 tokens"),
        ({"embed_tokens.token_adapter.trainable_tokens_delta": (2, 8)}, {"trainable_token_indices": [1, 1]}, "names 2 tokens"),
        (
            {"embed_tokens.token_adapter.trainable_tokens_delta": (1, 8)},
            {"trainable_token_indices": {"wte": [1]}},
            "names 0 tokens",
        ),
        ({"embed_tokens.token_adapter.trainable_tokens_delta": (1, 8)}, {"trainable_token_indices": [-1]}, "names 1 tokens"),
    ],
)
def test_an_adapter_that_contradicts_itself_is_damaged(shapes: Any, config: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=f"mine is damaged, .*{said}"):
        of(tmp_path, shapes, **config)


def test_a_bias_that_the_base_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OrchestrateError, match="adds a bias to .*up_proj, which has none in base") as refused:
        of(tmp_path, low_rank(UP, 12, 8) | {f"{UP}.lora_B.bias": (12,)}, lora_bias=True)
    assert "without lora_bias" in refused.value.hint


def test_numbers_that_are_quantized_cannot_be_summed(tmp_path: Path) -> None:
    base = base_files.read(make_base(tmp_path / "base", {"model.norm.weight": (8,)}, "I64"), "base")
    with pytest.raises(OrchestrateError, match="model.norm.weight is stored as I64"):
        updates.of(adapter_parts.read(make_adapter(tmp_path / "mine", {"norm.weight": (8,)})), base, None)


@pytest.mark.parametrize(
    ("shapes", "keys", "head", "is_tied"),
    [
        (MODEL, {}, "lm_head.weight", False),
        (TIED, {}, "lm_head.weight", True),
        (TIED, {"architectures": ["LlamaModel"]}, "lm_head.weight", False),
        (TIED, {"architectures": None}, "lm_head.weight", True),
        (TIED, {"architectures": ["BertForMaskedLM"]}, "lm_head.weight", False),
        ({"language_model.model.embed_tokens.weight": (4, 4)}, {}, "language_model.lm_head.weight", True),
        (
            {"model.language_model.embed_tokens.weight": (4, 4)},
            {"architectures": ["XForConditionalGeneration"]},
            "lm_head.weight",
            True,
        ),
        ({"gpt_neox.embed_in.weight": (4, 4), "embed_out.weight": (4, 4)}, {}, "embed_out.weight", False),
        ({"model.norm.weight": (4,)}, {}, "lm_head.weight", False),
    ],
)
def test_the_head_of_a_base(shapes: Any, keys: dict[str, Any], head: str, is_tied: bool, tmp_path: Path) -> None:
    base = base_files.read(make_base(tmp_path / "base", shapes, **keys), "base")
    assert (updates.head_name(base), updates.is_tied(base)) == (head, is_tied)
