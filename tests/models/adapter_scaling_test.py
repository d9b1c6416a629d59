"""PEFT's strength of each module as tables, and the arithmetic of the scaled copy against plain Python."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import scaled
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from tests.support import makers

MODULES = tuple(f"model.layers.{layer}.{name}" for layer in (0, 1, 10) for name in ("self_attn.q_proj", "mlp.up_proj"))


@pytest.fixture(scope="module")
def numeric(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has NumPy, as every environment for upstream's scripts does."""
    venv = tmp_path_factory.mktemp("numeric") / "venv"
    env = clean_env(**indexes.index_variables(settings.load(os.environ).index, None, os.environ))
    process.capture(Command((indexes.uv(), "venv", "--quiet", str(venv)), env=env))
    python = str(python_in(venv))
    process.capture(Command((indexes.uv(), "pip", "install", "--quiet", "--python", python, "numpy"), env=env), timeout=300)
    return python


def tensors(ranks: dict[str, int], dtype: str = "F32") -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for module, rank in ranks.items():
        name = f"base_model.model.{module}"
        made[f"{name}.lora_A.weight"] = {"dtype": dtype, "shape": [rank, 64]}
        made[f"{name}.lora_B.weight"] = {"dtype": dtype, "shape": [32, rank]}
    return made


def found(ranks: dict[str, int], **config: Any) -> adapter_scaling.Scales:
    given = {"r": 4, "lora_alpha": 16, "peft_version": "0.21.0"} | config
    return adapter_scaling.scales(adapter_scaling.read(given, "mine"), tensors(ranks), "mine")


def short(factors: dict[str, float]) -> dict[str, float]:
    return {
        name.removeprefix("base_model.model.model.layers.").removesuffix(".lora_B.weight"): by for name, by in factors.items()
    }


EQUAL = dict.fromkeys(MODULES, 4)
ALL = [module.removeprefix("model.layers.") for module in MODULES]
ALL_Q = {f"{layer}.self_attn.q_proj": 2.0 for layer in (0, 1, 10)}


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        ({}, {}),
        ({"use_rslora": None, "alpha_pattern": None, "rank_pattern": None}, {}),
        ({"alpha_pattern": {"q_proj": 32}}, ALL_Q),
        ({"alpha_pattern": {"q_proj": 16}}, {}),
        ({"alpha_pattern": {"proj": 32, "roj": 32, "q": 32, "attn.q_proj": 32}}, {}),
        ({"alpha_pattern": {"self_attn.q_proj": 32.0}}, ALL_Q),
        ({"alpha_pattern": {".*q_proj": 32}}, ALL_Q),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 8}}, {"1.self_attn.q_proj": 0.5}),
        ({"alpha_pattern": {"1.self_attn.q_proj": 8}}, {"1.self_attn.q_proj": 0.5}),
        ({"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 8}}, {"1.self_attn.q_proj": 0.5}),
        ({"alpha_pattern": {"^layers.1.self_attn.q_proj": 8}}, {}),
        ({"alpha_pattern": {"model.layers.1.self_attn.q_proj": 8}}, {"1.self_attn.q_proj": 0.5}),
        ({"alpha_pattern": {"base_model.model.model.layers.1.self_attn.q_proj": 8}}, {}),
        # The first key that fits wins, and an expression is one.
        ({"alpha_pattern": {"q_proj": 32, "layers.1.self_attn.q_proj": 8}}, ALL_Q),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 8, "q_proj": 32}}, ALL_Q | {"1.self_attn.q_proj": 0.5}),
        ({"alpha_pattern": {r"layers\.1\d*\..*": 8}}, {name: 0.5 for name in ALL if name[0] == "1"}),
        ({"alpha_pattern": {"nothing|q_proj": 32}}, ALL_Q),
        ({"alpha_pattern": {"q_proj": 0}}, dict.fromkeys(ALL_Q, 0.0)),
        ({"use_rslora": True}, dict.fromkeys(ALL, 2.0)),
        ({"use_rslora": True, "alpha_pattern": {"q_proj": 8}}, {f"{at}.mlp.up_proj": 2.0 for at in (0, 1, 10)}),
    ],
)  # fmt: skip
def test_where_peft_applies_a_module_otherwise_than_the_runtime(config: dict[str, Any], factors: dict[str, float]) -> None:
    assert short(found(EQUAL, **config).factors) == factors


