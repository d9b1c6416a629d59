"""config.json as older readers know it: rope, numbers of experts, sizes that are null, ids of the end of a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.translation import Json
from llamacpp_orchestrator.translation import Read
from llamacpp_orchestrator.translation import Reader
from llamacpp_orchestrator.translation import Rule

CONFIG = "config.json"
OUTER_CONTEXT = 8192  # what b3878 takes for it where config.json has none
# Types with rope that transformers 4.57.6 knows by classes of its own, in which it fills in what it does not find; what it does
# not know it leaves to the script, which reads config.json as it is. (Its CONFIG_MAPPING, and the configs within.)
OF_FOUR = frozenset(Path(__file__).with_name("known_to_4.txt").read_text(encoding="ascii").split())
# Where a family had a name of its own for a number of rope (transformers 4.57, its configuration_*.py).
ROPE_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert": {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"},
}
# Families that want no key in `rope_scaling` but these, by its kind (the same files, their _rope_scaling_validation).
EXACT = {
    ("phi3", "longrope"): ("type", "short_factor", "long_factor"),
    **{(family, "linear"): ("type", "factor") for family in ("olmo", "olmo2", "chameleon")},
}
# Families whose number of experts bore another name than `num_local_experts`, which they share since.
EXPERTS = dict.fromkeys(("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text", "qwen3_omni_moe_talker_text"), "num_experts")
LAYERS = {"linear_attention": "mamba", "full_attention": "attention"}


def within(config: Json, change: Callable[[Json], Json]) -> Json:
    """A config with a change made to it and to the configs within it; the same object where nothing changes."""
    changed = change(config)
    for name, part in changed.items():
        if name.endswith("_config") and isinstance(part, dict) and (inner := within(part, change)) is not part:
            changed = {**changed, name: inner}
    return changed


def _on_config(change: Callable[[Json], Json]) -> Callable[[Read], Json]:
    def files(read: Read) -> Json:
        config = read(CONFIG)
        changed = within(config, change) if isinstance(config, dict) else config
        return {} if changed is config else {CONFIG: changed}

    return files


def outer_rope(config: Json) -> Json:
    """`rope_parameters` as `rope_theta`, `rope_scaling` and their kind; one a layer type gives the base of the sliding layers."""
    nested, family = config.get("rope_parameters"), str(config.get("model_type"))
    if not isinstance(nested, dict) or "rope_theta" in config or "rope_scaling" in config:
        return config
    layers = {name: value for name, value in nested.items() if name.endswith("_attention") and isinstance(value, dict)}
    rope = layers.get("full_attention", next(iter(layers.values()), nested))
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    outer = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    # `axial` is a new name for what image encoders have always done.
    if scaling and scaling != {"rope_type": "default"} and scaling.get("rope_type") != "axial":
        outer["rope_scaling"] = scaling
    # One base for all layers was said once, by families that had only that.
    local = layers.get("sliding_attention", {}).get("rope_theta")
    if local is not None and (local != rope.get("rope_theta") or family.startswith(("gemma3", "modernbert"))):
        outer["rope_local_base_freq"] = local
    names = ROPE_NAMES.get(family, {})
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    return {**rest, **{names.get(key, key): value for key, value in outer.items()}}


def own_names(config: Json) -> Json:
    """Numbers of rope at the top under the names that a family had for them."""
    names = ROPE_NAMES.get(str(config.get("model_type")), {})
    if names.keys().isdisjoint(config) or not set(names.values()).isdisjoint(config):
        return config
    return {names.get(key, key): value for key, value in config.items() if key != "rope_parameters"}


def exact_scaling(config: Json) -> Json:
    """`rope_scaling` with no more keys than the family takes."""
    scaling = config.get("rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else ""
    keys = EXACT.get((str(config.get("model_type")), str(kind)))
    if not keys or not isinstance(scaling, dict) or "rope_type" not in scaling:
        return config
    return {**config, "rope_scaling": {key: scaling.get(key, kind) for key in keys if key in scaling or key == "type"}}


def typed_scaling(config: Json) -> Json:
    """`rope_scaling` with the key `type`, which `rope_type` was called before; llama3 never had the older name."""
    scaling = config.get("rope_scaling")
    kind = scaling.get("rope_type") if isinstance(scaling, dict) else None
    if not isinstance(scaling, dict) or kind in (None, "llama3", "default") or "type" in scaling:
        return config
    return {**config, "rope_scaling": {**scaling, "type": kind}}


def outer_context(config: Json) -> Json:
    """The context that llama3's scaling begins from, beside `rope_scaling` too."""
    scaling = config.get("rope_scaling")
    name = "original_max_position_embeddings"
    context = scaling.get(name, OUTER_CONTEXT) if isinstance(scaling, dict) and scaling.get("rope_type") == "llama3" else None
    return config if context is None or context == config.get(name, OUTER_CONTEXT) else {**config, name: context}


def without_null(config: Json) -> Json:
    """No `head_dim` rather than null, from which llama3's scaling would be worked out."""
    scaling = config.get("rope_scaling")
    if config.get("head_dim", 0) is not None or not isinstance(scaling, dict) or scaling.get("rope_type") != "llama3":
        return config
    return {key: value for key, value in config.items() if key != "head_dim"}


def named_experts(config: Json) -> Json:
    """The number of experts under the name that the family had for it."""
    name, count = EXPERTS.get(str(config.get("model_type")), ""), config.get("num_local_experts")
    if not name or count is None or name in config:
        return config
    return {name if key == "num_local_experts" else key: value for key, value in config.items()}


