"""Which adapters are refused and why, as tables; and a scaled one from job to receipt, with the real script."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.pipeline import adapter_staging
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.util.hashing import file_sha256
from tests.support.answer import Answer

Q = "base_model.model.model.layers.0.self_attn.q_proj"
ALONE, MERGE, INITIAL = "cannot be merged", "to `merge:`", "path_initial_model_for_weight_conversion"
CONFIG = {"num_hidden_layers": 2, "hidden_size": 64}
LLAMA = {
    **CONFIG, "model_type": "llama", "vocab_size": 99,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"peft_type": "LORA", "bias": "none", "use_rslora": False, "alpha_pattern": {}, "modules_to_save": None},
        {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 4}},
        {"init_lora_weights": True, "use_dora": False, "target_parameters": None, "megatron_config": {"x": 1}},
        *({"init_lora_weights": start} for start in ("gaussian", "eva", "orthogonal", "mica", False)),
        {"eva_config": {"rho": 2.0}, "corda_config": None, "layers_to_transform": [0], "exclude_modules": ["x"]},
    ],
)
def test_what_changes_only_the_training_or_the_scale_is_left_alone(config: dict[str, object]) -> None:
    adapter.refuse(config, (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", "base_model.model.lm_head.base_layer.weight"), "mine")


@pytest.mark.parametrize(
    ("config", "said", "way"),
    [
        ({"use_dora": True}, "DoRA", MERGE),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", MERGE),
        ({"trainable_token_indices": [0]}, "single tokens", MERGE),
        ({"trainable_token_indices": {"embed_tokens": [7]}}, "single tokens", MERGE),
        ({"bias": "lora_only"}, "biases", MERGE),
        ({"bias": "all"}, "biases", MERGE),
        ({"lora_bias": True}, "lora_bias", MERGE),
        ({"fan_in_fan_out": True}, "transposed", MERGE),
        ({"layer_replication": [[0, 2], [1, 3]]}, "more layers", MERGE),
        ({"use_qalora": True}, "QALoRA", MERGE),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA", MERGE),
        ({"kasa_config": {}}, "", ""),
        ({"kasa_config": {"beta": 1.0}}, "KaSA", MERGE),
        ({"monteclora_config": {"x": 1}}, "MonteCLoRA", ALONE),
        ({"arrow_config": {"top_k": 3}, "use_dora": True}, "DoRA.*; Arrow", ALONE),
        ({"peft_type": "IA3"}, "of the type IA3, not LORA", MERGE),
        ({"peft_type": "LOHA"}, "LOHA", MERGE),
        ({"peft_type": "ADALORA"}, "ADALORA", MERGE),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING", ALONE),
        *(({"peft_type": kind}, kind, ALONE) for kind in ("XLORA", "LILY", "SHADOW")),
        *(
            ({"init_lora_weights": start}, f"{start}, which changes the base", INITIAL)
            for start in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "lora_ga")
        ),
        ({"init_lora_weights": "pissa", "use_dora": True}, "DoRA.*pissa", MERGE),
        ({"init_lora_weights": "loftq"}, "LoftQ changed the base", "saved with it"),
    ],
)
def test_an_adapter_that_would_act_wrongly_is_refused(config: dict[str, object], said: str, way: str) -> None:
    if not said:
        adapter.refuse(config, (), "mine")
        return
    with pytest.raises(OrchestrateError, match=f"mine cannot become .*{said}") as refused:
        adapter.refuse(config, (), "mine")
    assert way in refused.value.hint


@pytest.mark.parametrize(
    ("tensor", "said", "way"),
    [
        (f"{Q}.lora_magnitude_vector.weight", "DoRA", MERGE),
        (f"{Q}.lora_magnitude_vector", "DoRA", MERGE),
        (f"{Q}.lora_B.bias", "adds biases", MERGE),
        (f"{Q}.bias", "trains biases", MERGE),
        (f"{Q}.lora_A.default.weight", "PEFT's name for it", "save_pretrained"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "single tokens", MERGE),
        ("base_model.model.model.embed_tokens.weight", "whole vocabulary", MERGE),
        ("base_model.model.lm_head.weight", "whole vocabulary", MERGE),
        ("base_model.model.lm_head.modules_to_save.weight", "whole vocabulary", MERGE),
        ("base_model.model.score.weight", "whole modules", MERGE),
        ("base_model.model.model.layers.0.input_layernorm.weight", "whole modules", MERGE),
        (f"{Q}.lora_E", "neither lora_A nor lora_B", MERGE),
    ],
)
def test_tensors_that_a_gguf_adapter_cannot_hold_are_refused(tensor: str, said: str, way: str) -> None:
    with pytest.raises(OrchestrateError, match=f"mine cannot become .*{said}.*{tensor}") as refused:
        adapter.refuse({}, (f"{Q}.lora_A.weight", tensor), "mine")
    assert way in refused.value.hint


@pytest.mark.parametrize(
    ("name", "shape", "config", "said"),
    [
        ("layers.1.self_attn.q_proj.lora_A.weight", (8, 64), CONFIG, ""),
        ("layers.2.self_attn.q_proj.lora_A.weight", (8, 64), CONFIG, "has a layer 2, the base has 2 layers"),
        ("layers.0.self_attn.q_proj.lora_A.weight", (8, 128), CONFIG, "hidden size is 64"),
        ("layers.0.mlp.down_proj.lora_B.weight", (128, 8), CONFIG, "hidden size is 64"),
        ("layers.0.mlp.down_proj.lora_A.weight", (8, 128), CONFIG, ""),
        ("layers.0.self_attn.q_proj.lora_A.default.weight", (8, 9), CONFIG, "hidden size is 64"),
        ("vision.layers.9.q_proj.lora_A.weight", (8, 9), CONFIG, ""),
        ("audio_tower.layers.9.fc1.lora_A.weight", (8, 9), {"text_config": LLAMA}, ""),
        ("layers.5.q_proj.lora_A.weight", (8, 64), {"text_config": CONFIG}, "has a layer 5"),
        ("layers.5.q_proj.lora_A.weight", (8, 64), {}, ""),
        ("layers.0.self_attn.q_proj.lora_B.weight", (64, 8), LLAMA, ""),
        ("layers.0.self_attn.q_proj.lora_B.weight", (32, 8), LLAMA, "heads have 64"),
        ("layers.0.self_attn.k_proj.lora_B.weight", (32, 8), LLAMA, ""),
        ("layers.0.self_attn.k_proj.lora_B.weight", (64, 8), LLAMA, "key-value heads have 32"),
        ("layers.0.self_attn.v_proj.lora_B.weight", (64, 8), LLAMA, "key-value heads have 32"),
        ("layers.0.self_attn.v_proj.lora_B.weight", (64, 8), {"text_config": LLAMA}, "key-value heads have 32"),
        ("layers.0.self_attn.v_proj.lora_B.weight", (64, 8), LLAMA | {"head_dim": 32}, ""),
        ("layers.0.self_attn.o_proj.lora_A.weight", (8, 32), LLAMA, "heads have 64"),
        ("layers.0.mlp.up_proj.lora_B.weight", (64, 8), LLAMA, "feed-forward have 128"),
        ("layers.0.mlp.down_proj.lora_A.weight", (8, 64), LLAMA, "feed-forward have 128"),
        ("layers.0.attention.query_key_value.lora_A.weight", (8, 64), LLAMA, "changes query_key_value.* is a llama"),
        # What is not certain is left to upstream: other families, defaults that a config does not spell out.
        ("layers.0.mlp.down_proj.lora_A.weight", (8, 64), LLAMA | {"model_type": "mixtral"}, ""),
        ("layers.0.self_attn.qkv_proj.lora_A.weight", (8, 64), LLAMA | {"model_type": "phi3"}, ""),
        ("layers.0.self_attn.v_proj.lora_B.weight", (64, 8), LLAMA | {"model_type": "gemma2"}, ""),
        ("layers.0.self_attn.v_proj.lora_B.weight", (64, 8), LLAMA | {"num_key_value_heads": None}, ""),
        ("layers.0.mlp.down_proj.lora_A.weight", (8, 64), LLAMA | {"intermediate_size": [64, 128]}, ""),
    ],
)
def test_an_adapter_must_fit_its_base(name: str, shape: tuple[int, ...], config: dict[str, Any], said: str) -> None:
    found = adapter.mismatch({f"base_model.model.model.{name}": shape}, config)
    assert re.search(said, found) if said else found == ""


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("lm_head.lora_B.weight", (99, 8), ""),
        ("lm_head.lora_B.weight", (100, 8), "100 entries, the base's 99"),
        ("lm_head.lora_A.weight", (8, 64), ""),
        ("model.embed_tokens.lora_embedding_A", (8, 99), ""),
        ("model.embed_tokens.lora_embedding_A", (8, 64), "64 entries"),
        ("model.embed_tokens.lora_embedding_B", (64, 8), ""),
        ("model.embed_tokens.base_layer.weight", (101, 64), "101 entries"),
        ("model.layers.0.x.base_layer.weight", (101, 64), ""),
    ],
)
def test_an_adapter_must_have_the_vocabulary_of_its_base(name: str, shape: tuple[int, ...], said: str) -> None:
    found = adapter.vocabulary({f"base_model.model.{name}": shape}, LLAMA)
    assert said in found if said else found == ""


@pytest.mark.parametrize(
    ("name", "config", "end"),
    [
        ("lm_head.lora_A.weight", LLAMA, ""),
        ("lm_head.lora_A.weight", LLAMA | {"tie_word_embeddings": True}, "lm_head"),
        ("model.embed_tokens.lora_embedding_A", LLAMA | {"tie_word_embeddings": True}, "embed_tokens"),
        ("model.embed_tokens.lora_embedding_A", {"tie_word_embeddings": True, "text_config": LLAMA}, "embed_tokens"),
        ("model.embed_tokens.lora_embedding_A", {"model_type": "gemma"}, "embed_tokens"),
        ("model.embed_tokens.lora_embedding_A", {"model_type": "gemma", "tie_word_embeddings": False}, ""),
        ("model.layers.0.q_proj.lora_A.weight", {"tie_word_embeddings": True}, ""),
    ],
)
def test_one_matrix_for_both_ends_cannot_be_changed_at_one(name: str, config: dict[str, Any], end: str) -> None:
    assert adapter.tied([f"base_model.model.{name}"], config) == end


GATE, EXPERTS = (f"base_model.model.model.layers.0.mlp.{name}.lora_A.weight" for name in ("gate", "experts"))


@pytest.mark.parametrize(
    ("config", "shapes", "found"),
    [
        ({"r": 4}, {EXPERTS: (16, 64)}, ""),
        # A router has one matrix, which PEFT can only name as a parameter where transformers has made a module of its own of it.
        ({"r": 4, "target_parameters": ["gate.weight"]}, {GATE: (4, 64)}, ""),
        ({"r": 4, "rank_pattern": {"gate": 8}, "target_parameters": ["gate.weight"]}, {GATE: (8, 64)}, ""),
        ({"r": 4, "target_parameters": ["gate_up_proj", "gate.weight"]}, {GATE: (4, 64)}, "gate_up_proj"),
        ({"r": 4, "target_parameters": ["input_linear.weight"]}, {EXPERTS: (16, 64)}, EXPERTS),
    ],
)
def test_stacked_experts_are_told_from_a_router(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], found: str) -> None:
    assert adapter.stacked(config, shapes) == found


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_version": "0.21.2", "ensure_weight_tying": True, "velora_config": {"x": 1}, "lora_ga_config": {"x": 1}}, ""),
        ({"alora_invocation_tokens": [5]}, "one token before its invocation sequence"),
        (
            {"use_tomorrow": True, "tomorrow_config": None, "tomorrow_rank": 0, "later": {}},
            r"nothing here knows \(use_tomorrow\)",
        ),
    ],
)
def test_what_may_act_otherwise_is_noted(config: dict[str, Any], said: str) -> None:
    assert bool(adapter.doubts(config)) is bool(said) and all(re.search(said, note) for note in adapter.doubts(config))


def test_parts_that_stay_out_are_named() -> None:
    names = [f"base_model.model.visual.blocks.{at}.attn.qkv.lora_{matrix}.weight" for at in (0, 1) for matrix in "AB"]
    (note,) = adapter.outside([f"{Q}.lora_B.weight", *names])
    assert note.startswith("2 modules for images or sound stay out") and names[1] in note
    assert adapter.outside([f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"]) == ()


@pytest.mark.parametrize(
    ("trained_on", "noted"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", True), ("unsloth/Llama-3.2-1B-unsloth-bnb_4bit", True), ("x/y-bitsandbytes", True),
        ("meta-llama/Llama-3.2-1B", False), ("x/subnbase", False), (None, False),
    ],
)  # fmt: skip
def test_a_bitsandbytes_copy_is_fine_as_long_as_the_base_itself_is_none(trained_on: str | None, noted: bool) -> None:
    config = {"base_model_name_or_path": trained_on}
    said = adapter.quantized(config, {"quantization_config": {"quant_method": "fp8"}}, "Base")
    assert bool(said) == noted and all(f"{trained_on}, a bitsandbytes copy; used with Base" in note for note in said)
    for how in ({"quant_method": "bitsandbytes"}, {"load_in_4bit": True}):
        with pytest.raises(OrchestrateError, match="Base is quantized with bitsandbytes") as refused:
            adapter.quantized(config, {"quantization_config": how}, "Base")
        assert "original model" in refused.value.hint


def configure(folder: Path, **keys: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_files_are_judged_together(copy: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    base, mine = copy("tiny-llama", "base"), copy("lora-b", "mine")
    script = tmp_path / "script.py"
    script.write_text("knows nothing")
    assert adapter.check(mine, base, "mine", "base", script) == adapter.Scales()
    configure(mine, alora_invocation_tokens=[5, 6])
    with pytest.raises(OrchestrateError, match="activated LoRA") as refused:
        adapter.check(mine, base, "mine", "base", script)
    assert refused.value.hint == "pin a newer tag"
    script.write_text("alora_invocation_tokens")
    assert adapter.check(mine, base, "mine", "base", script) == adapter.Scales(notes=(adapter.ACTIVATED,))
    configure(mine, target_parameters=["gate_up_proj"])
    with pytest.raises(OrchestrateError, match=r"trains stacked experts, .* \(gate_up_proj\)") as refused:
        adapter.check(mine, base, "mine", "base")
    assert MERGE in refused.value.hint
    configure(mine, use_rslora=True, base_model_name_or_path="x/tiny-bnb-4bit", target_parameters=None)
    found = adapter.check(mine, base, "mine", "base")
    assert len(found.factors) == 14 and len(found.notes) == 3
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": 5}))
    with pytest.raises(OrchestrateError, match="mine was not trained on base: .*feed-forward") as refused:
        adapter.check(mine, base, "mine", "base")
    assert "x/tiny-bnb-4bit" in refused.value.hint
    (mine / "adapter_config.json").write_text("[]")
    with pytest.raises(OrchestrateError, match="not a JSON object"):
        adapter.check(mine, base, "mine", "base")


def test_a_head_that_is_also_the_embedding_is_refused(copy: Callable[..., Path], demo_data: ModuleType) -> None:
    base, mine = copy("tiny-llama", "base"), copy("lora-a", "mine")
    rank = json.loads((mine / "adapter_config.json").read_text())["r"]
    shapes = {"base_model.model.lm_head.lora_A.weight": (rank, 64), "base_model.model.lm_head.lora_B.weight": (32000, rank)}
    demo_data.write_safetensors(mine / "adapter_model.safetensors", shapes, "BF16", 1)
    assert adapter.check(mine, base, "mine", "base") == adapter.Scales()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(OrchestrateError, match="it changes lm_head, and base has one matrix for both ends") as refused:
        adapter.check(mine, base, "mine", "base")
    assert MERGE in refused.value.hint


def test_a_scaled_adapter_is_made_once_and_leaves_its_original_alone(
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    copy: Callable[..., Path],
    data: Path,
    world: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = copy("lora-b", "strong")
    configure(mine, use_rslora=True)
    (mine / "README.md").write_text("# strong\n")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    file = job(
        {"source": str(data / "tiny-llama"), "outtype": "none", "loras": [{"source": "./strong", "outtype": ["f16", "f32"]}]}
    )
    answer = orchestrate("run", file)
    assert answer.code == 0, answer.err
    note = "scaled as PEFT does (rsLoRA): 14 B matrices times 2.82843, in a copy of the adapter"
    receipts = []
    for kind in ("f16", "f32"):
        path = world / "dist" / f"tiny-llama-strong-lora-{kind}.gguf"
        receipt = pipeline_receipt.read(path)
        assert receipt and receipt.notes == (note,) and f"note: {path.name}: {note}" in answer.err
        receipts.append(receipt)
    (log,) = shared_cache.glob("logs/*/convert-tiny-llama-strong-lora-f32.gguf.log")
    assert f"note: {note}" in log.read_text(encoding="utf-8")
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert [receipt.command[2] for receipt in receipts] == ["{adapter}"] * 2
    views = (path.parent for path in shared_cache.glob("views/*/strong/adapter_config.json"))
    (shown,) = (view for view in views if not json.loads((view / "adapter_config.json").read_text())["use_rslora"])
    config = json.loads((shown / "adapter_config.json").read_text())
    assert config == json.loads(before["adapter_config.json"]) | {"use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}
    assert (shown / "README.md").read_bytes() == before["README.md"]
    # Not made anew where it is there, made anew with the same bytes where it is not whole.
    weights = shown / "adapter_model.safetensors"
    stamp, digest = weights.stat().st_mtime_ns, file_sha256(weights)
    assert orchestrate("run", file).out.count("current") == 2
    assert orchestrate("run", file, "--force").code == 0
    assert weights.stat().st_mtime_ns == stamp
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is cut" in adapter_staging.unhealthy(mine, shown)
    weights.unlink()
    assert adapter_staging.unhealthy(mine, shown) == "it lacks adapter_model.safetensors"
    assert orchestrate("run", file, "--force").code == 0
    assert file_sha256(weights) == digest
    assert [each.files[0].sha256 for each in receipts] == [
        file_sha256(world / "dist" / f"tiny-llama-strong-lora-{kind}.gguf") for kind in ("f16", "f32")
    ]
    answer = orchestrate("reproduce", world / "dist" / "tiny-llama-strong-lora-f16.gguf")
    assert answer.code == 0 and answer.out.startswith("identical "), answer.err
    # What other rules made is not current, whatever the command and the inputs.
    monkeypatch.setattr(adapter_scaling, "RULE", "as upstream's script does alone")
    assert orchestrate("run", file).out.count("built") == 2


@pytest.mark.parametrize(
    ("scaled", "said"),
    [
        (False, ("failed  verify tiny-llama-bot-lora-f16.gguf", "NaN")),
        (
            True,
            ("failed  convert tiny-llama-bot-lora-f16.gguf", "error: bot cannot be scaled: ", "holds infinite numbers or NaN"),
        ),
    ],
)
def test_not_a_number_is_found_in_the_result_or_before(
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    copy: Callable[..., Path],
    data: Path,
    world: Path,
    scaled: bool,
    said: tuple[str, ...],
) -> None:
    mine = copy("lora-b", "bot")
    configure(mine, use_rslora=scaled)
    weights = mine / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\xc0\x7f")
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "none", "loras": ["./bot"]}))
    assert answer.code == 1 and all(text in answer.err for text in said), answer.err
    assert not list((world / "dist").glob("*.gguf"))


def test_an_adapter_with_a_name_lies_in_a_folder_of_that_name(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path], data: Path
) -> None:
    copy("lora-a", "saved/german")
    file = job({"source": str(data / "tiny-llama"), "outtype": "none", "loras": ["./saved"]})
    answer = orchestrate("lock", file)
    assert answer.code == 2 and "holds no adapter itself; an adapter in a folder below it: german" in answer.err
    assert "/saved/german" in answer.err


def test_local_adapters_are_refused_before_anything_is_downloaded(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path], data: Path, world: Path
) -> None:
    configure(copy("lora-a", "bot"), init_lora_weights="pissa")
    answer = orchestrate("lock", job({"source": str(data / "tiny-llama"), "outtype": "none", "loras": ["./bot"]}))
    assert answer.code == 1 and "bot cannot become" in answer.err and "hint: save it again" in answer.err
    assert not (world / "job.lock.yaml").exists()
