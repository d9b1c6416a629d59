"""What one adapter adds to which tensors of its base, by PEFT's rules for the adapter while it is not merged."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import base_files
from llamacpp_orchestrator.merge import experts
from llamacpp_orchestrator.merge import names
from llamacpp_orchestrator.merge.adapter_parts import Module
from llamacpp_orchestrator.merge.adapter_parts import Parts
from llamacpp_orchestrator.merge.base_files import Base
from llamacpp_orchestrator.merge.records import Update
from llamacpp_orchestrator.models import adapter_scaling

Changes = dict[str, tuple[Update, ...]]
# Families whose layers hold their matrices as (in, out), transformers' Conv1D, and the names of these layers.
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")
EMBEDDINGS, HEADS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "shared"), ("lm_head", "embed_out")
VOCABULARY = (*EMBEDDINGS, *HEADS)
HEAD = "lm_head.weight"
GENERATES = re.compile(r"ForCausalLM|LMHead|ConditionalGeneration")  # classes of transformers with a head by that name


def of(parts: Parts, base: Base, initial: Parts | None) -> Changes:
    """The updates of one adapter by the name of the base's tensor, or of the head that a tied base has not as a tensor.

    `initial`: the adapter as it was before training, where its update is what has changed since then.
    Raises OrchestrateError for what the base has not, or has in other shapes.
    """
    changes: Changes = {}
    for name, update in (*_wholes(parts, base), *_tokens(parts, base), *_low_rank(parts, base)):
        changes[name] = (*changes.get(name, ()), msgspec.structs.replace(update, weight=parts.adapter.weight))
    for name, update in _low_rank(initial, base) if initial else ():
        changes[name] = (*changes[name], msgspec.structs.replace(update, weight=parts.adapter.weight, scale=-update.scale))
    for name in changes:
        if (tensor := base.tensors.get(name)) and tensor.dtype not in adapter_parts.WIDTHS:
            raise OrchestrateError(
                f"{base.name}: {quoted(name)} is stored as {tensor.dtype}, and a merge needs its numbers as they were",
                "name the model's unquantized original as the source",
            )
    return changes


def _misfit(parts: Parts, base: Base, why: str) -> OrchestrateError:
    return base_files.misfit(parts.adapter.name, parts.config, base.name, why)


def tensor_name(parts: Parts, base: Base, name: str) -> str:
    """The base's name of a tensor that an adapter changes; that of the head where the base has none of its own."""
    if own := names.find(base.index, name):
        return own
    if names.key(name) == names.key(HEAD) and is_tied(base):
        return head_name(base)
    more = " (is it a new head, for another task?)" if name in parts.wholes else ""
    raise _misfit(parts, base, f"it changes {quoted(name)}, and the base has no such tensor{more}")


def embedding_name(base: Base) -> str:
    """The name of the matrix that looks tokens up; "" where none is known by its name."""
    ends = {f"{name}.weight" for name in EMBEDDINGS}
    fitting = [name for name in base.tensors if ".".join(name.split(".")[-2:]) in ends]
    return min(fitting, key=lambda name: len(names.key(name)), default="")


def is_tied(base: Base) -> bool:
    """Tell whether the base predicts tokens by the matrix that looks them up: it has a head, and no tensor for it."""
    classes = adapter_parts.words(base.config, "architectures") or ("ForCausalLM",)
    return any(map(GENERATES.search, classes)) and head_name(base) not in base.tensors and bool(embedding_name(base))


def head_name(base: Base) -> str:
    """The name of the head, or the one that it would have beside the base's other names."""
    own = next(filter(None, (names.find(base.index, f"{end}.weight") for end in HEADS)), "")
    return own or ("language_model." if embedding_name(base).startswith("language_model.model.") else "") + HEAD


def is_end(name: str) -> bool:
    """Tell whether a tensor is an end of the vocabulary, by its name."""
    return name.split(".")[-2:-1] in ([end] for end in VOCABULARY)


def shape_of(base: Base, name: str) -> tuple[int, ...]:
    """The shape of a tensor; a head that is tied has that of the embedding."""
    return base.tensors[name if name in base.tensors else embedding_name(base)].shape


