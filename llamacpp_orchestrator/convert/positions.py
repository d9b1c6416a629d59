"""Whether an output turns and hides positions as its source's config.json says: rope, its scaling, windows and their pattern."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import runtime
from llamacpp_orchestrator.convert.config_keys import Text
from llamacpp_orchestrator.convert.config_keys import numbers
from llamacpp_orchestrator.util.findings import Findings

Values = Mapping[str, Any]
Factors = Mapping[str, tuple[float, ...]]
CLOSE = 1e-4
BASES = ("rope_theta", "global_rope_theta", "rotary_emb_base")
LOCAL_BASES = ("rope_local_base_freq", "local_rope_theta", "swa_rope_theta")
PARTS = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent")
SEEING = ("sliding_attention", "chunked_attention", "local_attention")
LONG, SHORT, SCALED = TENSORS = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
# What the runtime takes where a file has no such key (llama-model.cpp, llama-hparams.h).
BASE = 10000.0


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """What a config says about rope, in whichever spelling: of layers that see all, and of those with a window."""

    full: dict[str, Any]
    sliding: dict[str, Any]


def rope(text: Text) -> Rope:
    """Transformers 5 has all in `rope_parameters`, or one such for each kind of layer; 4 at the top and in `rope_scaling`."""
    inner = text.get("rope_parameters") or text.get("rope_scaling")
    inner = inner if isinstance(inner, dict) else {}
    by_kind = {name: each for name, each in inner.items() if isinstance(each, dict)}
    full = dict(by_kind.get("full_attention", {}) if by_kind else inner)
    sliding = dict(by_kind.get("sliding_attention", {}))
    full.setdefault("rope_type", full.get("type"))
    tops = (("rope_theta", BASES, full), ("rope_theta", LOCAL_BASES, sliding), ("partial_rotary_factor", PARTS, full))
    for to, keys, part in tops:
        value = next((text[key] for key in keys if numbers(text.get(key))), None)
        if part.get(to) is None and value is not None:
            part[to] = value
    if text.get("original_max_position_embeddings"):
        full.setdefault("original_max_position_embeddings", text["original_max_position_embeddings"])
    return Rope(full=full, sliding=sliding)


def compare(text: Text, architecture: str, values: Values, factors: Factors) -> Findings:
    """Rope and windows; a scaling that is of no kind that we know, and a window that the runtime lacks, are notes."""
    asked = rope(text)
    turned = architecture not in runtime.WITHOUT_ROPE
    failures = [*_bases(asked, architecture, values), *_part(asked, text, values)] if turned else []
    found = Findings(failures=tuple(failures)) + _window(text, architecture, values)
    return found + (_scaling(asked.full, text, architecture, values, factors) if turned else Findings())


def _differ(mine: Any, theirs: Any) -> bool:
    one, other = numbers(mine), numbers(theirs)
    return bool(other) and not (one and abs(one[0] - other[0]) <= CLOSE * abs(other[0]))


def _told(key: str, values: Values, default: Any, due: Any, what: str) -> str:
    mine = f"its {key} is {values[key]}" if key in values else f"it has no {key}, for which the runtime takes {default}"
    return f"{mine}, where config.json says {due} ({what})"


def _bases(asked: Rope, architecture: str, values: Values) -> Iterator[str]:
    base = values.get("rope.freq_base", BASE)
    if "alpha" not in asked.full and _differ(base, asked.full.get("rope_theta")):
        yield _told("rope.freq_base", values, BASE, asked.full["rope_theta"], "rope_theta")
    default = base if architecture in runtime.ONE_BASE else BASE
    windowed = architecture in runtime.PATTERN and values.get("attention.sliding_window")
    if windowed and _differ(values.get("rope.freq_base_swa", default), asked.sliding.get("rope_theta")):
        yield _told("rope.freq_base_swa", values, default, asked.sliding["rope_theta"], "rope_theta of layers with a window")


def unwritten(text: Text, architecture: str, methods: frozenset[str]) -> tuple[str, ...]:
    """That a config's base of rope would be lost: the script of a tag calls the writer's `methods`, and none that writes it."""
    base = rope(text).full.get("rope_theta")
    known = architecture in runtime.PROVEN and architecture not in runtime.WITHOUT_ROPE and methods
    if not known or "add_rope_freq_base" in methods or not _differ(BASE, base):
        return ()
    return (
        f"config.json says rope_theta {runtime.shown(base)}, where {architecture} of llama.cpp has {BASE:g} unless it is told",
    )


def _head(text: Text, values: Values) -> int:
    heads = max(numbers(values.get("attention.head_count")), default=0)
    size = numbers(values.get("attention.key_length"))
    return int(size[0] if size else values.get("embedding_length", 0) // heads if heads else 0)


def _part(asked: Rope, text: Text, values: Values) -> Iterator[str]:
    part, head = numbers(asked.full.get("partial_rotary_factor")), _head(text, values)
    if part and head and not text.get("qk_rope_head_dim"):
        mine, due = values.get("rope.dimension_count", head), part[0] * head
        # An odd number of dimensions cannot be turned; who rounds how differs by one or two.
        if isinstance(mine, int) and abs(mine - due) >= 2:
            yield _told("rope.dimension_count", values, head, f"{part[0]:g} of {head}", "partial_rotary_factor")


def _scaling(full: dict[str, Any], text: Text, architecture: str, values: Values, factors: Factors) -> Findings:
    kind = str(full.get("rope_type") or "default")
    if kind in ("default", "mrope"):
        return Findings(failures=tuple(_unscaled(architecture, values, factors)))
    if kind == "linear":
        return Findings(failures=tuple(_plain("rope.scaling.factor", full, "factor", 1.0, values)))
    if kind == "yarn":
        return Findings(failures=tuple(_yarn(full, architecture, values)))
    if kind == "llama3":
        due = llama3(full, values, _head(text, values))
        return Findings(failures=tuple(_factors(SCALED, due, factors, "llama3")))
    if kind in ("longrope", "su"):
        lists = ((LONG, "long_factor"), (SHORT, "short_factor"))
        told = [each for name, key in lists for each in _factors(name, numbers(full.get(key)), factors, key)]
        told += _original(full, values)
        return Findings(failures=tuple(told))
    if kind == "dynamic":  # it begins only where a text is longer than those of the training
        return Findings(notes=("config.json scales rope with the length of the text, which the runtime does not do by itself",))
    return Findings(notes=(f"config.json scales rope in the way {kind!r}, which was not compared",))


def _unscaled(architecture: str, values: Values, factors: Factors) -> Iterator[str]:
    kind, factor = values.get("rope.scaling.type", "none"), values.get("rope.scaling.factor", 1.0)
    if kind not in ("none", "linear") or _differ(factor, 1.0):
        yield f"its rope is scaled ({kind}, {factor}), where config.json says nothing of that"


def _plain(key: str, full: dict[str, Any], what: str, default: Any, values: Values) -> Iterator[str]:
    if _differ(values.get(key, default), full.get(what)):
        yield _told(key, values, default, full[what], what)


def _original(full: dict[str, Any], values: Values) -> Iterator[str]:
    context = values.get("context_length")
    yield from _plain("rope.scaling.original_context_length", full, "original_max_position_embeddings", context, values)


def _yarn(full: dict[str, Any], architecture: str, values: Values) -> Iterator[str]:
    if values.get("rope.scaling.type") != "yarn":
        yield _told("rope.scaling.type", values, "linear", "yarn", "rope_type")
        return
    yield from _plain("rope.scaling.factor", full, "factor", 1.0, values)
    yield from _original(full, values)
    yield from _plain("rope.scaling.yarn_beta_fast", full, "beta_fast", 32.0, values)
    yield from _plain("rope.scaling.yarn_beta_slow", full, "beta_slow", 1.0, values)
    every = numbers(full.get("mscale_all_dim"))
    if architecture == "deepseek2" and every and _differ(values.get("rope.scaling.yarn_log_multiplier", 0.0), every[0] / 10):
        yield _told("rope.scaling.yarn_log_multiplier", values, 0.0, every[0] / 10, "a tenth of mscale_all_dim")


def llama3(full: dict[str, Any], values: Values, head: int) -> tuple[float, ...]:
    """By how much each frequency is divided (transformers' modeling_rope_utils.py, LlamaModel of upstream); () in doubt."""
    keys = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    found = [numbers(full.get(key)) for key in keys]
    size = int(values.get("rope.dimension_count", head))
    if not size or not all(each and each[0] > 0 for each in found) or found[2] == found[3]:
        return ()
    base, factor, low, high, context = (each[0] for each in found)
    divided = []
    for at in range(0, size, 2):
        length = 2 * math.pi * base ** (at / size)
        share = (context / length - low) / (high - low)
        divided.append(1.0 if share > 1 else factor if share < 0 else 1 / ((1 - share) / factor + share))
    return tuple(divided)


def _factors(name: str, due: tuple[float, ...], factors: Factors, what: str) -> Iterator[str]:
    mine = factors.get(name)
    if mine is None:
        yield f"it has no {name}, where config.json scales rope ({what}): the runtime would not scale at all"
    elif due and (len(mine) != len(due) or any(map(_differ, mine, due))):
        yield f"the numbers of {name} are not those of config.json ({what})"


def _window(text: Text, architecture: str, values: Values) -> Findings:
    key = {"modern-bert": "local_attention", "llama4": "attention_chunk_size"}.get(architecture, "sliding_window")
    size = text.get(key)
    if not isinstance(size, int) or size <= 0 or text.get("use_sliding_window") is False:
        return Findings()
    if architecture not in runtime.WINDOWED:
        context = text.get("max_position_embeddings")
        if isinstance(context, int) and size >= context:
            return Findings()
        told = f"config.json lets tokens see {size} others ({key}), llama.cpp's {architecture} all: long texts get other answers"
        return Findings(notes=(told,))
    default = 8192 if architecture == "llama4" else 0
    if _differ(values.get("attention.sliding_window", default), size):
        return Findings(failures=(_told("attention.sliding_window", values, default, size, key),))
    return Findings(failures=tuple(_pattern(text, architecture, values)))


def _pattern(text: Text, architecture: str, values: Values) -> Iterator[str]:
    """Which layers have a window, where both sides tell."""
    count, default = values.get("block_count"), runtime.PATTERN.get(architecture)
    if not isinstance(count, int) or not default:
        return
    period, first = default
    have = values.get("attention.sliding_window_pattern", period)
    mine = [bool(each) for each in have] if isinstance(have, list) else periodic(have, first, count)
    due = _layers(text, first, count)
    if due and due != mine[: len(due)]:
        at = next((at for at, (one, other) in enumerate(zip(mine, due, strict=False)) if one != other), len(mine))
        sees = "all" if mine[at : at + 1] == [False] else "a window"
        yield f"layer {at} sees {sees}, where config.json says otherwise (layer_types)"


def periodic(period: int, first: bool, count: int) -> list[bool]:
    """For each layer whether it has a window, one in each period having none (llama_hparams::set_swa_pattern)."""
    return [period == 0 or (at % period != 0 if first else at % period < period - 1) for at in range(count)]


def _layers(text: Text, first: bool, count: int) -> list[bool]:
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and kinds:
        return [kind in SEEING for kind in kinds]
    keys = ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
    period = next((text[key] for key in keys if type(text.get(key)) is int), 0)
    return periodic(period, first, count) if period else []
