"""Weights that are not what they seem, told from index and headers alone: of small files made here, at real tags."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.convert import quantized
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.models.weight_files import INDEX
from tests.support import makers
from tests.support.makers import zeros
from tests.support.refusals import LLAMA
from tests.support.refusals import NEW
from tests.support.refusals import OLD
from tests.support.refusals import Tree
from tests.support.refusals import model
from tests.support.refusals import refusal

Q, NORM = "model.layers.0.self_attn.q_proj", "model.norm.weight"
PLAIN = {"model.embed_tokens.weight": zeros(8, 4), f"{Q}.weight": zeros(4, 4), NORM: zeros(4)}


def renamed(prefix: str, inside: str = "") -> dict[str, makers.Tensor]:
    """The tensors of a small model under other names."""
    return {prefix + name.replace("self_attn.q_proj.", f"self_attn.q_proj.{inside}"): value for name, value in PLAIN.items()}


WRONG: dict[str, tuple[dict[str, makers.Tensor], str, str]] = {
    "zero3": (dict.fromkeys(PLAIN, zeros(0)), "3 of 3 tensors have no elements", "zero_to_fp32.py"),
    "zero3-in-part": ({**PLAIN, f"{Q}.weight": zeros(0, 4)}, f"1 of 3 tensors have no elements ({Q}.weight)", "zero_to_fp32"),
    "compile": (renamed("_orig_mod."), "torch.compile's name", "model._orig_mod.save_pretrained"),
    "compiled-block": ({"model.layers.0._orig_mod.mlp.up_proj.weight": zeros(4, 4)}, "torch.compile's name", "_orig_mod"),
    "ddp": (renamed("module."), "inside DataParallel", "model.module.save_pretrained"),
    "deepspeed": (renamed("_forward_module.module."), "inside DataParallel", "model.module"),
    "fsdp": (renamed("_fsdp_wrapped_module."), "FSDP's name", "FULL_STATE_DICT"),
    "peft-merged": (renamed("base_model.model."), "PEFT's name for the model", "merge_and_unload"),
    "peft-left": (renamed("", "base_layer."), "what PEFT puts around a layer", "merge_and_unload"),
    "peft-head": ({**PLAIN, "lm_head.modules_to_save.default.weight": zeros(8, 4)}, "what PEFT puts around", "merge_and_unload"),
    "peft-unmerged": (
        {**renamed("base_model.model.", "base_layer."), f"base_model.model.{Q}.lora_A.default.weight": zeros(2, 4)},
        "an adapter of PEFT that is not merged",
        "merge_and_unload",
    ),
}


@pytest.mark.parametrize("tag", [OLD, NEW])
@pytest.mark.parametrize("kind", WRONG)
def test_weights_that_are_not_whole_or_not_the_models_own(kind: str, tag: str, tree: Tree, tmp_path: Path) -> None:
    tensors, message, way = WRONG[kind]
    said = refusal(tree, tag, model(tmp_path, tensors))
    assert message in said and way in said
    assert message in refusal(tree, tag, tmp_path, args=("--outtype", "f16")) and not refusal(tree, tag, tmp_path, weights=False)


@pytest.mark.parametrize("kind", [kind for kind in WRONG if "zero" not in kind])
def test_names_are_told_by_the_index_before_the_weights_are_here(kind: str, tree: Tree, tmp_path: Path) -> None:
    tensors, message, _ = WRONG[kind]
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    assert message in refusal(tree, NEW, model(tmp_path, {}, index))


def test_names_that_the_class_of_a_model_reads_are_right(tree: Tree, tmp_path: Path) -> None:
    tensors = {"roberta.encoder.layer.0.attention.self.query.parametrizations.weight.0.lora_A": zeros(2, 4)}
    assert not refusal(tree, NEW, model(tmp_path, tensors, architectures=["XLMRobertaModel"]))
    assert "not merged" in refusal(tree, NEW, model(tmp_path, tensors))


def test_bookkeeping_may_be_empty(tree: Tree, tmp_path: Path) -> None:
    assert not refusal(tree, NEW, model(tmp_path, {**PLAIN, f"{Q}.g_idx": zeros(0, dtype="I32")}))


def gptq(**more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": 4, **more}}


def ct(form: str, strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "strategy": strategy, **more}
    said = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}
    return {"quantization_config": said}


FP8: dict[str, Any] = {"quantization_config": {"quant_method": "fp8"}}
F8 = zeros(4, 4, dtype="F8_E4M3")
FLOAT = {**PLAIN, f"{Q}.weight": F8}
PACKED_INT = {**PLAIN, f"{Q}.weight_packed": zeros(4, 4, dtype="I32"), f"{Q}.weight_scale": zeros(4, 1)}
PACKED_INT = {name: value for name, value in PACKED_INT.items() if name != f"{Q}.weight"}
U32 = zeros(4, 1, dtype="U32")


@pytest.mark.parametrize(
    ("tensors", "config", "message", "way"),
    [
        ({**PLAIN, f"{Q}.weight": U32, f"{Q}.scales": zeros(4, 1), f"{Q}.biases": zeros(4, 1)}, {}, "(MLX)", "--dequantize"),
        ({**PLAIN, f"{Q}.weight": U32, f"{Q}.scales": zeros(4, 1, dtype="U8")}, {}, "(MLX)", "mlx_lm.fuse --dequantize"),
        ({**PLAIN, f"{Q}.weight.absmax": zeros(4)}, {}, "(bitsandbytes)", "model.dequantize()"),
        ({**PLAIN, f"{Q}.SCB": zeros(4)}, {}, "(bitsandbytes)", "model.dequantize()"),
        (PLAIN, {"quantization_config": {"quant_method": "bitsandbytes"}}, "(bitsandbytes)", "take `quantization_config` out"),
        ({**PLAIN, f"{Q}.qweight": zeros(4, 4, dtype="I32")}, {}, "(gptq or awq)", "it was made from"),
        ({**PLAIN, f"{Q}.qweight": zeros(4, 4, dtype="I32")}, gptq(), "", ""),
        (FLOAT, FP8, f"its scales are not there: {Q}.weight", "get or save it again"),
        (FLOAT, {"text_config": FP8}, "its scales are not there", "get or save it again"),
        ({**FLOAT, f"{Q}.weight_scale_inv": zeros(1, 1)}, FP8, "", ""),
        ({**FLOAT, "lm_head.weight": F8, f"{Q}.weight_scale_inv": zeros(1, 1)}, FP8, "not there: lm_head.weight", "again"),
        ({**PLAIN, "m.experts.gate_up_proj": F8, "m.experts.gate_up_proj_scale_inv": zeros(1, 1)}, FP8, "", ""),
        ({**FLOAT, f"{Q}.weight_scale": zeros(1)}, FP8, "scales that are not those of its method", "it was made from"),
        ({**FLOAT, f"{Q}.weight_scale": zeros(4, 1)}, {}, "(fp8 or int8)", "it was made from"),
        (FLOAT, {}, "", ""),
        ({**FLOAT, f"{Q}.weight_scale": zeros(4, 1)}, ct("float-quantized", "channel"), "", ""),
        (
            {**FLOAT, f"{Q}.weight_scale": zeros(4, 1), f"{Q}.input_scale": zeros(1)},
            ct("float-quantized", "channel"),
            f"static scales of activations: {Q}.input_scale",
            "it was made from",
        ),
        ({**FLOAT, f"{Q}.weight_scale": zeros(1)}, ct("float-quantized", "tensor"), "by tensor; it reads those by block or", ""),
        (PACKED_INT, ct("pack-quantized", "channel"), "pack-quantized, by channel; it reads those by group", "it was made from"),
        (PACKED_INT, ct("pack-quantized", "group", group_size=4), "", ""),
        (
            {**PACKED_INT, f"{Q}.weight_g_idx": zeros(4, dtype="I32")},
            ct("pack-quantized", "group", group_size=4, actorder="group"),
            f"(actorder): {Q}.weight_g_idx",
            "it was made from",
        ),
        ({**PLAIN, f"{Q}.weight": zeros(4, 4, dtype="I8")}, {}, f"config.json does not say how: {Q}.weight", "it was made from"),
        ({**PLAIN, "extra": zeros(4, dtype="U64")}, {}, "the type U64: extra", "it was made from"),
        ({**PLAIN, "embeddings.position_ids": zeros(1, 4, dtype="I64")}, {}, "", ""),
    ],
)  # fmt: skip
def test_quantized_weights_that_come_out_wrong(
    tensors: dict[str, makers.Tensor], config: dict[str, Any], message: str, way: str, tree: Tree, tmp_path: Path
) -> None:
    said = refusal(tree, NEW, model(tmp_path, tensors, **config))
    assert message in said and way in said and bool(said) is bool(message)


def test_what_an_old_tag_reads_wrongly_without_a_word(tree: Tree, tmp_path: Path) -> None:
    assert "its scales are not there" in refusal(tree, OLD, model(tmp_path, FLOAT, **FP8))
    assert "(compressed-tensors)" in refusal(
        tree, OLD, model(tmp_path, {**FLOAT, f"{Q}.weight_scale": zeros(4, 1)}, **ct("float-quantized", "channel"))
    )


def test_eight_bit_floats_of_which_nothing_is_said_are_noted(tmp_path: Path) -> None:
    weights = headers.read(model(tmp_path, FLOAT))
    assert quantized.notes(LLAMA, weights) == (f"eight-bit floats without scales are read as they are: {Q}.weight",)
    assert quantized.notes({**LLAMA, **FP8}, weights) == () == quantized.notes(LLAMA, headers.read(model(tmp_path, PLAIN)))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (dict.fromkeys(PLAIN, "model.safetensors"), ""),
        (dict.fromkeys([*PLAIN, "lm_head.weight"], "model.safetensors"), "names 1 tensors that no file holds (lm_head.weight)"),
        (dict.fromkeys([NORM], "model.safetensors"), "the files hold 2 that it does not name"),
    ],
)
def test_an_index_of_another_save(weight_map: dict[str, str], message: str, tree: Tree, tmp_path: Path) -> None:
    said = refusal(tree, NEW, model(tmp_path, PLAIN, {"weight_map": weight_map}))
    assert message in said and bool(said) is bool(message) and (not said or "from one save" in said)


def test_tensors_in_two_files_without_an_index(tree: Tree, tmp_path: Path) -> None:
    model(tmp_path, {})
    for name in ("model.fp16.safetensors", "model.fp32.safetensors"):
        makers.write(tmp_path / name, PLAIN)
    assert "3 tensors are in two files" in refusal(tree, NEW, tmp_path)


def test_an_index_that_is_not_exact_is_noted(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(data / "tiny-llama", folder)
    first, second = makers.shards(folder)
    assert headers.notes(headers.read(folder)) == ()
    index = json.loads((folder / INDEX).read_text())
    index["metadata"]["total_size"] += 1
    (folder / INDEX).write_text(json.dumps(index))
    assert "are they of one save" in "".join(headers.notes(headers.read(folder)))
    name = makers.names(folder / first)[0]
    makers.edit(folder / INDEX, metadata={}, weight_map={**index["weight_map"], name: second})
    assert headers.notes(headers.read(folder)) == (f"the index says another file than the one that holds it, for {name}",)
    moved = makers.read(folder / first)[name]
    makers.tensors(folder / second, lambda found: found | {name: moved})
    assert f"several files hold {name}; as in transformers, the last by name counts" in headers.notes(headers.read(folder))


def test_weights_that_config_names_elsewhere(tree: Tree, tmp_path: Path) -> None:
    assert "transformers_weights: ema.safetensors" in refusal(
        tree, NEW, model(tmp_path, PLAIN, transformers_weights="ema.safetensors")
    )
    assert not refusal(tree, NEW, model(tmp_path, PLAIN, transformers_weights="model.safetensors"))
