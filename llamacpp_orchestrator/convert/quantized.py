"""Weights that are quantized already: whether a tag reads them, told from config.json, index and headers."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import config_keys
from llamacpp_orchestrator.models.headers import Weights
from llamacpp_orchestrator.models.headers import listed

# Ends of names that only packed weights have, and what packs them.
PACKED = {
    ".absmax": "bitsandbytes", ".SCB": "bitsandbytes", ".quant_map": "bitsandbytes", ".qweight": "gptq or awq",
    ".qzeros": "gptq or awq", ".weight_packed": "compressed-tensors", ".weight_scale_inv": "fp8", ".weight_scale": "fp8 or int8",
}  # fmt: skip
# What lies beside quantized weights, by the last part of its name; a tag has no place for what it does not take away itself.
BESIDE = {
    "input_scale": "static scales of activations",
    "output_scale": "static scales of activations",
    "input_zero_point": "static scales of activations",
    "k_scale": "scales of the KV cache",
    "v_scale": "scales of the KV cache",
    "weight_g_idx": "an order of its own for the columns (actorder)",
    "weight_scale": "scales that are not those of its method",
    "weight_zero_point": "zero points that are not those of its method",
}
FLOAT8 = re.compile(r"F8_")
WHOLE = re.compile(r"[IU]\d+$")
BITSANDBYTES = "or load it with transformers and save what `model.dequantize()` gives"
MLX = (
    "make plain weights of it: `mlx_lm.convert --hf-path IT --mlx-path NEW --dequantize`, or `mlx_lm.fuse --dequantize` where an"
    " adapter is fused"
)
LOST = "they were lost when it was saved: get or save it again"


class Quantized(msgspec.Struct, frozen=True, kw_only=True):
    """Which already quantized weights a tag reads; `strict` when it ends with an error for any other method."""

    methods: frozenset[str]
    formats: frozenset[str]
    strict: bool


@functools.lru_cache(maxsize=4)  # a tree in the cache does not change
def known_to(tree: Path) -> Quantized:
    """Which methods of quantization a tag undoes, and which formats of those that have several."""
    found = capabilities.functions(tree, "dequant_model")
    raised = {
        text for where in found for node in ast.walk(where) if isinstance(node, ast.Raise) for text in capabilities.within(node)
    }
    return Quantized(
        methods=frozenset(text for where in found for text in capabilities.compared(where, ("quant_method",))),
        formats=frozenset(text for where in found for text in capabilities.compared(where, ("quant_format",))),
        strict=any(text.startswith("Quant method is not yet supported") for text in raised),
    )


def _branch(where: ast.AST, name: str, value: str) -> list[ast.stmt]:
    """What is done where a variable has a value: the body of the `if` that asks for it."""
    asking = (node for node in ast.walk(where) if isinstance(node, ast.If) and value in capabilities.compared(node.test, (name,)))
    return next((node.body for node in asking), [])


def _undoing(tree: Path, method: str) -> list[ast.stmt]:
    found = capabilities.functions(tree, "dequant_model")
    return [line for where in found for line in _branch(where, "quant_method", method)]


def taken_away(tree: Path, method: str) -> frozenset[str]:
    """The ends of names that a tag looks for when it undoes a method of quantization."""
    return frozenset(text for line in _undoing(tree, method) for text in capabilities.within(line))


def strategies(tree: Path) -> dict[str, frozenset[str]]:
    """The strategies of compressed-tensors that a tag takes, by format, where it asserts that it is one of them."""
    found: dict[str, frozenset[str]] = {}
    nodes = (node for line in _undoing(tree, "compressed-tensors") for node in ast.walk(line))
    for node in (node for node in nodes if isinstance(node, ast.If)):
        formats = set(capabilities.compared(node.test, ("quant_format",)))
        tests = [line.test for line in node.body if isinstance(line, ast.Assert) and "strategy" in ast.unparse(line.test)]
        for test in tests:
            found |= dict.fromkeys(formats, frozenset(capabilities.within(test)) - {"strategy"})
    return found


def dtypes(tree: Path) -> frozenset[str]:
    """The types of safetensors that a tag reads; empty when that cannot be told."""
    for node in ast.walk(capabilities.core_module(tree)):
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id == "_dtype_str_map" and isinstance(node, (ast.Assign, ast.AnnAssign)):
            return frozenset(
                capabilities.texts([key for key in node.value.keys if key]) if isinstance(node.value, ast.Dict) else ()
            )
    return frozenset()


def config_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of quantization, for the model or for its language part; {} for nothing."""
    said = [part.get("quantization_config") for part in config_keys.parts(config)]
    return next((method for method in said if isinstance(method, dict)), {})


