"""The strength with which PEFT applies each module of an adapter, where a GGUF adapter would apply it otherwise.

A GGUF adapter has one alpha, and the runtime applies each module by alpha / rank, the rank being that of its own matrices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError

# What a recipe says of the rules here: a file that was made by other rules is not current.
RULE = "scaled as PEFT does"

MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_([AB])|([AB])\.weight)")
NOW, DOTTED = r"(.*\.)?({})$", r".*\.{}$"  # how PEFT makes an expression of a pattern's key, and how it did before 0.15
DTYPES = ("F64", "F32", "F16", "BF16")  # those of matrices that can be scaled
# Keys are a stranger's expressions: one that repeats what repeats may never come to an end.
NESTED, REPEATED = re.compile(r"\)[*+{]"), re.compile(r"(?<!\\)[*+{]")
MOST_REPEATS, LONGEST_KEY = 3, 1000
AMBIGUOUS = "alpha_pattern can be read in more than one way (its order, older PEFT); it is read as PEFT does now"
AGAIN = "take the whole adapter again, as PEFT saved it"
REFUSED = "PEFT cannot load it either: correct r and rank_pattern (PEFT sorts its keys when it saves), or take the adapter again"
Keys = tuple[tuple[str, re.Pattern[str]], ...]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The part of adapter_config.json about strength; patterns map an expression for module names to a rank or an alpha."""

    r: int
    lora_alpha: float
    use_rslora: bool | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    peft_version: str | None = None


class Scales(msgspec.Struct, frozen=True, kw_only=True):
    """Factors for B matrices, by tensor name (those that stay are not named), and notes on them."""

    factors: dict[str, float] = {}
    notes: tuple[str, ...] = ()


def read(config: Mapping[str, Any], name: str) -> Config:
    """The part of an adapter's config that decides its strength; IntegrityError when it does not."""
    try:
        parsed = msgspec.convert(dict(config), Config)
    except msgspec.ValidationError as error:
        raise damaged(name, str(error)) from error
    ranks, alphas = parsed.rank_pattern or {}, parsed.alpha_pattern or {}
    for key in (*ranks, *alphas):
        if len(key) > LONGEST_KEY or NESTED.search(key) or len(REPEATED.findall(key)) > MOST_REPEATS:
            raise damaged(
                name,
                f"the pattern `{key[:80]}` could be tried for ever",
                hint="write it with fewer repetitions, or take the adapter from a source that you trust",
            )
        try:
            for form in ("{}", NOW, DOTTED):
                re.compile(form.format(key))
        except (re.error, RecursionError, OverflowError) as error:
            raise damaged(name, f"the pattern `{key[:80]}` is not an expression: {error}") from error
    if not parsed.lora_alpha:
        raise damaged(name, "lora_alpha is 0, with which an adapter does nothing")
    if not all(map(math.isfinite, (parsed.lora_alpha, *alphas.values()))):
        raise damaged(name, "an alpha is not a number")
    if min((parsed.r, *ranks.values())) < 1:
        raise damaged(name, "a rank is less than 1")
    return parsed


def scales(config: Config, tensors: Mapping[str, Mapping[str, Any]], name: str) -> Scales:
    """Compare PEFT's strength of each module with the runtime's; IntegrityError when config and matrices contradict each other.

    `tensors` are the entries of a safetensors header: dtype and shape by name.
    """
    ranks, alphas = _finder(config.rank_pattern or {}), _finder(config.alpha_pattern or {})
    factors = {}
    modules = pairs(tensors, name)
    for module, (a, b) in sorted(modules.items()):
        rank = ranks(module, config.r)
        shapes = tensors[a]["shape"], tensors[b]["shape"]
        if rank != shapes[0][0] or rank != shapes[1][1]:
            form = f"lora_A is {' x '.join(map(str, shapes[0]))}, lora_B {' x '.join(map(str, shapes[1]))}"
            raise damaged(name, f"it gives {module} the rank {rank:g}, but its {form}", hint=REFUSED)
        # The runtime's alpha / rank is the same for the same rank: what remains is a module's own alpha, and rsLoRA's root.
        factor = alphas(module, config.lora_alpha) / config.lora_alpha * (math.sqrt(rank) if config.use_rslora else 1.0)
        if factor != 1.0:
            factors[b] = factor
            if tensors[b]["dtype"] not in DTYPES:
                raise OrchestrateError(
                    f"the adapter {name} cannot be scaled as PEFT does: {b} is of the type {tensors[b]['dtype']}",
                    "save it again in float32",
                )
    return Scales(factors=factors, notes=_notes(config, factors, ambiguous(config, modules)))


