"""Checks of an adapter against its base before anything is converted: can it act in a GGUF as it was trained to?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.models.adapter_scaling import Scales
from llamacpp_orchestrator.models.safetensors import read_json
from llamacpp_orchestrator.models.safetensors import safetensors_header

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\..*?(\w+)\.lora_([AB])(?:\.\w+)?\.weight$")
# (module, matrix, axis) whose length is the base's hidden size: what reads the residual stream, and what writes to it.
HIDDEN = {(name, "A", 1) for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")} | {
    (name, "B", 0) for name in ("o_proj", "down_proj")
}
# Families whose layers are all alike and hold these modules only; in others a size may differ from layer to layer.
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite")
INNER = {
    ("q_proj", "B", 0): "heads",
    ("o_proj", "A", 1): "heads",
    ("k_proj", "B", 0): "key-value heads",
    ("v_proj", "B", 0): "key-value heads",
    ("gate_proj", "B", 0): "feed-forward",
    ("up_proj", "B", 0): "feed-forward",
    ("down_proj", "A", 1): "feed-forward",
}
MODULES = {name for name, _, _ in (*HIDDEN, *INNER)}
# Parts for images and sound: they have sizes of their own, and upstream's script passes over them.
OUTSIDE = re.compile(r"visual|vision|audio|speech|tower|siglip|projector|connector|merger|resampler")
UNTIED = ("llama", "mistral", "qwen2", "qwen3")  # do not tie the head to the embeddings unless their config says so
VOCABULARY = ("embed_tokens", "lm_head")

MERGE = "move it from `loras:` to `merge:` (in `convert`: --merge in place of --lora), and it is merged into its base"
ALONE = "it cannot be merged into its base either; train it as plain LoRA, or serve it with PEFT"
INITIAL = "save it again with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), which undoes that"

# What a GGUF adapter cannot express: its key in adapter_config.json, why, and the way out.
UNTRUE = (
    ("use_dora", "DoRA also trains magnitudes", MERGE),
    ("modules_to_save", "modules_to_save holds whole modules that were trained", MERGE),
    ("trainable_token_indices", "trainable_token_indices also trains single tokens of the vocabulary", MERGE),
    ("lora_bias", "lora_bias adds biases to its matrices", MERGE),
    ("fan_in_fan_out", "fan_in_fan_out says that the base keeps its matrices transposed, which upstream does not undo", MERGE),
    ("layer_replication", "layer_replication builds a base with more layers", MERGE),
    ("use_qalora", "QALoRA pools the inputs of its matrices", MERGE),
    ("use_bdlora", "BD-LoRA makes its matrices block-diagonal", MERGE),
    ("kasa_config", "KaSA trains singular values between its matrices and changes the base", MERGE),
    ("monteclora_config", "MonteCLoRA samples its matrices", ALONE),
    ("arrow_config", "Arrow chooses among several adapters for each token", ALONE),
)
STACKED = "it trains stacked experts, for which upstream has no place"
# All keys of PEFT 0.21.2's LoraConfig that say nothing of how the matrices act, or that are looked at here or for their scale.
KNOWN = frozenset(key for key, _, _ in UNTRUE) | frozenset(
    """
    alora_invocation_tokens alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config
    exclude_modules inference_mode init_lora_weights invocation_string layers_pattern layers_to_transform loftq_config lora_alpha
    lora_dropout lora_ga_config megatron_config megatron_core peft_type peft_version qalora_group_size r rank_pattern revision
    runtime_config target_modules target_parameters task_type use_rslora velora_config
    """.split()  # noqa: SIM905 - as for the environment of a child, a list of quoted words is harder to read
)
ACTIVATED = (
    "an activated LoRA: llama.cpp's server switches it on one token before its invocation sequence, PEFT at its first token, so "
    "answers can differ"
)
# Kinds of PEFT that train the prompt, or whose effect depends on the input: there is nothing to merge.
UNMERGED = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
    "XLORA", "POLY", "LILY", "SHADOW",
)  # fmt: skip
# These start from matrices that they first take out of the base: the adapter as it is fits the base that was left.
CHANGED_BASE = re.compile(r"(?i)pissa|olora|corda|lora_ga")


def check(adapter: Path, base: Path, name: str, base_name: str, script: Path | None = None) -> Scales:
    """The scales of the adapter in one folder for the base in another, as PEFT would apply it.

    Raises OrchestrateError when it cannot have been trained on that base, or cannot act in a GGUF as it was trained to;
    whether the tag knows of some kinds is told by its script, once that is here.
    """
    config, base_config = read_json(adapter / "adapter_config.json"), read_json(base / "config.json")
    header = safetensors_header(adapter / "adapter_model.safetensors")
    tensors = {key: value for key, value in header.items() if key != "__metadata__"}
    shapes = {key: tuple(value["shape"]) for key, value in tensors.items()}
    refuse(config, shapes, name)
    if tensor := stacked(config, shapes):
        raise _cannot(name, [(f"{STACKED} ({quoted(tensor)})", MERGE)])
    if script and config.get("alora_invocation_tokens") and "alora_invocation_tokens" not in script.read_text(encoding="utf-8"):
        raise _cannot(
            name, [("it is an activated LoRA (alora_invocation_tokens), which this tag does not know", "pin a newer tag")]
        )
    if reason := mismatch(shapes, base_config) or vocabulary(shapes, base_config):
        raise OrchestrateError(
            f"the adapter {name} was not trained on {base_name}: {reason}",
            f"list it under its own base; adapter_config.json names {quoted(config.get('base_model_name_or_path') or 'no base')}",
        )
    if head := tied(shapes, base_config):
        raise _cannot(name, [(f"it changes {head}, and {base_name} has one matrix for both ends of its vocabulary", MERGE)])
    found_scales = adapter_scaling.scales(adapter_scaling.read(config, name), tensors, name)
    notes = (*found_scales.notes, *quantized(config, base_config, base_name), *outside(shapes), *doubts(config))
    return msgspec.structs.replace(found_scales, notes=notes)


def refuse(config: Mapping[str, Any], names: Iterable[str], name: str) -> None:
    """Raise OrchestrateError for an adapter that upstream would convert without complaint into one that acts wrongly."""
    kind = str(config.get("peft_type") or "LORA")
    if kind != "LORA":
        raise _cannot(name, [(f"it is of the type {quoted(kind)}, not LORA", ALONE if kind in UNMERGED else MERGE)])
    reasons = [(words, way) for key, words, way in UNTRUE if config.get(key)]
    if str(config.get("bias") or "none") != "none":
        reasons.append(("it trains biases", MERGE))
    start = str(config.get("init_lora_weights"))
    if CHANGED_BASE.match(start):
        reasons.append(
            (f"it was started with {quoted(start)}, which changes the base, and was not converted when it was saved", INITIAL)
        )
    if start.lower() == "loftq":
        reasons.append(
            ("LoftQ changed the base", "convert the base that was saved with it, or merge both in PEFT and convert that")
        )
    strays = [key for key in sorted(names) if not adapter_scaling.MATRIX.fullmatch(key) and ".base_layer." not in key]
    if strays and not reasons:
        words, way = matched(strays[0], table("models", "stray", MERGE=MERGE))
        reasons = [(f"{words} ({quoted(strays[0])})", way)]
    if reasons:
        raise _cannot(name, reasons)


def stacked(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The parameter of stacked experts that an adapter trains; "" for none, or a router, whose one matrix PEFT lists there too.

    PEFT names parameters that are no module's weight, and gives the matrices of stacked ones a rank for each expert.
    """
    targets = [str(target) for target in config.get("target_parameters") or ()]
    if bare := next((target for target in targets if not target.endswith("weight")), ""):
        return bare
    ranks = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
    whole = (key for key, shape in sorted(shapes.items()) if key.endswith(".lora_A.weight") and shape[0] not in ranks)
    return next(whole, "") if targets else ""


