"""Merges that PEFT itself makes, of kinds that no plan knows: the files are the base's own but for what an adapter moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env

pytestmark = pytest.mark.slow


def layers(*names: str) -> set[str]:
    return {f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in names}


EXPERTS = layers(*(f"block_sparse_moe.experts.{expert}.w2" for expert in range(3)))
# Logits in bfloat16 weights, of models whose adapters move them by 0.0006 to 0.08.
MOVED = {
    "loha": (layers("self_attn.q_proj", "mlp.down_proj"), 1e-4),
    "ia3": (layers("self_attn.k_proj", "mlp.down_proj"), 1e-4),
    "several": (layers("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"), 0),
    "half": (layers("self_attn.k_proj", "mlp.down_proj"), 0),
    "experts": (EXPERTS, 5e-4),
    "tied": (layers("self_attn.q_proj"), 1e-5),
    "both ends": (layers("self_attn.q_proj"), 1e-5),
}
REFUSALS = {
    "a head of its own": "PEFT's merge has lm_head.weight, for which the files of ",
    "prompt": "prompt: what an adapter of the kind PROMPT_TUNING adds are no weights",
    "another base": "down_proj.hada_w1_a has no module in ",
    "absent": "nowhere: Can't find 'adapter_config.json'",
    "huge": "_proj.weight: a merged weight is infinite, NaN or too large for BF16",
}


@pytest.fixture
def answers(reference: Path, world: Path) -> dict[str, Any]:
    """All cases, in one process of the reference environment."""
    makers = Path(__file__).with_name("peft_merges.py")
    command = Command(
        (str(reference), str(makers), str(inside.path("merge_by_peft")), str(world)), env=clean_env(HF_HUB_OFFLINE="1")
    )
    return json.loads(process.capture(command, timeout=300))


def test_merges_by_peft(answers: dict[str, Any]) -> None:
    assert answers.keys() == MOVED.keys() | REFUSALS.keys()
    for name, (tensors, most) in MOVED.items():
        answer = answers[name]
        assert answer["same"] and set(answer["moved"]) == tensors, name
        assert answer["off"] <= most < answer.get("effect", 1) / 5, name
        assert 0 < answer["changed"] <= answer["updated"], name
    for name, text in REFUSALS.items():
        said = answers[name]["refusal"]
        assert said.startswith("merge_by_peft: ") and text in said and "\n" not in said, name