def pairs(tensors: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, tuple[str, str]]:
    """The two matrices of each module by their tensor names; IntegrityError for one without the other."""
    by_module: dict[str, dict[str, str]] = {}
    for key in tensors:
        if match := MATRIX.fullmatch(key):
            by_module.setdefault(match[1], {})[match[2] or match[3]] = key
    for module, matrices in by_module.items():
        shapes = [tensors[key]["shape"] for key in matrices.values()]
        if len(matrices) != 2 or any(len(shape) != 2 for shape in shapes):
            raise damaged(name, f"{module} has not two matrices, lora_A and lora_B", "adapter_model.safetensors")
    return {module: (matrices["A"], matrices["B"]) for module, matrices in by_module.items()}


def strength(config: Config) -> Callable[[str], tuple[int, float]]:
    """The rank of a module and the factor of its two matrices' product, as PEFT has them, by the module's name."""
    ranks, alphas = _finder(config.rank_pattern or {}), _finder(config.alpha_pattern or {})

    def of(module: str) -> tuple[int, float]:
        rank = int(ranks(module, config.r))
        return rank, alphas(module, config.lora_alpha) / (math.sqrt(rank) if config.use_rslora else rank)

    return of


def damaged(name: str, why: str, file: str = "adapter_config.json", hint: str = AGAIN) -> IntegrityError:
    """The error for an adapter whose files contradict themselves."""
    return IntegrityError(f"the adapter {name} is damaged, {file}: {why}", hint)


def _keys(pattern: Iterable[str], form: str) -> Keys:
    return tuple((key, re.compile(form.format(key))) for key in pattern)


def _finder(pattern: Mapping[str, float]) -> Callable[[str, float], float]:
    """A module's entry in a pattern, as PEFT finds it since 0.15: the first key that matches its name, or the end of it."""
    keys = _keys(pattern, NOW)
    return lambda module, default: pattern.get(_first(keys, module), default)


def _first(keys: Keys, module: str) -> str:
    return next((key for key, expression in keys if expression.match(module)), module)


def ambiguous(config: Config, modules: Iterable[str]) -> bool:
    """Tell whether a module may have been trained with another alpha than PEFT gives it now.

    PEFT takes the first key that fits and sorts the keys when it saves; before 0.15 it wanted a dot before the key, and
    before 0.14 it looked for one key in both patterns.
    """
    alpha, rank = config.alpha_pattern or {}, config.rank_pattern or {}
    now, dotted = _keys(alpha, NOW), _keys((*rank, *alpha), DOTTED)
    older = () if config.peft_version or not alpha else (dotted[len(rank) :], dotted)
    for module in modules:
        fitting = {alpha[key] for key, expression in now if expression.match(module)} or {config.lora_alpha}
        if len(fitting | {alpha.get(_first(keys, module), config.lora_alpha) for keys in older}) > 1:
            return True
    return False


def _notes(config: Config, factors: Mapping[str, float], ambiguous: bool) -> tuple[str, ...]:
    lines = []
    if factors:
        why = ["rsLoRA"] if config.use_rslora else []
        why += ["alpha_pattern"] if config.alpha_pattern else []
        least, most = min(factors.values()), max(factors.values())
        by = f"{least:.6g}" if least == most else f"{least:.6g} to {most:.6g}"
        lines.append(f"scaled as PEFT does ({', '.join(why)}): {len(factors)} B matrices times {by}, in a copy of the adapter")
    if ambiguous:
        lines.append(AMBIGUOUS)
    return tuple(lines)
