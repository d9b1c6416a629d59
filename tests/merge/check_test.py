"""What is told of a merge before the base's weights are here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import check
from llamacpp_orchestrator.models.weight_files import INDEX
from llamacpp_orchestrator.models.weight_files import PICKLE_INDEX
from tests.support.merging import CONFIG
from tests.support.merging import MODEL
from tests.support.merging import TIED
from tests.support.merging import Q
from tests.support.merging import low_rank
from tests.support.merging import make_adapter

E = "model.embed_tokens"
OTHER = "model.layers.1.mlp.gate_proj"


def small(folder: Path, index: dict[str, Any] | None = None, **config: Any) -> Path:
    """A base without its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if index is not None:
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(index, "model-00001-of-00001.safetensors")}))
    return folder


@pytest.mark.parametrize(
    ("shapes", "config", "note"),
    [
        (low_rank(Q, 8, 8), {}, ""),
        (low_rank("lm_head", 16, 8), {}, ""),
        (low_rank("model.layers.5.mlp.up_proj", 12, 8), {"layer_replication": [[0, 2], [0, 2]]}, ""),
        ({f"{E}.base_layer.weight": (18, 8), f"{E}.lora_embedding_A": (2, 18), f"{E}.lora_embedding_B": (8, 2)}, {}, ""),
        ({f"{E}.trainable_tokens_delta": (1, 8)}, {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1], "r": None}, ""),
        ({f"{Q}.hada_w1_a": (8, 2)}, {"peft_type": "LOHA"}, "the adapter mine is of the type LOHA: PEFT merges it itself"),
        (
            low_rank(Q, 8, 8),
            {"alpha_pattern": {"q_proj": 4, "self_attn.q_proj": 8}},
            "the adapter mine: alpha_pattern can be read in more than one way",
        ),
        (low_rank(Q, 8, 8), {"base_model_name_or_path": "x/base-bnb-4bit"}, "trained on x/base-bnb-4bit, a bitsandbytes copy"),
    ],
)
@pytest.mark.parametrize("index", [None, TIED])
def test_what_fits_is_left_to_go_on(index: Any, shapes: Any, config: dict[str, Any], note: str, tmp_path: Path) -> None:
    base = small(tmp_path / "base", index)
    notes = check.check(base, "base", [make_adapter(tmp_path / "mine", shapes, **config)])
    assert [text[: len(note)] for text in notes] == ([note] if note else [])


@pytest.mark.parametrize(
    ("shapes", "config", "base", "said"),
    [
        (low_rank("model.layers.5.self_attn.q_proj", 8, 8), {}, {}, "mine does not fit base: it has a layer 5"),
        (low_rank(Q, 8, 9), {}, {}, "mine does not fit base: q_proj of layer 0 has 9"),
        ({f"{E}.lora_embedding_A": (2, 18), f"{E}.lora_embedding_B": (8, 2)}, {}, {}, "vocabulary has 18 entries, the base's 16"),
        (low_rank(OTHER, 12, 8), {}, {}, f"it changes {OTHER}, and the base has no such module"),
        (low_rank(Q, 8, 8), {"alora_invocation_tokens": [1]}, {}, "mine cannot be merged"),
        (low_rank(Q, 8, 8), {"init_lora_weights": "pissa"}, {}, "mine was started with pissa"),
        (low_rank(Q, 8, 8), {"lora_alpha": 0}, {}, "lora_alpha is 0"),
        (low_rank(Q, 8, 8), {}, {"quantization_config": {"quant_method": "fp8"}}, "base is quantized"),
    ],
)
def test_what_is_wrong_by_small_files_alone_is_refused(
    shapes: Any, config: dict[str, Any], base: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(OrchestrateError, match=said) as refused:
        check.check(small(tmp_path / "base", MODEL, **base), "base", [make_adapter(tmp_path / "mine", shapes, **config)])
    assert refused.value.hint


def test_a_base_of_pickles_is_left_to_whether_it_is_trusted(tmp_path: Path) -> None:
    base = small(tmp_path / "base")
    (base / PICKLE_INDEX).write_text("{}")
    assert check.check(base, "base", [make_adapter(tmp_path / "mine", low_rank(Q, 8, 8))]) == ()