def one_end(read: Read, reader: Reader) -> Json:
    """One end of a text for a list of them, where no tokenizer.json tells which it is: the tokenizer's own, or the first."""
    config, tokenizer = read(CONFIG), read("tokenizer_config.json") or {}
    ends = config.get("eos_token_id") if isinstance(config, dict) else None
    if not isinstance(ends, list) or not ends or read("tokenizer.json") is not None:
        return {}
    named = {token.get("content"): number for number, token in _decoder(tokenizer).items() if isinstance(token, dict)}
    end = tokenizer.get("eos_token")
    chosen = named.get(end.get("content") if isinstance(end, dict) else end)
    return {CONFIG: {**config, "eos_token_id": chosen if chosen in ends else ends[0]}}


def _decoder(tokenizer: Json) -> dict[int, Any]:
    tokens = tokenizer.get("added_tokens_decoder")
    return {int(key): token for key, token in tokens.items() if key.isdecimal()} if isinstance(tokens, dict) else {}


def older_layers(config: Json) -> Json:
    """The types of a hybrid's layers by their older names."""
    layers = config.get("layer_types")
    if config.get("model_type") != "granitemoehybrid" or not isinstance(layers, list) or set(layers).isdisjoint(LAYERS):
        return config
    return {**config, "layer_types": [LAYERS.get(layer, layer) for layer in layers]}


def scored_experts(config: Json) -> Json:
    """How DeepSeek V3's router scores experts, which its class has always done so and its config need not say."""
    silent = config.get("model_type") == "deepseek_v3" and "scoring_func" not in config
    return {**config, "scoring_func": "sigmoid"} if silent else config


def own_head(config: Json) -> Json:
    """Whether T5 shares its head: transformers 5 says it by whether the decoder's outputs are scaled."""
    scaled = config.get("scale_decoder_outputs")
    changed = config.get("model_type") == "t5" and isinstance(scaled, bool) and scaled != config.get("tie_word_embeddings")
    return {**config, "tie_word_embeddings": scaled} if changed else config


def plain_floats(config: Json) -> Json:
    """Infinity as Python's JSON has it, for the object that transformers 5 writes instead."""
    changed = {key: _plain(value) for key, value in config.items() if isinstance(value, (dict, list)) and _plain(value) != value}
    return {**config, **changed} if changed else config


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value["__float__"]) if isinstance(value, dict) and value.keys() == {"__float__"} else value


def _unless_known(change: Callable[[Json], Json], mark: str) -> Callable[[Read, Reader], Json]:
    files = _on_config(change)
    return lambda read, reader: {} if mark in reader.knows else files(read)


def _rope(read: Read, reader: Reader) -> Json:
    def change(config: Json) -> Json:
        older = "rope_parameters" not in reader.knows or (reader.before(5) and config.get("model_type") in OF_FOUR)
        return outer_rope(config) if older else config

    return _on_config(change)(read)


def _before_five(change: Callable[[Json], Json]) -> Callable[[Read, Reader], Json]:
    files = _on_config(change)
    return lambda read, reader: files(read) if reader.before(5) else {}


RULES = (
    Rule(
        name="rope_parameters as rope_theta and rope_scaling",
        since="transformers 5.0",
        source="transformers 5.23, modeling_rope_utils.py, against 4.57.6; llama.cpp b3878 knows the older keys only",
        apply=_rope,
    ),
    Rule(
        name="rope's numbers by the family's own names",
        since="transformers 5.0",
        source="transformers 5.23 against 4.57.6, configuration_gpt_neox.py",
        apply=_before_five(own_names),
    ),
    Rule(
        name="rope_scaling with no more keys than the family takes",
        since="transformers 5.0",
        source="transformers 4.57.6, configuration_phi3.py and its kind",
        apply=_before_five(exact_scaling),
    ),
    Rule(
        name="rope_scaling with its older key `type`",
        since="transformers 4.43",
        source="transformers 4.43, modeling_rope_utils.py; llama.cpp b3878 looks for `type`, but for llama3",
        apply=_unless_known(typed_scaling, "rope_parameters"),
    ),
    Rule(
        name="original_max_position_embeddings beside rope_scaling",
        since="transformers 4.43",
        source="llama.cpp b3878, LlamaModel.prepare_tensors",
        apply=lambda read, reader: _on_config(outer_context)(read) if "outer context" in reader.knows else {},
    ),
    Rule(
        name="no head_dim that is null",
        since="transformers 4.48",
        source="llama.cpp b3878, LlamaModel.prepare_tensors",
        apply=_unless_known(without_null, "rope_parameters"),
    ),
    Rule(
        name="the number of experts by its older name",
        since="transformers 5.0",
        source="transformers 5.23 against 4.57.6, configuration_qwen3_moe.py",
        apply=_before_five(named_experts),
    ),
    Rule(
        name="the types of layers by their older names",
        since="transformers 5.0",
        source="transformers 5.23 against 4.57.6, configuration_granitemoehybrid.py",
        apply=_before_five(older_layers),
    ),
    Rule(
        name="how experts are scored, which the class has fixed",
        since="transformers 4.50",
        source="transformers 5.23, modeling_deepseek_v3.py; without the key llama.cpp's runtime takes a softmax",
        apply=lambda read, reader: _on_config(scored_experts)(read),
    ),
    Rule(
        name="scale_decoder_outputs as tie_word_embeddings",
        since="transformers 5.0",
        source="transformers 5.23 against 4.57.6, configuration_t5.py",
        apply=_before_five(own_head),
    ),
    Rule(
        name="infinity as a number",
        since="transformers 5.0",
        source="transformers 5.23, configuration_utils.py",
        apply=_before_five(plain_floats),
    ),
    Rule(
        name="one eos_token_id for a list",
        since="transformers 4.40",
        source="llama.cpp, gguf-py/gguf/vocab.py, which takes whole numbers only",
        apply=one_end,
    ),
)
