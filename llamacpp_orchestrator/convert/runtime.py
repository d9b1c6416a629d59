"""What llama.cpp does by itself for each architecture, whatever a GGUF says; source: src/models/*.cpp, as of b11434."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What an activation is called in a config → what the runtime has; its GELU is the one by tanh, and taken for all of that kind.
KINDS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu",
    "gelu_python": "gelu", "gelu_python_tanh": "gelu", "gelu_accurate": "gelu", "relu": "relu", "relu2": "relu2",
    "relu_squared": "relu2", "xielu": "xielu",
}  # fmt: skip
_ACTIVATIONS = {
    "silu": (
        "afmoe arctic baichuan bailingmoe bailingmoe2 bitnet chatglm cohere2 command-r dbrx deci deepseek deepseek2 dots1 "
        "dream ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon-h1 glm4 glm4moe gpt-oss granite granitehybrid "
        "granitemoe grovemoe hunyuan-dense hunyuan-moe internlm2 jamba lfm2 lfm2moe llada llada-moe llama llama4 mamba "
        "mamba2 mellum minicpm minicpm3 minimax-m2 mistral3 olmo olmo2 olmoe orion phi3 phimoe plamo qwen2 qwen2moe "
        "qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe rnd1 seed_oss smollm3 stablelm xverse"
    ),
    "gelu": (
        "bert falcon gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 gpt2 gptneox modern-bert nomic-bert-moe phi2 "
        "starcoder starcoder2"
    ),
    "relu2": "arcee nemotron nemotron_h nemotron_h_moe",
    "relu": "smallthinker",
    "xielu": "apertus",
}
ACTIVATION = {name: kind for kind, names in _ACTIVATIONS.items() for name in names.split()}
ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function", "activation")

# Keys of a config that say in what way a model is computed, where the runtime knows one way only.
_NORMALIZED, _PLAIN = {"norm_topk_prob": True}, {"norm_topk_prob": False}
FIXED: dict[str, dict[str, Any]] = {
    "bert": {"position_embedding_type": "absolute"},
    "bloom": {"apply_residual_connection_post_layernorm": False},
    "deepseek": _PLAIN,
    "falcon": {"alibi": False},
    "gemma3n": {"altup_num_inputs": 4, "altup_active_idx": 0, "altup_correct_scale": True},
    "gpt-oss": {"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    "lfm2moe": _NORMALIZED,
    "llada-moe": _PLAIN,
    "llama4": {"no_rope_layer_interval": 4, "floor_scale": 8192, "attn_scale": 0.1},
    "minicpm3": {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    "olmoe": _PLAIN,
    "phi2": {"qk_layernorm": False},
    "qwen2moe": _PLAIN,
    "qwen35moe": _NORMALIZED,
    "qwen3moe": _NORMALIZED,
    "qwen3next": _NORMALIZED,
    "qwen3vlmoe": _NORMALIZED,
    "rnd1": _NORMALIZED,
    "smollm3": {"no_rope_layer_interval": 4},
    "starcoder": {"scale_attn_weights": True},
    "t5": {"relative_attention_max_distance": 128},
}

# No positions by rotation at all (llama_model_rope_type), and those that must turn the whole head ("invalid n_rot").
# Architectures of which tiny models were converted at several tags and compared: there a difference is no way of upstream's.
_PROVEN = (
    "afmoe apertus arcee bert bloom cohere2 command-r deepseek2 dots1 ernie4_5 ernie4_5-moe exaone4 falcon falcon-h1 gemma "
    "gemma2 gemma3 gemma3n glm4 glm4moe gpt-oss gpt2 gptneox granite granitehybrid granitemoe hunyuan-dense jais2 jamba lfm2 "
    "lfm2moe llama llama4 mamba mamba2 mistral3 modern-bert mpt nemotron olmo olmo2 olmoe phi2 phi3 qwen2 qwen2moe qwen3 "
    "qwen3moe qwen3next seed_oss smollm3 stablelm starcoder starcoder2 t5"
)
PROVEN = frozenset(_PROVEN.split())
WITHOUT_ROPE = frozenset((
    "gpt2", "gptj", "mpt", "refact", "bloom", "mamba", "mamba2", "jamba", "jina-bert-v2", "t5", "t5encoder", "jais", "rwkv6",
    "rwkv6qwen2", "rwkv7", "arwkv7", "nemotron_h", "nemotron_h_moe", "kimi-linear", "bert",
))  # fmt: skip
WHOLE_HEAD = frozenset(("llama", "deci", "falcon", "llama-embed"))
# Which layers look through a window when the file does not say: (period, whether the first of each is the one that sees all).
PATTERN = {
    "afmoe": (4, False), "cohere2": (4, False), "exaone-moe": (4, False), "exaone4": (4, False), "gemma-embedding": (6, False),
    "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "gpt-oss": (2, False), "mellum": (4, False),
    "modern-bert": (3, True), "olmo2": (4, False), "plamo3": (8, False), "smallthinker": (4, True),
}  # fmt: skip
# Other architectures with a window; all the rest see everything, as Phi 3 does in spite of its key.
WINDOWED = frozenset((*PATTERN, "gemma4", "llama4", "lfm2", "mimo2", "step35", "laguna", "cohere2moe"))
# Layers with a window turn by the base of all others where the file has none for them, in other architectures by 10000.
ONE_BASE = frozenset((
    "afmoe", "cohere2", "cohere2moe", "exaone-moe", "exaone4", "gemma2", "gpt-oss", "laguna", "llama4", "mellum", "olmo2",
    "smallthinker",
))  # fmt: skip
# Architectures whose attention is scaled by a size that the runtime works out, and the number of layers of their 27B, which
# has it from the embedding (gemma2.cpp, gemma3.cpp).
SCALED = {"gemma2": 46, "gemma3": 62, "gemma-embedding": 0}


def impossible(architecture: str, text: Mapping[str, Any], read: frozenset[str]) -> tuple[str, ...]:
    """What a config asks for and no GGUF of this architecture can say; the tag's script may `read` a key in its own way."""
    found = [*_activation(architecture, text), *_fixed(architecture, text), *_attention(architecture, text)]
    found = [(key, value, only) for key, value, only in (*found, *_rotary(architecture, text)) if key not in read]
    return tuple(
        f"config.json says {key} {shown(value)}, where {architecture} of llama.cpp has {shown(only)}"
        for key, value, only in (*found, *_caps(architecture, text))
    )