def _wholes(parts: Parts, base: Base) -> Iterator[tuple[str, Update]]:
    for name, tensor in parts.wholes.items():
        target = tensor_name(parts, base, name)
        shape = shape_of(base, target)
        is_vocabulary = is_end(target) and tensor.shape[1:] == shape[1:]
        if tensor.shape != shape and not is_vocabulary:
            raise _misfit(parts, base, f"{quoted(name)} is {_size(tensor.shape)}, in the base {_size(shape)}")
        yield target, Update(kind="tensor", tensor=tensor)


def _tokens(parts: Parts, base: Base) -> Iterator[tuple[str, Update]]:
    indices = parts.config.get("trainable_token_indices") or parts.config.get("token_indices")
    for module, tensor in parts.tokens.items():
        rows = _indices(indices, module)
        if len(rows) != len(set(rows)) or min(rows, default=-1) < 0 or tensor.shape[:1] != (len(rows),):
            raise adapter_scaling.damaged(
                parts.adapter.name,
                f"trainable_token_indices names {len(rows)} tokens for {quoted(module)}, it holds {_size(tensor.shape)}",
            )
        target = tensor_name(parts, base, f"{module}.weight")
        if tensor.shape[1:] != shape_of(base, target)[1:]:
            raise _misfit(
                parts, base, f"its tokens are {_size(tensor.shape)}, the base's vocabulary {_size(shape_of(base, target))}"
            )
        yield target, Update(kind="tensor", tensor=tensor, indices=rows)


def _indices(value: object, module: str) -> tuple[int, ...]:
    """The rows of a module's tokens: PEFT lists them, for the embedding or by modules."""
    if isinstance(value, Mapping):
        value = next((rows for name, rows in value.items() if module == name or module.endswith(f".{name}")), ())
    rows = value if isinstance(value, list | tuple) else ()
    return tuple(row for row in rows if isinstance(row, int))


def _low_rank(parts: Parts, base: Base) -> Iterator[tuple[str, Update]]:
    if not parts.modules:
        return
    strength = adapter_scaling.strength(adapter_scaling.read(parts.config, parts.adapter.name))
    parameters = adapter_parts.words(parts.config, "target_parameters")
    for module in parts.modules:
        name = f"{module.name}.weight"
        has_matrix = module.depth == 0 and (names.find(base.index, name) or names.key(name) == names.key(HEAD))
        if not has_matrix and (targets := experts.targets(base.index, module.name, parameters)):
            yield from _of_parameter(parts, base, module, strength, targets)
            continue
        target = tensor_name(parts, base, name)
        is_parameter = any(f".{name}".endswith(f".{parameter}") for parameter in parameters)
        rank, scale = strength(name if is_parameter else module.name)
        if len(shape_of(base, target)) == 3:
            yield from _of_stack(parts, base, module, target, (rank, scale))
            continue
        _check_rank(parts, module, rank)
        yield target, _update(parts, base, module, target, scale)
        if module.bias:
            bias = names.find(base.index, f"{module.name}.bias")
            if not bias:
                message = f"the adapter {parts.adapter.name} adds a bias to {quoted(module.name)}, which has none in {base.name}"
                raise OrchestrateError(
                    message, "nothing can hold that bias (PEFT cannot merge it either): train without lora_bias"
                )
            if module.bias.shape != shape_of(base, bias):
                raise _misfit(parts, base, f"its bias for {quoted(module.name)} is {_size(module.bias.shape)}")
            yield bias, Update(kind="vector", scale=scale, tensor=module.bias)


def _check_rank(parts: Parts, module: Module, rank: int, stack: int = 1) -> None:
    if module.a.shape[0] != rank * stack or module.b.shape[1] != rank * stack:
        form = f"lora_A is {_size(module.a.shape)}, lora_B {_size(module.b.shape)}"
        raise adapter_scaling.damaged(
            parts.adapter.name, f"it gives {module.name} the rank {rank}, but its {form}", hint=adapter_scaling.REFUSED
        )


def _own_shape(parts: Parts, base: Base, target: str) -> tuple[int, ...]:
    """The shape that a tensor has for an adapter: that of its own copy, for an end of the vocabulary that it has resized."""
    own = {tensor_name(parts, base, name): whole.shape for name, whole in parts.wholes.items()}
    return own.get(target) or own.get(embedding_name(base) if target not in base.tensors else "") or shape_of(base, target)


