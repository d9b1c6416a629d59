"""Comparison of an output's metadata with its source's config.json: the numbers that change results."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import config_keys
from llamacpp_orchestrator.convert import positions
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import runtime
from llamacpp_orchestrator.convert.capabilities import Decisions
from llamacpp_orchestrator.convert.config_keys import ALIKE
from llamacpp_orchestrator.convert.config_keys import RULES
from llamacpp_orchestrator.convert.config_keys import Rule
from llamacpp_orchestrator.convert.config_keys import Text
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify.gguf import Contents
from llamacpp_orchestrator.verify.numbers import Tensor

# Everything is float32 in a GGUF.
CLOSE = 1e-5
F32, CHUNK = 0, 1 << 20
ENCODERS = ("bert", "modern-bert")
# Where transformers keeps the matrix that turns numbers into tokens, and the one that turns tokens into numbers.
HEADS, EMBEDDINGS = ("lm_head.weight", "embed_out.weight"), ("embed_tokens.weight", "wte.weight", "embed_in.weight")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of an output by what follows the architecture in each key, and the numbers of its tensors about rope."""

    architecture: str
    values: dict[str, Any]
    factors: dict[str, tuple[float, ...]] = {}


def check(view: Path, have: Contents, tree: Path) -> Findings:
    """Compare an output with the config.json of its source; Mistral's own layout has none, and upstream reads that otherwise."""
    config = preflight.read_json(view / "config.json")
    if not config:
        return Findings(notes=("its source has no config.json, so its numbers were not compared",))
    ways = [capabilities.decisions(tree, name) for name in preflight.claimed(config)]
    model = of(have.metadata, {name: _floats(*have.tensors[name]) for name in positions.TENSORS if name in have.tensors})
    findings = compare(config, model, next((way for way in ways if way.read), Decisions()))
    return findings + _head(config, view, "output.weight" in have.tensors)


def _floats(path: Path, tensor: Tensor) -> tuple[float, ...]:
    if tensor.type != F32:
        return ()
    with path.open("rb") as file:
        file.seek(tensor.start)
        return struct.unpack(f"<{tensor.elements}f", file.read(tensor.size))


def of(metadata: Mapping[str, Any], factors: dict[str, tuple[float, ...]]) -> Model:
    """The numbers of an output as its metadata has them."""
    name = str(metadata.get("general.architecture"))
    values = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    return Model(architecture=name, values=values, factors=factors)


def _head(config: Text, view: Path, kept: bool) -> Findings:
    """Check that the head is the one that the source uses, where config and weights do not agree on that."""
    tied = {part.get("tie_word_embeddings") for part in config_keys.parts(config)}
    own, embedding = (_place(view, ends) for ends in (HEADS, EMBEDDINGS))
    if own is None or embedding is None or (kept and True not in tied) or _same_bytes(own, embedding):
        return Findings()
    if kept:
        line = "config.json says that head and embedding are one, and the weights have two: the output keeps both"
        return Findings(notes=(f"{line}, as transformers does from version 5 on; older ones drop the head",))
    if tied == {True} or False not in tied:
        return Findings(notes=("the head in the weights is another than the embedding; the output has the embedding for both",))
    line = "it has no head of its own (output.weight), and the source has one that is not its embedding (tie_word_embeddings)"
    return Findings(failures=(line,))


def _place(view: Path, ends: tuple[str, ...]) -> tuple[Path, int, int] | None:
    for path in sorted(view.glob("*.safetensors")):
        for name, value in safetensors.safetensors_header(path).items():
            if name.endswith(ends):
                begin = safetensors.data_begin(path)
                return path, *(begin + at for at in value["data_offsets"])
    return None


def _same_bytes(one: tuple[Path, int, int], other: tuple[Path, int, int]) -> bool:
    if one[2] - one[1] != other[2] - other[1]:
        return False
    with one[0].open("rb") as mine, other[0].open("rb") as theirs:
        mine.seek(one[1])
        theirs.seek(other[1])
        left = one[2] - one[1]
        while left > 0 and (part := mine.read(min(CHUNK, left))):
            if part != theirs.read(len(part)):
                return False
            left -= len(part)
    return True


def compare(config: Text, model: Model, upstream: Decisions) -> Findings:
    """Compare all that a config says, in either spelling; a difference that may be upstream's own way to say it is a note."""
    text = config_keys.flat(config)
    findings = Findings(failures=runtime.impossible(model.architecture, text, upstream.own))
    for rule in RULES:
        findings += _compared(rule, text, model, upstream)
    findings += _epsilon(text, model) + _manner(text, model)
    # What is turned where nothing is said of a part is the whole head, in architectures that we know.
    whole = {"partial_rotary_factor": 1.0} if model.architecture in runtime.PROVEN else {}
    turned = positions.compare({**whole, **text}, model.architecture, model.values, model.factors)
    if not whole and any(name.startswith(("rope_", "sliding_")) for name in upstream.written):
        turned = Findings(notes=turned.failures + turned.notes)
    return findings + turned + _unknown(text, upstream)