def shown(value: Any) -> str:
    """A value of a config for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _activation(architecture: str, text: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    if architecture in ("t5", "t5encoder"):
        kind = text.get("feed_forward_proj")
        known = ("relu", "gated-gelu")
        return [("feed_forward_proj", kind, " or ".join(known))] if isinstance(kind, str) and kind not in known else []
    key = next((key for key in ACTIVATION_KEYS if isinstance(text.get(key), str)), "")
    kind, only = KINDS.get(str(text.get(key)), ""), ACTIVATION.get(architecture)
    return [(key, text[key], only)] if kind and only and kind != only else []


def _fixed(architecture: str, text: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    only = FIXED.get(architecture, {})
    found = [(key, text[key], value) for key, value in only.items() if text.get(key) is not None and text[key] != value]
    turned = text.get("no_rope_layers")
    due = [int(at % 4 != 3) for at in range(len(turned))] if isinstance(turned, list) else turned
    if "no_rope_layer_interval" in only and turned != due:
        found.append(("no_rope_layers", turned, "every fourth without rope"))
    return found


def _attention(architecture: str, text: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    scalar, size = text.get("query_pre_attn_scalar"), attention_size(architecture, text)
    differs = isinstance(scalar, (int, float)) and size and scalar != size
    return [("query_pre_attn_scalar", scalar, size)] if differs else []


def _caps(architecture: str, text: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    caps = ("attn_logit_softcapping", "final_logit_softcapping") if architecture == "gemma2" else ()
    return [(key, "null", "a cap always") for key in caps if key in text and text[key] is None]


def attention_size(architecture: str, text: Mapping[str, Any]) -> int | None:
    """The size whose root divides the scores of attention, where the runtime and not the file decides it."""
    head, width, heads = (text.get(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if architecture not in SCALED or not isinstance(head, int):
        return None
    if text.get("num_hidden_layers") == SCALED[architecture]:
        return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None
    return head


def _rotary(architecture: str, text: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    inner = text.get("rope_parameters")
    part = {**text, **(inner if isinstance(inner, dict) else {})}.get("partial_rotary_factor")
    whole = architecture not in WHOLE_HEAD or not isinstance(part, (int, float)) or part == 1
    return [] if whole else [("partial_rotary_factor", part, "the whole head")]