def _update(parts: Parts, base: Base, module: Module, target: str, scale: float) -> Update:
    """The update of a whole matrix; that of an embedding is of its transpose, as that of a layer that holds (in, out)."""
    a, b = module.a, module.b
    shape = _own_shape(parts, base, target) if is_end(target) else shape_of(base, target)
    plain, transposed = (b.shape[0], a.shape[1]) == shape, (a.shape[1], b.shape[0]) == shape
    if module.is_embedding or (plain and transposed):
        plain = plain and not module.is_embedding and not _is_conv1d(parts, base, module.name)
    if not plain and not transposed:
        size = _size((a.shape[1], b.shape[0]) if module.is_embedding else (b.shape[0], a.shape[1]))
        raise _misfit(parts, base, f"its matrices for {quoted(module.name)} give {size}, the base has {_size(shape)}")
    magnitude = module.magnitude
    if magnitude and math.prod(magnitude.shape) != b.shape[0]:
        raise adapter_scaling.damaged(
            parts.adapter.name,
            f"{quoted(module.name)} has {_size(magnitude.shape)} magnitudes for {b.shape[0]}",
            "adapter_model.safetensors",
        )
    magnitude = magnitude and msgspec.structs.replace(magnitude, shape=(b.shape[0],))
    return Update(kind="dora" if magnitude else "lora", scale=scale, a=a, b=b, magnitude=magnitude, transposed=not plain)


def _is_conv1d(parts: Parts, base: Base, module: str) -> bool:
    """Tell whether a square matrix is one that is held as (in, out); of others the shapes tell."""
    is_known = base.text.get("model_type") in CONV1D and module.rpartition(".")[2] in CONV1D_NAMES
    return is_known or bool(parts.config.get("fan_in_fan_out"))


def _of_parameter(
    parts: Parts, base: Base, module: Module, strength: Callable[[str], tuple[int, float]], targets: tuple[str, ...]
) -> Iterator[tuple[str, Update]]:
    wrappers = 1 + max(other.depth for other in parts.modules if other.name == module.name)
    if wrappers != len(targets):
        raise adapter_scaling.damaged(
            parts.adapter.name, f"target_parameters names {len(targets)} of {quoted(module.name)}, it holds {wrappers}"
        )
    leaf = targets[wrappers - 1 - module.depth]
    rank_scale = strength(f"{module.name}.{leaf}")
    if target := names.find(base.index, f"{module.name}.{leaf}"):
        if len(shape_of(base, target)) == 3:
            yield from _of_stack(parts, base, module, target, rank_scale)
        else:
            _check_rank(parts, module, rank_scale[0])
            yield target, _update(parts, base, module, target, rank_scale[1])
        return
    pieces = experts.pieces(base.index, module.name, leaf)
    _check_rank(parts, module, rank_scale[0], len(pieces))
    for number, row in enumerate(pieces):
        start = 0
        for target in row:
            rows, columns = shape_of(base, target)
            if module.a.shape[1] != columns or start + rows > module.b.shape[0]:
                raise _misfit(
                    parts, base, f"its matrices for {quoted(module.name)} do not give {quoted(target)}, {_size((rows, columns))}"
                )
            a, b = experts.matrices(module, number, len(pieces), (start, start + rows))
            yield target, Update(kind="lora", scale=rank_scale[1], a=a, b=b)
            start += rows
        if start != module.b.shape[0]:
            raise _misfit(
                parts, base, f"its matrices for {quoted(f'{module.name}.{leaf}')} have {module.b.shape[0]} rows, the base {start}"
            )


def _of_stack(
    parts: Parts, base: Base, module: Module, target: str, rank_scale: tuple[int, float]
) -> Iterator[tuple[str, Update]]:
    """The updates of the matrices of a stack of experts; transposed where they are held as (in, out)."""
    count, *shape = shape_of(base, target)
    _check_rank(parts, module, rank_scale[0], count)
    size = (module.b.shape[0], module.a.shape[1])
    plain, transposed = size == tuple(shape), size[::-1] == tuple(shape)
    if not plain and not transposed:
        raise _misfit(parts, base, f"its matrices for {quoted(target)} give {_size(size)}, the base has {_size(tuple(shape))}")
    is_transposed = not plain or (transposed and experts.is_transposed(str(base.text.get("model_type"))))
    for number in range(count):
        a, b = experts.matrices(module, number, count, (0, module.b.shape[0]))
        yield target, Update(kind="lora", scale=rank_scale[1], a=a, b=b, transposed=is_transposed, at=number)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
