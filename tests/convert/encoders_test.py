"""Encoders and rankers: what stands behind a model is written, or refused before the weights are converted; never dropped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import encoders
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.verify import gguf
from tests.support import makers
from tests.support.makers import zeros
from tests.support.refusals import NEW
from tests.support.refusals import OLD
from tests.support.refusals import Tree
from tests.support.refusals import model
from tests.support.refusals import refusal

ST = "sentence_transformers.models."
NEWER = "sentence_transformers.sentence_transformer.modules."
IDENTITY = "torch.nn.modules.linear.Identity"
BERT = {"architectures": ["BertModel"], "hidden_size": 8}
GEMMA = {"architectures": ["Gemma3TextModel"], "hidden_size": 8}
POOL = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}


def dense(take: int = 8, give: int = 8, activation: str = IDENTITY, *, bias: bool = False, **more: Any) -> dict[str, Any]:
    """The config of a Dense module."""
    return {"in_features": take, "out_features": give, "bias": bias, "activation_function": activation, **more}


def behind(folder: Path, config: dict[str, Any], *found: tuple[str, str, Any], weights: bool = True) -> Path:
    """A model with modules of sentence-transformers behind it: type, folder, config."""
    model(folder, {"embed_tokens.weight": zeros(8, 8)} if weights else {}, **config)
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{ST}Transformer"}]
    for number, (kind, path, said) in enumerate(found, 1):
        listed.append({"idx": number, "name": str(number), "path": path, "type": kind})
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(said))
        if kind.endswith("Dense") and weights:
            tensor = zeros(said["out_features"], said["in_features"])
            makers.write(folder / path / "model.safetensors", {"linear.weight": tensor})
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def pool(said: Any) -> tuple[str, str, Any]:
    return f"{ST}Pooling", "1_Pooling", said


@pytest.mark.parametrize(
    ("said", "modes"),
    [
        (POOL, ("mean",)),
        ({"pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("mean", "max")),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, ("mean",)),
        ({"pooling_mode": ["cls", "mean_sqrt_len_tokens"]}, ("cls", "mean_sqrt_len")),
        ({}, ()),
    ],
)
def test_pooling_in_both_spellings(said: dict[str, Any], modes: tuple[str, ...], tmp_path: Path) -> None:
    assert encoders.pooling(encoders.modules(behind(tmp_path, BERT, pool(said)))) == modes


@pytest.mark.parametrize("damage", [b"{", b"[1]", b"[]", None])
def test_modules_that_are_none(damage: bytes | None, tmp_path: Path) -> None:
    if damage is not None:
        (tmp_path / "modules.json").write_bytes(damage)
    assert encoders.modules(tmp_path) == ()


def test_a_damaged_or_distant_config_of_a_module_says_nothing(tmp_path: Path) -> None:
    folder = behind(tmp_path / "model", BERT, pool(POOL))
    (folder / "1_Pooling" / "config.json").write_text("{")
    (tmp_path / "config.json").write_text(json.dumps(POOL))
    far = [{"path": "../", "type": f"{ST}Pooling"}, {"path": "1_Pooling", "type": f"{ST}Pooling"}]
    (folder / "modules.json").write_text(json.dumps(far))
    assert [module.config for module in encoders.modules(folder)] == [{}, {}]


@pytest.mark.parametrize(
    ("tag", "architecture", "modes"),
    [
        (OLD, "BertModel", {"mean", "cls"}),
        (OLD, "Qwen2ForCausalLM", set()),
        (NEW, "BertModel", {"mean", "cls", "lasttoken"}),
        (NEW, "Qwen3ForCausalLM", {"mean", "cls", "lasttoken"}),
        (NEW, "Gemma3TextModel", {"mean", "cls", "lasttoken"}),
        (NEW, "PhiForCausalLM", set()),
    ],
)
def test_what_a_tag_writes_of_pooling(tag: str, architecture: str, modes: set[str], tree: Tree) -> None:
    assert encoders.writes_pooling(capabilities.converter(tree(tag), architecture)) == modes


RIGHT = [
    (NEW, BERT, [pool(POOL)]),
    (OLD, BERT, [pool(POOL)]),
    (NEW, BERT, [pool({"pooling_mode": "lasttoken"}), (f"{ST}Normalize", "2_Normalize", {})]),
    (NEW, GEMMA, [pool(POOL), (f"{ST}Dense", "2_Dense", dense(8, 16)), (f"{ST}Dense", "3_Dense", dense(16, 8))]),
    (NEW, GEMMA, [pool(POOL), ("sentence_transformers.base.modules.dense.Dense", "2_Dense", dense())]),
    (NEW, {"architectures": ["Lfm2BidirectionalModel"]}, [("pylate.models.Dense.Dense", "1_Dense", dense(8, 4))]),
]
WRONG: list[tuple[str, dict[str, Any], list[tuple[str, str, Any]], str, str]] = [
    (NEW, BERT, [pool({"pooling_mode": "max"})], "it pools by max; llama.cpp has mean, cls and lasttoken", "--pooling none"),
    (NEW, BERT, [pool({"pooling_mode": ["mean", "cls"]})], "it pools by mean and cls", "--pooling none"),
    (OLD, BERT, [pool({"pooling_mode_lasttoken": True})], "would not write that it pools by lasttoken", "pin a newer tag"),
    (OLD, {"architectures": ["Qwen2ForCausalLM"]}, [pool({"pooling_mode_lasttoken": True})], "not write", "--pooling last"),
    (NEW, BERT, [("x.SpladePooling", "1_SpladePooling", {})], "sparse embeddings", "another runtime"),
    (NEW, BERT, [pool(POOL), (f"{ST}Dense", "2_Dense", dense())], "layers (2_Dense) that b11434 does not write", "modules.json"),
    (OLD, BERT, [(f"{NEWER}Dense", "2_Dense", dense())], "does not write", "pin a newer tag"),
    (NEW, BERT, [(f"{ST}LayerNorm", "2_LayerNorm", {})], "stands LayerNorm (2_LayerNorm), which no tag writes", "modules.json"),
    (NEW, GEMMA, [(f"{ST}Dense", "2_Dense", dense(bias=True))], "2_Dense has a bias", "modules.json"),
    (NEW, GEMMA, [(f"{ST}Dense", "2_Dense", dense(activation="torch.nn.modules.activation.Tanh"))], "activation Tanh", "copy"),
    (NEW, GEMMA, [(f"{ST}Dense", "2_Dense", {"in_features": 8, "out_features": 8})], "the activation Tanh", "modules.json"),
    (NEW, GEMMA, [(f"{ST}Dense", "2_Dense", dense(use_residual=True))], "has a residual", "modules.json"),
    (
        NEW,
        GEMMA,
        [(f"{ST}Dense", "2_Dense", dense(8, 4))],
        "gives 4 numbers, and llama.cpp can load it only with the model's own 8",
        "copy",
    ),
    (NEW, GEMMA, [(f"{ST}Dense", "3_Dense", dense())], "layers (3_Dense) that b11434 does not write", "newer tag"),
]


@pytest.mark.parametrize("number", range(len(RIGHT)))
def test_what_is_written_is_taken(number: int, tree: Tree, tmp_path: Path) -> None:
    tag, config, found = RIGHT[number]
    assert refusal(tree, tag, behind(tmp_path, config, *found)) == ""


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_would_be_dropped_is_refused_before_the_weights(number: int, tree: Tree, tmp_path: Path) -> None:
    tag, config, found, message, way = WRONG[number]
    said = refusal(tree, tag, behind(tmp_path, config, *found, weights=False))
    assert message in said and way in said
    assert refusal(tree, tag, tmp_path, weights=False) == "", "an adapter needs nothing of it"


def test_a_layer_in_a_pickle_is_not_taken_for_none(tree: Tree, tmp_path: Path) -> None:
    folder = behind(tmp_path, GEMMA, (f"{ST}Dense", "2_Dense", dense()))
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    assert "the weights of the layer 2_Dense are not in safetensors" in refusal(tree, NEW, folder)


@pytest.mark.parametrize(
    ("architecture", "labels", "wrong"),
    [
        ("BertForSequenceClassification", None, True),
        ("DistilBertForSequenceClassification", {"0": "LABEL_0", "1": "LABEL_1"}, True),
        ("ModernBertForSequenceClassification", {"0": "LABEL_0", "1": "LABEL_1"}, True),
        ("BertForSequenceClassification", {"0": "LABEL_0"}, False),
        ("BertForSequenceClassification", {"0": "no", "1": "yes"}, False),
        ("XLMRobertaForSequenceClassification", None, False),
        ("BertModel", None, False),
    ],
)
def test_two_labels_without_names(architecture: str, labels: Any, wrong: bool, tree: Tree, tmp_path: Path) -> None:
    folder = model(tmp_path, {}, architectures=[architecture], **({"id2label": labels} if labels else {}))
    said = refusal(tree, NEW, folder)
    assert bool(said) is wrong and ("two labels have no names" in said and "id2label" in said) is wrong


BERT_HEAD = ("bert.pooler.dense.weight", "bert.embeddings.word_embeddings.weight", "classifier.weight")


@pytest.mark.parametrize(
    ("architecture", "source", "output", "words"),
    [
        ("BertForSequenceClassification", BERT_HEAD, {"cls.output.weight": (8, 1)}, "the classifier's pooler (bert.pooler.dense"),
        ("BertForSequenceClassification", BERT_HEAD, {"cls.output.weight": (8, 1), "cls.weight": (8, 8)}, ""),
        ("BertForSequenceClassification", BERT_HEAD, {}, "leaves out the classifier's head"),
        ("XLMRobertaForSequenceClassification", ("classifier.dense.weight",), {"cls.weight": (8, 8)}, ""),
        ("DistilBertForSequenceClassification", ("pre_classifier.weight",), {"cls.weight": (8, 8)}, "llama.cpp puts tanh"),
        ("BertModel", ("pooler.dense.weight",), {}, ""),
    ],
)  # fmt: skip
def test_a_classifier_whose_scores_differ_is_told_as_one(
    architecture: str, source: tuple[str, ...], output: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    found = encoders.compare(tmp_path, {"architectures": [architecture]}, {}, source, output)
    assert found.failures == () and bool(found.notes) is bool(words) and words in "".join(found.notes)


def metadata(pooling: int | None = None, **more: Any) -> dict[str, Any]:
    return {"general.architecture": "bert", **({} if pooling is None else {"bert.pooling_type": pooling}), **more}


@pytest.mark.parametrize(
    ("said", "pooling", "words"),
    [
        (POOL, 1, ""),
        ({"pooling_mode": "mean"}, 1, ""),
        (POOL, None, "it pools by nothing, where the source pools by mean"),
        (POOL, 2, "it pools by cls, where the source pools by mean"),
        ({"pooling_mode": "lasttoken"}, 4, "it pools by 4, where the source pools by lasttoken"),
        ({}, 2, ""),
    ],
)
def test_an_output_pools_as_its_source(said: dict[str, Any], pooling: int | None, words: str, tmp_path: Path) -> None:
    found = encoders.compare(behind(tmp_path, BERT, pool(said)), BERT, metadata(pooling), (), {})
    assert "".join(found.failures) == words


def test_an_output_has_the_layers_behind_its_source(tmp_path: Path) -> None:
    folder = behind(tmp_path, GEMMA, (f"{ST}Dense", "2_Dense", dense(8, 16)), (f"{ST}Dense", "3_Dense", dense(16, 8)))
    whole = {"dense_2.weight": (8, 16), "dense_3.weight": (16, 8)}
    assert encoders.compare(folder, GEMMA, {}, (), whole).failures == ()
    assert encoders.compare(folder, GEMMA, {}, (), {}).failures == (
        "the layer 2_Dense is not there", "the layer 3_Dense is not there"
    )  # fmt: skip
    assert "has the shape [8, 8]" in "".join(
        encoders.compare(folder, GEMMA, {}, (), {**whole, "dense_2.weight": (8, 8)}).failures
    )


def test_a_prompt_that_is_left_out_is_noted(tmp_path: Path) -> None:
    folder = behind(tmp_path, BERT, pool({**POOL, "include_prompt": False}))
    assert "include_prompt" in "".join(encoders.compare(folder, BERT, metadata(1), (), {}).notes)


@pytest.mark.parametrize(
    ("said", "generates"),
    [
        ({"general.architecture": "llama"}, True),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, False),
        ({"general.architecture": "llama", "llama.attention.causal": False}, False),
        ({"general.architecture": "gemma-embedding"}, False),
        ({"general.architecture": "t5encoder"}, False),
    ],
)
def test_who_must_know_where_to_end(said: dict[str, Any], generates: bool) -> None:
    assert encoders.generates(said) is generates


def test_vision_tensors_by_names_that_transformers_5_has(tree: Tree, tmp_path: Path) -> None:
    weights = {"vision_tower.encoder.layers.0.mlp.fc1.weight": zeros(4, 4)}
    folder = model(tmp_path, weights, architectures=["Gemma3ForConditionalGeneration"])
    assert refusal(tree, NEW, folder) == ""
    for how in ({"mmproj": True}, {"args": ("--mmproj",)}):
        said = refusal(tree, NEW, folder, **how)
        assert "no `vision_model.` in their names" in said and "load_state_dict" in said
    makers.write(folder / "model.safetensors", {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": zeros(4, 4)})
    assert refusal(tree, NEW, folder, mmproj=True) == ""


def test_dense_modules_are_written_without_being_asked_for(
    orchestrate: Callable[..., Any], job: Callable[..., Path], data: Path, world: Path, demo_data: Any
) -> None:
    """A Gemma of two layers with EmbeddingGemma's modules: both matrices arrive, and a file without them is not current."""
    width, inner = 64, 128
    config = {
        "architectures": ["Gemma3TextModel"], "model_type": "gemma3_text", "vocab_size": 32000, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "query_pre_attn_scalar": 32, "sliding_window": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "use_bidirectional_attention": True,
        "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    shapes = {
        "embed_tokens.weight": (32000, width), "norm.weight": (width,),
        **{f"layers.0.{name}.weight": (width,) for name in
           ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")},
        "layers.0.self_attn.q_proj.weight": (64, width), "layers.0.self_attn.k_proj.weight": (32, width),
        "layers.0.self_attn.v_proj.weight": (32, width), "layers.0.self_attn.o_proj.weight": (width, 64),
        "layers.0.self_attn.q_norm.weight": (32,), "layers.0.self_attn.k_norm.weight": (32,),
        "layers.0.mlp.gate_proj.weight": (inner, width), "layers.0.mlp.up_proj.weight": (inner, width),
        "layers.0.mlp.down_proj.weight": (width, inner),
    }  # fmt: skip
    folder = behind(
        world / "model",
        config,
        pool(POOL),
        (f"{ST}Dense", "2_Dense", dense(width, 96)),
        (f"{ST}Dense", "3_Dense", dense(96, width)),
    )
    makers.write(folder / "model.safetensors", {name: makers.ramp(*shape) for name, shape in shapes.items()})
    for layer in ("2_Dense", "3_Dense"):
        makers.tensors(folder / layer / "model.safetensors", lambda found: {n: makers.ramp(*v[1]) for n, v in found.items()})
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(data / "tiny-llama" / name, folder)
    answer = orchestrate("run", job({"source": "./model", "outtype": "f32"}))
    assert answer.code == 0, answer.err
    made = gguf.contents([world / "dist" / "model-f32.gguf"])
    assert made.tensors["dense_2.weight"][1].shape == (width, 96) and made.tensors["dense_3.weight"][1].shape == (96, width)
    assert made.metadata["gemma-embedding.pooling_type"] == 1
    receipt = json.loads((world / "dist" / "model-f32.gguf.receipt.json").read_text())
    assert encoders.DENSE_OPTION in receipt["command"]
    makers.edit(folder / "2_Dense" / "config.json", bias=True)
    answer = orchestrate("run", job({"source": "./model", "outtype": "f32"}, name="other.yaml", output="other"))
    assert answer.code == 1 and "2_Dense has a bias" in answer.err and not list((world / "other").glob("*.gguf"))


def test_headers_are_quiet_about_a_whole_model(data: Path, tree: Tree) -> None:
    for name in ("tiny-llama", "all-MiniLM-L6-v2"):
        for tag in (OLD, "b9760", NEW):
            assert refusal(tree, tag, data / name) == ""
        assert headers.notes(headers.read(data / name)) == ()
    with pytest.raises(OrchestrateError, match="have no elements"):
        headers.check(headers.Weights(stored={"a": headers.Stored("F32", (0,), (0, 0))}), "x", lambda name: False)