def complaint(
    tree: Path, config: dict[str, Any], weights: Weights, classes: Sequence[ast.ClassDef], *, nvfp4: bool
) -> tuple[str, str, bool] | None:
    """What a tag cannot read of a model's quantization, a way out of its own ("": the unquantized model), whether config says it.

    `classes` are the lineage that converts the model; one that undoes quantization itself may know more than the base does.
    """
    said, known = config_of(config), known_to(tree)
    method, form = str(said.get("quant_method") or ""), said.get("format")
    found = capabilities.method(classes, "dequant_model")
    own = found is not None and found[0] != "ModelBase"
    able = known.methods | ({method} if own else frozenset())
    nvfp4 = nvfp4 or "NVFP4" in str(said.get("quant_algo"))
    if _is_mlx(weights):
        return "MLX", MLX, False
    packed = _packed(weights, tree, known.strict and not own and not method and not nvfp4)
    if method and known.strict and not nvfp4 and method not in able:
        return method, BITSANDBYTES if method == "bitsandbytes" else "", not packed
    if method == "compressed-tensors" and known.formats and form and form not in known.formats:
        return f"{method}, format {form}", "", True
    if packed and packed not in able:
        return method or packed, BITSANDBYTES if packed == "bitsandbytes" else "", False
    if own:
        return None
    rest = _strategy(tree, said) or _beside(tree, said, weights, known, nvfp4) or _unscaled(method, weights)
    return (*rest, False) if rest else _unexplained(said, weights) or _unread(tree, weights)


def _is_mlx(weights: Weights) -> bool:
    """Whether weights lie packed beside their scales, as MLX has them (mlx/nn/layers/quantized.py)."""
    names = set(weights.names)
    stems = [name.removesuffix(".scales") for name in names if name.endswith(".scales")]
    packed = [stem for stem in stems if f"{stem}.weight" in names]
    stored = [weights.stored.get(f"{stem}.weight") for stem in packed]
    return any(f"{stem}.biases" in names for stem in packed) or any(each and each.dtype == "U32" for each in stored)


def _packed(weights: Weights, tree: Path, always: bool) -> str:
    """What packed the weights; without `always` only if the tag's sources never name such tensors."""
    ends = {end: method for end, method in PACKED.items() if always or not capabilities.mentions(tree, end)}
    return next((method for name in weights.names for end, method in ends.items() if name.endswith(end)), "")


def _strategy(tree: Path, said: dict[str, Any]) -> tuple[str, str] | None:
    groups, form = said.get("config_groups"), said.get("format")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    how = first.get("weights") if isinstance(first, dict) else None
    strategy = how.get("strategy") if isinstance(how, dict) else None
    if said.get("quant_method") != "compressed-tensors" or not strategy:
        return None
    able = strategies(tree).get(str(form), frozenset())
    if not able or strategy in able:
        return None
    return f"compressed-tensors, format {form}, by {strategy}; it reads those by {' or '.join(sorted(able))}", ""


def _beside(tree: Path, said: dict[str, Any], weights: Weights, known: Quantized, nvfp4: bool) -> tuple[str, str] | None:
    method = str(said.get("quant_method") or "")
    if not known.strict or nvfp4 or method not in known.methods or "nvfp4" in str(said.get("format")):
        return None
    texts = taken_away(tree, method)
    ends = {end for end in BESIDE if f".{end}" not in texts and not any(f"weight{text}" == end for text in texts)}
    found = [name for name in weights.names if name.rpartition(".")[2] in ends]
    return (f"{method} with {BESIDE[found[0].rpartition('.')[2]]}: {listed(found)}", "") if found else None


def _scaled(names: Sequence[str]) -> Iterator[str]:
    """The stems of all names that are scales of something."""
    for name in names:
        if "scale" in name.rpartition(".")[2]:
            yield name.rpartition(".")[0]
            yield re.sub(r"_(?:q?scale)\w*$", "", name)


def unscaled(weights: Weights) -> list[str]:
    """Weights in eight-bit floats without a scale of their own."""
    eight = [name for name, tensor in weights.stored.items() if FLOAT8.match(tensor.dtype) and len(tensor.shape) > 1]
    scaled = set(_scaled(weights.names)) if eight else set()
    return [name for name in eight if name not in scaled and name.removesuffix(".weight") not in scaled]


def _unscaled(method: str, weights: Weights) -> tuple[str, str] | None:
    lacking = unscaled(weights) if method else []
    return (f"{method}, and its scales are not there: {listed(lacking)}", LOST) if lacking else None


def _unexplained(said: dict[str, Any], weights: Weights) -> tuple[str, str, bool] | None:
    """Weights in whole numbers, of which the config does not say what they mean: upstream would take them for what they are."""
    whole = [
        name
        for name, tensor in weights.stored.items()
        if WHOLE.match(tensor.dtype) and len(tensor.shape) > 1 and name.endswith(".weight")
    ]
    if not whole or said:
        return None
    return f"whole numbers, and config.json does not say how: {listed(whole)}", "", False


def _unread(tree: Path, weights: Weights) -> tuple[str, str, bool] | None:
    known = dtypes(tree)
    other = [name for name, tensor in weights.stored.items() if tensor.dtype not in known] if known else []
    return (f"numbers of the type {weights.stored[other[0]].dtype}: {listed(other)}", "", False) if other else None


def notes(config: dict[str, Any], weights: Weights) -> tuple[str, ...]:
    """What is odd about weights that are read as they are."""
    plain = unscaled(weights) if not config_of(config) else []
    return (f"eight-bit floats without scales are read as they are: {listed(plain)}",) if plain else ()