def _compared(rule: Rule, text: Text, model: Model, upstream: Decisions) -> Findings:
    values = config_keys.said(text, rule.keys)
    if not values or not values.keys().isdisjoint(runtime.FIXED.get(model.architecture, {})):
        return Findings()
    accepted = _accepted(rule, text, values, model)
    mine = model.values.get(rule.to)
    have = _absent(rule, model) if mine is None else mine
    if have is None or not accepted or any(_same(have, value) for value in accepted):
        return Findings()
    key, value = next(iter(values.items()))
    line = f"it has no {rule.to}, for which the runtime takes" if mine is None else f"its {rule.to} is"
    line += f" {runtime.shown(have)}, where config.json says {runtime.shown(value)} ({key})"
    certain = model.architecture in runtime.PROVEN or _untouched(rule, values, upstream)
    return Findings(failures=(line,)) if certain else Findings(notes=(line,))


def _untouched(rule: Rule, keys: dict[str, Any], upstream: Decisions) -> bool:
    """Tell whether only upstream's base class has a hand in this key, which takes over what the config says."""
    names = {rule.to.replace(".", "_"), rule.to.rpartition(".")[2]}
    return upstream.written.isdisjoint(names) and upstream.own.isdisjoint(keys)


def _accepted(rule: Rule, text: Text, named: dict[str, Any], model: Model) -> tuple[Any, ...]:
    alike = (model.architecture, rule.to)
    alike = alike if alike in ALIKE else (config_keys.ANY, rule.to)
    if alike not in ALIKE:
        extra = text.get("num_nextn_predict_layers") if rule.to == "block_count" else None
        values = tuple(named.values())
        return values + tuple(value + extra for value in values if isinstance(extra, int) and isinstance(value, int))
    means = ALIKE[alike]
    try:
        return means(text) if means else ()
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return ()


def _absent(rule: Rule, model: Model) -> float | None:
    values = model.values
    heads, width = values.get("attention.head_count"), values.get("embedding_length")
    if rule.absent != config_keys.OWN:
        return config_keys.ABSENT.get((model.architecture, rule.to), rule.absent)
    if rule.to == "attention.head_count_kv":
        return heads if heads else None
    most = int(max(config_keys.numbers(heads), default=0))
    size = max(config_keys.numbers(values.get("attention.key_length")), default=0) if rule.to == "attention.scale" else 0
    size = size or (width // most if isinstance(width, int) and most else 0)
    return (1 / math.sqrt(size) if rule.to == "attention.scale" else size) if size else None


def _same(mine: Any, theirs: Any) -> bool:
    """One number for all layers may stand as a list; a layer of another kind has a 0 there."""
    have, due = config_keys.numbers(mine), config_keys.numbers(theirs)
    if len(due) == 1:
        return bool(have) and all(_close(number, due[0]) or (not number and len(have) > 1) for number in have)
    if len(have) == 1:
        return bool(due) and all(_close(have[0], number) or not number for number in due)
    return len(have) >= len(due) and all(map(_close, have, due))


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * max(abs(one), abs(other))


def _epsilon(text: Text, model: Model) -> Findings:
    """The small number of a norm: which of two keys holds it depends on the architecture, some have both."""
    due = config_keys.said(text, config_keys.EPSILON_KEYS)
    mine = {key: model.values[key] for key in config_keys.EPSILONS if key in model.values}
    if not due or not (mine or model.architecture in runtime.PROVEN):
        return Findings()
    if not mine:
        return Findings(
            failures=(f"it has no epsilon of its norms, where config.json says {runtime.shown(next(iter(due.values())))}",)
        )
    key, value = next(iter(due.items()))
    odd = {to: have for to, have in mine.items() if not any(_close(have, epsilon) for epsilon in due.values())}
    lines = [
        f"its {to} is {runtime.shown(have)}, where config.json says {runtime.shown(value)} ({key})" for to, have in odd.items()
    ]
    return Findings(failures=tuple(lines))


def _manner(text: Text, model: Model) -> Findings:
    """Compare in what direction tokens see each other, and the activation where a GGUF names it."""
    failures = []
    if (text.get("is_causal") is False or model.architecture in ENCODERS) and model.values.get("attention.causal") is not False:
        failures.append("its tokens see only what is before them, where the source's see all")
    mine = str(model.values.get("hidden_activation"))
    due = next((text[key] for key in runtime.ACTIVATION_KEYS if isinstance(text.get(key), str)), "")
    if mine in runtime.KINDS and due in runtime.KINDS and runtime.KINDS[mine] != runtime.KINDS[due]:
        failures.append(f"its hidden_activation is {mine}, where config.json says {due}")
    covered = due in runtime.KINDS and (model.architecture in runtime.ACTIVATION or mine in runtime.KINDS)
    note = () if covered or not due else (f"config.json says that the activation is {due}, which nothing here knows to be there",)
    return Findings(failures=tuple(failures), notes=note)


def _unknown(text: Text, upstream: Decisions) -> Findings:
    compared = {key for rule in RULES for key in rule.keys} | config_keys.ELSEWHERE | config_keys.INERT
    compared |= {"is_causal", *config_keys.EPSILON_KEYS, *config_keys.INNER} | {
        key for keys in runtime.FIXED.values() for key in keys
    }
    left = [
        key for key, value in text.items()
        if key not in compared and not key.endswith(config_keys.INERT_ENDS)
        and not config_keys.is_off(value) and value not in config_keys.USUAL.get(key, ())
    ]  # fmt: skip
    lost, taken = ([key for key in left if (key in upstream.read) is seen] for seen in (False, True))
    notes = [f"config.json says {', '.join(lost)}, which upstream does not read and nothing here compares"] if lost else []
    notes += [f"upstream takes {', '.join(taken)} from config.json, which nothing here compares"] if taken else []
    return Findings(notes=tuple(notes))
