"""Which kinds the plan merges, which PEFT has to, and which nobody can, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import kinds
from llamacpp_orchestrator.merge.adapter_parts import Parts
from tests.support.merging import Q
from tests.support.merging import low_rank
from tests.support.merging import make_adapter


def read(folder: Path, shapes: dict[str, Any] | None = None, **config: Any) -> Parts:
    return adapter_parts.read(make_adapter(folder / "mine", shapes or low_rank(Q, 8, 8), **config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        *(({"peft_type": kind}, f"of the type {kind}") for kind in ("PROMPT_TUNING", "XLORA", "POLY", "LILY", "SHADOW")),
        ({"arrow_config": {"top_k": 3}}, "Arrow chooses"),
        ({"monteclora_config": {"num_samples": 8}}, "MonteCLoRA samples"),
        ({"alora_invocation_tokens": [1, 2]}, "only behind its invocation tokens"),
        ({"init_lora_weights": "loftq"}, "LoftQ changed the base"),
        ({"use_dora": True, "bias": "all"}, ""),
        ({"init_lora_weights": "eva"}, ""),
    ],
)
def test_what_no_weights_can_express_is_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    parts = read(tmp_path, **config)
    if not said:
        kinds.refuse(parts)
        return
    with pytest.raises(OrchestrateError, match=f"mine cannot be merged into its base.*{said}") as refused:
        kinds.refuse(parts)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ""),
        ({"peft_type": None, "use_dora": True, "modules_to_save": ["norm"], "layer_replication": [[0, 2]]}, ""),
        ({"peft_type": "TRAINABLE_TOKENS", "token_indices": [1], "init_weights": True}, ""),
        ({"peft_type": "LOHA"}, "is of the type LOHA"),
        ({"use_qalora": True, "use_bdlora": {"nblocks": 2}}, "sets use_qalora, use_bdlora"),
        ({"kasa_config": {"beta": 1.0}}, "sets kasa_config"),
        ({"use_magic": 3, "plain": False}, "sets use_magic"),
        ({"token_indices": [1]}, "sets token_indices"),
    ],
)
def test_what_the_plan_does_not_know_is_left_to_peft(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    reason = kinds.unplanned(read(tmp_path, **config))
    assert reason == f"the adapter mine {said}" if said else reason == ""


def test_a_convolution_is_left_to_peft(tmp_path: Path) -> None:
    shapes = {"conv.lora_A.weight": (2, 3, 3, 3), "conv.lora_B.weight": (8, 2, 1, 1)}
    assert kinds.unplanned(read(tmp_path, shapes)) == "the adapter mine changes the convolution conv"


@pytest.mark.parametrize(
    ("config", "name", "trained_on", "way"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "org/Model-7B-FP8", "", "(org/Model-7B?)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "org/model-bnb-4bit", "org/model", "(org/model?)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "org/plain", "org/first_GPTQ_Int4", "(org/first?)"),
        ({"compression_config": {"format": "x"}}, "org/plain", "org/plain", "its unquantized original as the source"),
        ({"quantization_config": {}}, "org/plain-awq", "", ""),
        ({}, "org/plain", "", ""),
    ],
)
def test_a_quantized_base_is_refused_with_its_original(config: dict[str, Any], name: str, trained_on: str, way: str) -> None:
    if not way:
        kinds.check_base(config, name, trained_on)
        return
    with pytest.raises(OrchestrateError, match=f"{name} is quantized") as refused:
        kinds.check_base(config, name, trained_on)
    assert way in refused.value.hint


def test_the_adapter_before_training_lies_in_a_folder_of_it(tmp_path: Path) -> None:
    assert kinds.initial(read(tmp_path)) is None
    parts = read(tmp_path, init_lora_weights="pissa")
    with pytest.raises(OrchestrateError, match="started with pissa.*no folder in it holds its initial adapter") as refused:
        kinds.initial(parts)
    assert "path_initial_model_for_weight_conversion" in refused.value.hint
    mine = tmp_path / "mine"
    make_adapter(mine / "checkpoint-9", low_rank(Q, 8, 8), init_lora_weights="pissa")
    make_adapter(mine / "pissa_init", low_rank(Q, 8, 8), init_lora_weights=True)
    first = kinds.initial(parts)
    assert first and first.modules[0].a.file == str(mine / "pissa_init" / "adapter_model.safetensors")
    with pytest.raises(OrchestrateError, match="trains magnitudes"):
        kinds.initial(read(tmp_path, init_lora_weights="pissa", use_dora=True))
    make_adapter(mine / "again", low_rank(Q, 8, 8), init_lora_weights=True)
    with pytest.raises(OrchestrateError, match="more than one folder"):
        kinds.initial(parts)
    (mine / "again" / "adapter_model.safetensors").unlink()
    make_adapter(mine / "pissa_init", low_rank(Q, 8, 4), init_lora_weights=True)
    with pytest.raises(OrchestrateError, match="pissa_init is the start of another"):
        kinds.initial(parts)