def doubts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on an adapter that acts otherwise elsewhere, or may: keys that are set and that nothing here knows."""
    lines = [ACTIVATED] if config.get("alora_invocation_tokens") else []
    if strange := unknown(config):
        names = ", ".join(quoted(key) for key in strange[:5])
        lines.append(f"adapter_config.json sets what nothing here knows ({names}): PEFT may apply it otherwise than llama.cpp")
    return tuple(lines)


def unknown(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of an adapter's config that are set, and that nothing here knows."""
    return tuple(key for key in sorted(config) if key not in KNOWN and config[key] not in (None, False, "", 0, [], {}))


def _cannot(name: str, reasons: list[tuple[str, str]]) -> OrchestrateError:
    ways = list(dict.fromkeys(way for _, way in reasons))
    # Whoever cannot merge for one reason cannot merge at all; a merge settles all other reasons together.
    way = ALONE if ALONE in ways else MERGE if MERGE in ways else ways[0]
    why = "; ".join(words for words, _ in reasons)
    return OrchestrateError(f"the adapter {name} cannot become a GGUF adapter that acts as it was trained to: {why}", way)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a config that hold for the text model: a nested one's go first."""
    return {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else config


def mismatch(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str:
    """The contradiction of an adapter's tensors to a base's config, in words; "" when nothing certainly is one."""
    inner = text_config(config)
    layers, hidden, sizes = inner.get("num_hidden_layers"), inner.get("hidden_size"), _sizes(inner)
    for key in sorted(shapes):
        match = LAYER.search(key)
        if not match or OUTSIDE.search(key):
            continue
        layer, module, matrix = int(match[1]), match[2], match[3]
        if isinstance(layers, int) and layer >= layers:
            return f"it has a layer {layer}, the base has {layers} layers"
        if sizes and module not in MODULES:
            return f"it changes {module} in layer {layer}, the base is a {inner['model_type']} and has no such module"
        for axis, length in enumerate(shapes[key]):
            spot = (module, matrix, axis)
            if spot in HIDDEN and isinstance(hidden, int) and length != hidden:
                return f"{module} of layer {layer} has {length} where the base's hidden size is {hidden}"
            if (due := sizes.get(INNER.get(spot, ""))) not in (None, length):
                return f"{module} of layer {layer} has {length} where the base's {INNER[spot]} have {due}"
    return ""


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The inner sizes of a plain family, where its config gives them; what it leaves to a default is not certain."""
    if config.get("model_type") not in PLAIN:
        return {}
    keys = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_size")
    heads, pairs, width, inner, hidden = (config.get(key) if isinstance(config.get(key), int) else None for key in keys)
    if not width and heads and hidden and config["model_type"] in ("llama", "mistral", "qwen2", "granite"):
        width = hidden // heads
    sizes = {"heads": heads and width and heads * width, "key-value heads": pairs and width and pairs * width}
    return {name: size for name, size in (sizes | {"feed-forward": inner}).items() if size}


def vocabulary(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str:
    """The contradiction of an adapter's matrices for the ends of the vocabulary to the base's size; "" when there is none."""
    entries = text_config(config).get("vocab_size")
    for key, shape in sorted(shapes.items()):
        whole = ".base_layer." in key or key.endswith("lm_head.lora_B.weight")
        rows = shape[0] if whole else shape[1] if key.endswith("lora_embedding_A") else entries
        if any(end in key for end in VOCABULARY) and isinstance(entries, int) and rows != entries:
            return f"its vocabulary has {rows} entries, the base's {entries}"
    return ""


def tied(names: Iterable[str], config: Mapping[str, Any]) -> str:
    """The end of a tied vocabulary that an adapter changes: in a GGUF both ends would change, or none; "" is good."""
    inner = text_config(config)
    changed = next((end for end in VOCABULARY for key in names if f"{end}.lora_" in key), "")
    is_tied = inner.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return changed if is_tied or (is_tied is None and inner.get("model_type") not in UNTIED) else ""


def outside(names: Iterable[str]) -> tuple[str, ...]:
    """Notes on an adapter that also changes parts for images or sound."""
    modules = [key for key in sorted(names) if OUTSIDE.search(key) and ".lora_B" in key]
    if not modules:
        return ()
    first = quoted(modules[0])
    return (f"{len(modules)} modules for images or sound stay out, a GGUF adapter changes the text model alone: {first}, ...",)


def quantized(config: Mapping[str, Any], base: Mapping[str, Any], base_name: str) -> tuple[str, ...]:
    """Notes on an adapter trained on a bitsandbytes copy of its base; OrchestrateError if that is the base."""
    how = base.get("quantization_config")
    trained_on = str(config.get("base_model_name_or_path") or "")
    if isinstance(how, dict) and (
        how.get("quant_method") == "bitsandbytes" or how.get("load_in_4bit") or how.get("load_in_8bit")
    ):
        raise OrchestrateError(
            f"{base_name} is quantized with bitsandbytes, which upstream cannot convert",
            "name the original model as the base: the adapter fits it",
        )
    if re.search(r"(?i)\bbnb\b|bitsandbytes", trained_on.replace("_", "-")):
        return (f"trained on {quoted(trained_on)}, a bitsandbytes copy; used with {base_name}",)
    return ()
