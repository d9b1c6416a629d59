"""What an adapter's file holds, by the module that each part changes, without PEFT's wrappers and the adapter's own name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.merge.records import Stored
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.models.safetensors import data_begin
from llamacpp_orchestrator.models.safetensors import read_json
from llamacpp_orchestrator.models.safetensors import safetensors_header

PREFIX = "base_model.model."
# The adapter's own name stands behind PEFT's where it was saved by other means than save_pretrained.
LORA = re.compile(
    r"(?P<module>.+?)(?P<nest>(?:\.base_layer)*)\.lora_(?P<part>[AB]|embedding_[AB]|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<leaf>weight|bias))?"
)
TOKENS = re.compile(r"(?P<module>.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\.[^.]+)?")
WRAPPERS = re.compile(r"\.(?:modules_to_save(?:\.default)?|token_adapter|base_layer)(?=\.)")
COPY = re.compile(r"\.(?:original_module|trainable_tokens_original)\.")  # of the base, which PEFT keeps beside what it trains
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of the numbers that can be summed
AGAIN = "take the whole adapter again, as PEFT's save_pretrained leaves it"


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """The low-rank matrices for one module: b (out, rank), a (rank, in), DoRA's magnitudes and the bias of b.

    `depth`: how many of PEFT's wrappers lie between it and the module; several parameters of one module lie in each other.
    """

    name: str
    depth: int
    a: Stored
    b: Stored
    magnitude: Stored | None = None
    bias: Stored | None = None
    is_embedding: bool = False


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter with its files read: config, module by module its matrices, whole tensors by name, rows of tokens by module.

    `frozen`: those whole tensors that were not trained; PEFT saves an embedding that it has put matrices beside.
    """

    adapter: Adapter
    config: dict[str, Any]
    modules: tuple[Module, ...] = ()
    wholes: dict[str, Stored] = {}
    frozen: frozenset[Stored] = frozenset()
    tokens: dict[str, Stored] = {}
    names: tuple[str, ...] = ()


def stored_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file in the order of their bytes; IntegrityError for a file that is not whole."""
    header, begin = safetensors_header(path), data_begin(path)
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
    for name, entry in entries:
        first, last = entry["data_offsets"]
        if entry["dtype"] in WIDTHS and math.prod(entry["shape"]) * WIDTHS[entry["dtype"]] != last - first:
            raise IntegrityError(
                f"{path.name} is damaged: {quoted(name)} has not the bytes that its shape needs", weight_files.AGAIN
            )
    return {
        name: Stored(file=str(path), offset=begin + entry["data_offsets"][0], dtype=entry["dtype"], shape=tuple(entry["shape"]))
        for name, entry in entries
    }


def read(adapter: Adapter) -> Parts:
    """The parts of an adapter by its config and header; OrchestrateError where they are damaged, empty or hold half a module."""
    config = read_json(adapter.folder / "adapter_config.json")
    tensors = _tensors(adapter)
    own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if not COPY.search(name)}
    modules = _modules(own, adapter.name) if kind(config) == "LORA" else ()
    tokens = {match["module"]: tensor for name, tensor in own.items() if (match := TOKENS.fullmatch(name))}
    rest = {name: tensor for name, tensor in own.items() if not LORA.fullmatch(name) and not TOKENS.fullmatch(name)}
    return Parts(
        adapter=adapter,
        config=config,
        modules=modules,
        wholes={WRAPPERS.sub("", name): tensor for name, tensor in rest.items()},
        frozen=frozenset(tensor for name, tensor in rest.items() if name.endswith(".base_layer.weight")),
        tokens=tokens,
        names=tuple(tensors),
    )


def kind(config: Mapping[str, Any]) -> str:
    """The kind of an adapter as PEFT names it; the first ones were LoRA without saying so."""
    return str(config.get("peft_type") or "LORA")


def words(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The words that a key of a config lists; () for anything else."""
    value = config.get(key)
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _tensors(adapter: Adapter) -> dict[str, Stored]:
    path = adapter.folder / "adapter_model.safetensors"
    if not path.is_file():
        raise OrchestrateError(f"the adapter {adapter.name} has no adapter_model.safetensors", "save it again with safetensors")
    try:
        tensors = stored_tensors(path)
    except IntegrityError as error:
        raise IntegrityError(f"the adapter {adapter.name} is damaged: {error.message}", error.hint) from error
    if not any(not COPY.search(name) for name in tensors):
        raise OrchestrateError(f"the adapter {adapter.name} holds no tensors of its own: there is nothing to merge", AGAIN)
    if empty := [name for name, tensor in tensors.items() if 0 in tensor.shape]:
        way = "saved from DeepSpeed's ZeRO-3 or FSDP without gathering? gather its weights and save it again"
        raise IntegrityError(f"the adapter {adapter.name} is empty in part: {quoted(empty[0])} has no elements", way)
    if strange := [name for name, tensor in tensors.items() if tensor.dtype not in WIDTHS]:
        message = f"the adapter {adapter.name}: {quoted(strange[0])} is of the type {tensors[strange[0]].dtype}"
        raise OrchestrateError(message, "save it again in float32")
    return tensors


def _modules(tensors: Mapping[str, Stored], name: str) -> tuple[Module, ...]:
    by_place: dict[tuple[str, int], dict[str, Stored]] = {}
    for key, tensor in tensors.items():
        if match := LORA.fullmatch(key):
            part = "bias" if match["leaf"] == "bias" else match["part"]
            place = by_place.setdefault((match["module"], match["nest"].count(".")), {})
            if part in place:
                message = (
                    f"the adapter {name} has two tensors for one part of {quoted(match['module'])}, of two adapters in one file?"
                )
                raise OrchestrateError(message, "save one adapter with PEFT's save_pretrained(..., selected_adapters=[NAME])")
            place[part] = tensor
    return tuple(_module(module, depth, parts, name) for (module, depth), parts in by_place.items())


def _module(module: str, depth: int, parts: Mapping[str, Stored], name: str) -> Module:
    is_embedding = "embedding_A" in parts
    a, b = (parts.get(f"embedding_{end}" if is_embedding else end) for end in "AB")
    if not a or not b:
        raise adapter_scaling.damaged(
            name, f"{quoted(module)} has not two matrices, lora_A and lora_B", "adapter_model.safetensors", AGAIN
        )
    magnitude = parts.get("magnitude_vector")
    return Module(name=module, depth=depth, a=a, b=b, magnitude=magnitude, bias=parts.get("bias"), is_embedding=is_embedding)
