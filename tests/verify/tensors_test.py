"""What the tensors of an output must be, told from names and counts alone: tables of sound and of spoiled ones."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import tensors
from llamacpp_orchestrator.verify.tensors import Sides
from llamacpp_orchestrator.verify.tensors import Uncertain

Shape = tuple[int, ...]
KINDS: dict[str, tuple[str, Shape]] = {
    "attn_q.weight": ("self_attn.q_proj.weight", (8, 8)),
    "attn_v.weight": ("self_attn.v_proj.weight", (8, 4)),
    "ffn_up.weight": ("mlp.up_proj.weight", (8, 16)),
}
OUTSIDE = {
    "token_embd.weight": ("model.embed_tokens.weight", (8, 100)),
    "output_norm.weight": ("model.norm.weight", (8,)),
    "output.weight": ("lm_head.weight", (8, 100)),
}


def model(blocks: int = 3) -> Sides:
    """A sound pair; shapes of a source are those of the output, the other way round."""
    pairs = dict(OUTSIDE)
    for number in range(blocks):
        pairs |= {f"blk.{number}.{kind}": (f"model.layers.{number}.{name}", shape) for kind, (name, shape) in KINDS.items()}
    return Sides(
        source={name: shape[::-1] for name, shape in pairs.values()},
        output={to: shape for to, (_, shape) in pairs.items()},
        mapped={name: to for to, (name, _) in pairs.items()},
        names=tuple(OUTSIDE),
        blocks=blocks,
    )


def changed(
    sides: Sides,
    *,
    without: str = "",
    source: dict[str, Shape] | None = None,
    output: dict[str, Shape] | None = None,
    **more: Any,
) -> Sides:
    """A pair without what begins so on either side, and with other tensors."""
    sources = {name: shape for name, shape in sides.source.items() if not (without and name.startswith(without))}
    outputs = {name: shape for name, shape in sides.output.items() if not (without and name.startswith(without))}
    return msgspec.structs.replace(sides, source=sources | (source or {}), output=outputs | (output or {}), **more)


SOUND = {
    "as it is": model(),
    "one block": model(1),
    "what nobody reads": changed(
        model(),
        source={
            "model.layers.0.self_attn.rotary_emb.inv_freq": (4,),
            "h.0.attn.bias": (1, 1, 16, 16),
            "embeddings.position_ids": (1, 512),
            "pooler.dense.weight": (8, 8),
        },
        mapped=model().mapped | {"model.layers.0.self_attn.rotary_emb.inv_freq": "blk.0.attn_rot_embd"},
    ),
    "a head that is tied": changed(model(), without="output.weight"),
    "numbers that upstream adds": changed(model(), output={"rope_freqs.weight": (4,)}),
    "one for all": changed(
        model(1),
        without="blk.0.ffn_up",
        source={f"model.layers.0.mlp.experts.{number}.up_proj.weight": (16, 8) for number in range(2)},
        output={"blk.0.ffn_up_exps.weight": (8, 16, 3)},
        mapped=model(1).mapped
        | {f"model.layers.0.mlp.experts.{number}.up_proj.weight": "blk.0.ffn_up_exps.weight" for number in range(2)}
        | {"model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up_exps.weight"},
    ),
    "one that becomes two, in every block": changed(
        model(),
        without="blk.",
        output={f"blk.{n}.{kind}.weight": (8, 14) for n in range(3) for kind in ("a", "b")},
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_pairs_are_left_alone(name: str) -> None:
    assert tensors.account(SOUND[name]) == Findings()


def test_a_single_bias_is_not_a_mask() -> None:
    assert tensors.is_dropped("h.0.attn.bias", (1, 1, 8, 8)) and not tensors.is_dropped("h.0.attn.bias", (8,))
    assert not tensors.is_dropped("model.layers.0.mlp.up_proj.weight", (8, 8))


@pytest.mark.parametrize(
    ("sides", "failures", "notes"),
    [
        (changed(model(), without="blk.1.attn_v"), ["blk.1.attn_v.weight is not there, though the source has it and other"], []),
        (changed(model(), without="token_embd"), ["token_embd.weight is not there, though the source has it"], []),
        (
            changed(model(), output={"blk.2.ffn_up.weight": (8, 15)}),
            ["blk.2.ffn_up.weight holds 120 numbers, the source 128"],
            [],
        ),
        (changed(model(), output={"token_embd.weight": (8, 90)}), [], ["token_embd.weight holds 720 numbers, the source 800"]),
        (
            changed(
                model(),
                source={"cls.x": (8,)},
                mapped=model().mapped | {"cls.x": "cls.weight"},
                output={f"blk.{n}.ffn_up.weight": (8, 8) for n in range(3)},
            ),
            [],
            ["left out what it calls cls.weight", "blk.0.ffn_up.weight holds 64", ", blk.1.ffn_up.weight holds 64"],
        ),
        (changed(model(), source={"visual.a": (9,)}), [], ["upstream left out, or gave another name, visual.a"]),
        (changed(model(), without="blk.0.attn_v", source={}), ["blk.0.attn_v.weight is not there"], []),
        (
            changed(model(), without="blk.2."),
            [f"blk.2.{kind} is not there, though the source has it" for kind in KINDS],
            [],
        ),
    ],
)
def test_what_an_output_lacks(sides: Sides, failures: list[str], notes: list[str]) -> None:
    found = tensors.account(sides)
    assert len(found.failures) == len(failures) and all(map(str.__contains__, found.failures, failures)), found
    assert bool(found.notes) == bool(notes) and all(words in " ".join(found.notes) for words in notes), found


def spoiled(kind: str) -> Sides:
    """A source that lacks something, converted as upstream does: without a word."""
    sides, begin = model(), {"tensor": "blk.1.attn_v", "block": "blk.2."}.get(kind, kind)
    return msgspec.structs.replace(
        sides,
        source={name: shape for name, shape in sides.source.items() if not sides.mapped[name].startswith(begin)},
        output={name: shape for name, shape in sides.output.items() if not name.startswith(begin)},
    )


ALL = dict.fromkeys(model().output, 8 * 8) | dict.fromkeys(("token_embd.weight", "output.weight"), 800)


@pytest.mark.parametrize(
    ("kind", "absent"),
    [
        ("tensor", ("blk.1.attn_v.weight",)),
        ("block", ("blk.2.attn_q.weight", "blk.2.attn_v.weight", "blk.2.ffn_up.weight")),
        ("output_norm.weight", ("output_norm.weight",)),
        ("output.weight", ("output.weight",)),
    ],
)
def test_what_a_source_lacks_is_a_doubt_that_the_class_decides(kind: str, absent: tuple[str, ...]) -> None:
    sides = spoiled(kind)
    assert tensors.account(sides) == Findings()
    doubtful = tensors.uncertain(sides)
    assert doubtful == Uncertain(absent=absent)
    assert f"{absent[0]}" in tensors.decide(sides, doubtful, ALL).failures[0]
    assert tensors.decide(sides, doubtful, {}) == Findings()
    blind = tensors.decide(sides, doubtful, None)
    assert ("1 of 3 blocks are not there" in " ".join(blind.failures)) == (kind == "block")
    assert ("transformers does not know the model" in " ".join(blind.notes)) == (kind != "block")


def test_a_model_without_a_head_of_its_own_raises_no_doubt() -> None:
    assert tensors.uncertain(msgspec.structs.replace(spoiled("output.weight"), headless=True)) == Uncertain()
    assert tensors.uncertain(model()) == Uncertain()


def test_what_no_block_has_is_a_doubt_where_the_architecture_has_it() -> None:
    sides = msgspec.structs.replace(model(), names=(*OUTSIDE, "blk.{bid}.ffn_gate.weight", "blk.{bid}.ffn_up.weight"))
    due = tuple(f"blk.{number}.ffn_gate.weight" for number in range(3))
    assert tensors.uncertain(sides).absent == due
    assert "must be there by the model's class" in tensors.decide(sides, Uncertain(absent=due), dict.fromkeys(due, 1)).failures[0]
    experts = {f"blk.{number}.ffn_gate_exps.weight": (8, 16, 3) for number in range(3)}
    assert tensors.uncertain(changed(sides, output=experts)) == Uncertain()
    for parts in (("attn_qkv",), ("attn_q", "attn_k", "attn_v")):
        fused = msgspec.structs.replace(model(), names=tuple(f"blk.{{bid}}.{part}.weight" for part in ("attn_q", *parts)))
        others = {f"blk.{number}.{part}.weight": (8, 8) for number in range(3) for part in parts}
        assert tensors.uncertain(changed(fused, output=others)) == Uncertain()


def test_a_shape_unlike_its_siblings_is_a_doubt() -> None:
    sides = changed(model(), source={"model.layers.1.mlp.up_proj.weight": (16, 4)}, output={"blk.1.ffn_up.weight": (4, 16)})
    doubtful = tensors.uncertain(sides)
    assert doubtful.shapes == ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight", "blk.2.ffn_up.weight")
    right = {f"blk.{number}.ffn_up.weight": 128 for number in range(3)}
    told = "blk.1.ffn_up.weight has 64 numbers in the source, where the model's class has 128"
    assert tensors.decide(sides, doubtful, right) == Findings(failures=(told,))
    assert tensors.decide(sides, doubtful, right | {"blk.1.ffn_up.weight": 64}) == Findings()
    assert tensors.decide(sides, doubtful, None) == Findings()


@pytest.mark.parametrize(
    ("zeros", "failures", "notes"),
    [
        ({"blk.0.attn_q.weight": (64, 64)}, 0, 0),
        ({"blk.0.attn_q.weight": (64, 0)}, 1, 0),
        ({"blk.0.attn_q.weight": (33, 32)}, 1, 0),
        ({"blk.0.attn_q.weight": (64, -1)}, 0, 1),
        ({"blk.0.attn_q.weight": (63, -1)}, 0, 0),
        ({"rope_freqs.weight": (4, -1)}, 0, 1),
        ({"token_embd.weight": (80, 0)}, 0, 0),
        ({"token_embd.weight": (81, 0)}, 1, 0),
    ],
)
def test_zeros_that_the_source_does_not_have(zeros: dict[str, tuple[int, int]], failures: int, notes: int) -> None:
    sides = changed(model(), output={"rope_freqs.weight": (4,), "token_embd.weight": (8, 110)})
    found = tensors.zeroed(sides, zeros, -1)
    assert (len(found.failures), len(found.notes)) == (failures, notes)


@pytest.mark.parametrize(("spare", "failures", "notes"), [(0, 1, 0), (67, 1, 0), (68, 0, 1), (-1, 0, 1)])
def test_zeros_that_no_tensor_of_the_source_can_explain(spare: int, failures: int, notes: int) -> None:
    sides = changed(model(), output={"rope_freqs.weight": (4,)})
    outcome = tensors.zeroed(sides, {"rope_freqs.weight": (4, -1), "blk.0.attn_q.weight": (64, -1)}, spare)
    assert (len(outcome.failures), len(outcome.notes)) == (failures, notes)
    assert f"has {spare}" in "".join(outcome.failures) or not failures


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"a": (4, 2), "b": (3,)}, ""),
        ({"a": (4, 2)}, "b is not there"),
        ({"a": (4, 2), "b": (3,), "c": (1,)}, "c is in no file that it was made from"),
        ({"a": (2, 4), "b": (3,)}, "a has the shape [2, 4], where it had [4, 2]"),
    ],
)
def test_a_quantized_file_has_the_tensors_of_its_source(after: dict[str, Shape], said: str) -> None:
    found = tensors.same_shape({"a": (4, 2), "b": (3,)}, after)
    assert said in "".join(found.failures) and bool(found.failures) == bool(said)


@pytest.mark.parametrize(
    ("before", "after", "same"), [((64, 1), (64,), True), ((64, 1, 1), (64,), True), ((1, 64), (64,), False), ((1,), (2,), False)]
)
def test_ones_at_the_end_of_a_shape_are_no_difference(before: Shape, after: Shape, same: bool) -> None:
    assert (tensors.same_shape({"a": before}, {"a": after}).failures == ()) is same


PEFT = {f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{ab}.weight": (8, 2) for n in range(2) for ab in "AB"}
MADE = {f"blk.{number}.attn_q.weight.lora_{ab}": (8, 2) for number in range(2) for ab in "ab"}
EXPERTS = {f"layers.0.mlp.experts.{number}.up_proj.lora_{ab}.default.weight": (8, 2) for number in range(2) for ab in "AB"}


@pytest.mark.parametrize(
    ("source", "output", "silent", "failures", "notes"),
    [
        (PEFT, MADE, (set(), set()), 0, 0),
        (PEFT, {name: shape for name, shape in MADE.items() if "blk.0" in name}, (set(), set()), 2, 0),
        (PEFT, MADE | {"blk.0.attn_q.weight.lora_b": (8, 1)}, (set(), set()), 1, 0),
        (PEFT, MADE, (set(), {"blk.0.attn_q.weight.lora_b"}), 1, 0),
        (PEFT, MADE, ({"x"}, {"blk.0.attn_q.weight.lora_a", "blk.1.attn_q.weight.lora_b"}), 1, 0),
        (PEFT, MADE, ({"x"}, {"blk.0.attn_q.weight.lora_b"}), 0, 0),
        (PEFT, MADE, ({"x", "y"}, {name for name in MADE if name.endswith("b")}), 0, 1),
        (
            EXPERTS,
            {"blk.0.ffn_up_exps.weight.lora_a": (8, 2, 2), "blk.0.ffn_up_exps.weight.lora_b": (8, 2, 2)},
            (set(), set()),
            0,
            1,
        ),
    ],
)
def test_adapters(
    source: dict[str, Shape], output: dict[str, Shape], silent: tuple[set[str], set[str]], failures: int, notes: int
) -> None:
    found = tensors.adapter(source, output, silent)
    assert (len(found.failures), len(found.notes)) == (failures, notes), found
