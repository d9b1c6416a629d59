"""What no GGUF of an architecture can say is refused while only small files are here; and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import runtime
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.store import Store
from tests.support import makers
from tests.support.answer import Answer

Tree = Callable[[str], Path]
GEMMA = {"head_dim": 256, "hidden_size": 2304, "num_attention_heads": 8, "num_hidden_layers": 26}
BIG = {"head_dim": 128, "hidden_size": 5376, "num_attention_heads": 32, "num_hidden_layers": 62}
NONE = frozenset[str]()


@pytest.mark.parametrize(
    ("architecture", "text", "said"),
    [
        ("llama", {"hidden_act": "silu"}, ""),
        ("llama", {"hidden_act": "swish"}, ""),
        ("llama", {"hidden_act": "relu"}, "hidden_act relu, where llama of llama.cpp has silu"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
        ("llama", {"hidden_act": "laplace"}, ""),
        ("unheard-of", {"hidden_act": "relu"}, ""),
        ("gemma2", {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "silu"}, ""),
        ("gemma2", {"hidden_activation": None, "hidden_act": "gelu"}, ""),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation silu"),
        ("nemotron", {"hidden_act": "relu2"}, ""),
        ("nemotron", {"hidden_act": "relu"}, "where nemotron of llama.cpp has relu2"),
        ("bert", {"hidden_act": "relu"}, "hidden_act relu"),
        ("bert", {"hidden_act": "gelu", "position_embedding_type": "absolute"}, ""),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type relative_key"),
        ("t5", {"feed_forward_proj": "gated-gelu"}, ""),
        ("t5", {"feed_forward_proj": "relu", "dense_act_fn": "relu"}, ""),
        ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj gated-silu"),
        ("qwen3moe", {"norm_topk_prob": True}, ""),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob False, where qwen3moe of llama.cpp has True"),
        ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob True"),
        ("qwen2moe", {}, ""),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 0, 1], "no_rope_layer_interval": 4}, ""),
        ("smollm3", {"no_rope_layers": []}, ""),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers [1, 0, 1, 0]"),
        ("gemma2", GEMMA | {"query_pre_attn_scalar": 256}, ""),
        ("gemma2", GEMMA | {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar 224, where gemma2 of llama.cpp has 256"),
        ("gemma3", BIG | {"query_pre_attn_scalar": 168}, ""),
        ("gemma3", BIG | {"query_pre_attn_scalar": 128}, "query_pre_attn_scalar 128, where gemma3 of llama.cpp has 168"),
        ("gemma3", {"query_pre_attn_scalar": 128}, ""),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping null"),
        ("gemma3", {"attn_logit_softcapping": None}, ""),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ("llama", {"partial_rotary_factor": 1.0}, ""),
        ("qwen2", {"partial_rotary_factor": 0.5}, ""),
    ],
)
def test_what_the_runtime_does_by_itself(architecture: str, text: dict[str, Any], said: str) -> None:
    found = runtime.impossible(architecture, text, NONE)
    assert (len(found) == 1 and said in found[0]) if said else found == ()


def test_what_the_script_of_a_tag_reads_is_left_to_it() -> None:
    text = {"hidden_act": "relu", "partial_rotary_factor": 0.5}
    (told,) = runtime.impossible("llama", text, frozenset({"hidden_act"}))
    assert "partial_rotary_factor" in told


@pytest.mark.parametrize(
    ("tag", "name", "said"),
    [
        ("b11434", "LlamaForCausalLM", "llama"), ("0.3.1", "LlamaForCausalLM", "llama"),
        ("b11434", "Gemma3ForCausalLM", "gemma3"), ("b11434", "Glm4MoeForCausalLM", "glm4moe"),
        ("b9760", "GptOssForCausalLM", "gpt-oss"), ("b11434", "NoSuchModel", ""),
    ],
)  # fmt: skip
def test_an_architectures_name_is_read_from_the_tree(tag: str, name: str, said: str, tree: Tree) -> None:
    found = capabilities.decisions(tree(tag), name)
    assert found.name == said and bool(found.read) is bool(said) and found.own <= found.read


def test_the_tables_name_architectures_that_there_are(tree: Tree) -> None:
    known = (tree("b11434") / "gguf-py" / "gguf" / "constants.py").read_text(encoding="utf-8")
    for name in {*runtime.ACTIVATION, *runtime.FIXED, *runtime.PATTERN, *runtime.WINDOWED, *runtime.ONE_BASE, *runtime.SCALED}:
        assert f'"{name}"' in known, name
    assert set(runtime.ACTIVATION.values()) <= set(runtime.KINDS.values())


def test_it_is_refused_with_a_way_out(tree: Tree, tmp_path: Path) -> None:
    def able(dest: Path) -> None:
        shutil.copytree(tree("b11434"), dest, dirs_exist_ok=True)
        script = dest / "conversion" / "llama.py"
        text = script.read_text(encoding="utf-8").replace("undo_permute = True", 'undo_permute = True; READS = "hidden_act"', 1)
        script.write_text(text, encoding="utf-8")

    kept = Store(tmp_path / "cache")
    kept.ensure("source", "k", able, about="able")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_act": "relu"}))

    def said(compared: bool = True, weights: bool = True, args: tuple[str, ...] = (), store: Store | None = None) -> str:
        subject = preflight.Subject(
            tree=tree("b11434"), tag="b11434", folder=tmp_path, source="org/m", compared=compared, weights=weights, args=args,
            store=store,
        )  # fmt: skip
        try:
            preflight.check_model(subject)
        except OrchestrateError as error:
            return f"{error.message}\n{error.hint}"
        return ""

    assert said() == (
        "org/m: config.json says hidden_act relu, where llama of llama.cpp has silu; b11434 has no way to write it into a GGUF\n"
        "no tag that is known here can; a newer one may; with `verify: structure` it is converted all the same, to a model that "
        "answers otherwise than its source"
    )
    assert "set `llama_cpp.tag` to one that does: able in the cache" in said(store=kept)
    assert said(compared=False) == said(weights=False) == said(args=("--vocab-only",)) == ""


def test_a_job_ends_before_anything_is_converted(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path], world: Path
) -> None:
    makers.edit(copy("tiny-llama") / "config.json", hidden_act="relu")
    answer = orchestrate("run", job({"source": "./model", "outtype": "f16"}))
    assert answer.code == 1 and "failed  fetch model" in answer.err and "hidden_act relu" in answer.err
    assert not (world / "dist").exists() or not list((world / "dist").glob("*.gguf"))