def test_ranks_of_their_own_are_scaled_by_the_runtime_but_for_their_root() -> None:
    ranks = EQUAL | {MODULES[0]: 9, MODULES[1]: 1}
    pattern = {"layers.0.self_attn.q_proj": 9, "layers.0.mlp.up_proj": 1}
    assert found(ranks, rank_pattern=pattern) == adapter_scaling.Scales()
    by_root = short(found(ranks, rank_pattern=pattern, use_rslora=True).factors)
    assert by_root["0.self_attn.q_proj"] == 3.0 and by_root["1.self_attn.q_proj"] == 2.0 and "0.mlp.up_proj" not in by_root


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": math.inf}, "alpha is not a number"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": math.nan}}, "alpha is not a number"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj(": 8}}, "`q_proj(` is not an expression"),
        ({"rank_pattern": {"a)|(b": 8}}, "`a)|(b` is not an expression"),
        ({"rank_pattern": {r"(\w)+!": 8}}, "could be tried for ever"),
        ({"alpha_pattern": {"a*b*c*d*": 8}}, "could be tried for ever"),
        ({"alpha_pattern": {"x" * 1001: 8}}, "could be tried for ever"),
        ({"r": None}, "r`"),
        ({"r": 0}, "rank is less than 1"),
        ({"rank_pattern": {"q_proj": -1}}, "rank is less than 1"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern"),
        ({"r": 8}, "gives model.layers.0.mlp.up_proj the rank 8, but its lora_A is 4 x 64, lora_B 32 x 4"),
        ({"rank_pattern": {"up_proj": 2}}, "gives model.layers.0.mlp.up_proj the rank 2"),
    ],
)
def test_a_config_that_contradicts_itself_or_the_matrices_is_damaged(config: dict[str, Any], said: str) -> None:
    with pytest.raises(IntegrityError, match="the adapter mine is damaged, adapter_config.json: ") as refused:
        found(EQUAL, **config)
    assert said in refused.value.message and "take the" in refused.value.hint
    for missing in ("r", "lora_alpha"):
        with pytest.raises(IntegrityError, match=f"missing required field `{missing}`"):
            adapter_scaling.read({key: 4 for key in ("r", "lora_alpha") if key != missing}, "mine")


def test_matrices_come_in_pairs() -> None:
    whole = tensors(EQUAL)
    for key in (f"base_model.model.{MODULES[0]}.lora_{matrix}.weight" for matrix in "AB"):
        with pytest.raises(IntegrityError, match="layers.0.self_attn.q_proj has not two matrices"):
            adapter_scaling.pairs({name: value for name, value in whole.items() if name != key}, "mine")
        with pytest.raises(IntegrityError, match="has not two matrices"):
            adapter_scaling.pairs(whole | {key: {"dtype": "F32", "shape": [4, 4, 4]}}, "mine")
    ends = {"base_model.model.model.embed_tokens.lora_embedding_A": {"shape": [4, 9]}}
    ends |= {"base_model.model.model.embed_tokens.lora_embedding_B": {"shape": [8, 4]}}
    assert list(adapter_scaling.pairs(ends, "mine")) == ["model.embed_tokens"]


def test_only_floating_matrices_are_scaled() -> None:
    config = adapter_scaling.read({"r": 4, "lora_alpha": 16, "use_rslora": True}, "mine")
    with pytest.raises(OrchestrateError, match="of the type F8_E4M3") as refused:
        adapter_scaling.scales(config, tensors(EQUAL, "F8_E4M3"), "mine")
    assert "float32" in refused.value.hint


@pytest.mark.parametrize(
    ("config", "noted"),
    [
        ({"alpha_pattern": {"q_proj": 32}, "peft_version": None}, False),
        ({"alpha_pattern": {"q_proj": 32, "layers.1.self_attn.q_proj": 8}}, True),
        ({"alpha_pattern": {"q_proj": 32, "layers.1.self_attn.q_proj": 32}}, False),
        ({"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"self_attn.q_proj": 4}, "peft_version": None}, True),
        ({"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"self_attn.q_proj": 4}}, False),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32}, "peft_version": None}, True),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32}}, False),
        ({"alpha_pattern": {"model.layers.0.self_attn.q_proj": 32}, "peft_version": None}, False),
        ({"rank_pattern": {"q_proj": 4, "self_attn.q_proj": 4}, "peft_version": None}, False),
    ],
)
def test_a_pattern_that_can_be_read_in_more_than_one_way_is_said_to_be(config: dict[str, Any], noted: bool) -> None:
    assert any("more than one way" in note for note in found(EQUAL, **config).notes) is noted


def test_what_was_done_is_told() -> None:
    (note,) = found(EQUAL, use_rslora=True, alpha_pattern={"q_proj": 32}).notes
    assert note == "scaled as PEFT does (rsLoRA, alpha_pattern): 6 B matrices times 2 to 4, in a copy of the adapter"


@pytest.mark.parametrize("metadata", [{}, {"format": "pt", "a": "b"}])
def test_the_copy_holds_products_and_leaves_all_else_byte_for_byte(
    metadata: dict[str, str], tmp_path: Path, numeric: str
) -> None:
    numbers = [0.5, -1.25, 3.0]
    kinds = {"F64": struct.pack("<3d", *numbers), "F32": struct.pack("<3f", *numbers), "F16": struct.pack("<3e", *numbers)}
    kinds["BF16"] = b"".join(struct.pack("<f", number)[2:] for number in numbers)
    content: dict[str, makers.Tensor] = {f"{name}.{what}": (name, [3], raw) for name, raw in kinds.items() for what in ("A", "B")}
    content["odd"] = ("I8", [3], b"\1\2\3")
    origin, entry = tmp_path / "bot", tmp_path / "entry"
    for folder in (origin, entry):
        folder.mkdir()
    makers.write(origin / "adapter_model.safetensors", content, metadata)
    (origin / "adapter_config.json").write_text('{"r": 3, "alpha_pattern": {"x": 1}, "name": "\u00e9"}', encoding="utf-8")
    factors = {f"{name}.B": math.sqrt(3) for name in kinds}
    (origin / "README.md").write_text("a card", encoding="utf-8")
    plan = scaled.plan(origin, factors)
    (entry / "bot").mkdir()
    (entry / "asked.json").write_text(
        json.dumps({"files": msgspec.to_builtins(plan.files), "dest": str(entry / "bot")}), encoding="utf-8"
    )
    argv = (numeric, str(inside.path("merge_weights")), str(entry / "asked.json"), str(entry / "answer.json"))
    process.capture(Command(argv), timeout=100)
    assert plan.copies == {"README.md": str(origin / "README.md")}
    copied = makers.read(entry / "bot" / "adapter_model.safetensors")
    header, begin = makers.header_of(entry / "bot" / "adapter_model.safetensors")
    assert header.pop("__metadata__", {}) == metadata and copied.keys() == content.keys()
    widths = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
    assert not [name for name, said in header.items() if (begin + said["data_offsets"][0]) % widths[said["dtype"]]]
    (root,) = struct.unpack("<f", struct.pack("<f", math.sqrt(3)))
    for name, (dtype, shape, raw) in copied.items():
        if name in factors:
            assert (dtype, shape) == ("F32", [3]) and raw == struct.pack("<3f", *(number * root for number in numbers)), name
        else:
            assert (dtype, shape, raw) == content[name]
    config = json.loads(plan.texts["adapter_config.json"])
    assert config == {"r": 3, "name": "\u00e9", "use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}
