"""Checks of a model's weights before conversion, by index and headers: are they whole, and their names their own?"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.models.safetensors import Stored
from llamacpp_orchestrator.models.safetensors import read_json
from llamacpp_orchestrator.models.safetensors import safetensors_header
from llamacpp_orchestrator.models.weight_files import INDEX
from llamacpp_orchestrator.models.weight_files import ONE_SAVE

MERGE = "merge the adapter first: load it with PEFT, `model.merge_and_unload().save_pretrained(...)`, and convert that"
# Names that a wrapper around the model left in a checkpoint: what it is, and the way to a checkpoint without it. Where the tag's
# class for the model reads such names itself, they are right.
WRAPPED = (
    (r"lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b", "an adapter of PEFT that is not merged", MERGE),
    (r"\.(?:base_layer|modules_to_save|original_module)\.", "what PEFT puts around a layer", MERGE),
    (r"^base_model\.model\.", "PEFT's name for the model inside it", MERGE),
    (
        r"(?:^|\.)_orig_mod\.",
        "torch.compile's name for the model inside it",
        "save the model that was compiled: `model._orig_mod.save_pretrained(...)`",
    ),
    (
        r"(?:^|\.)_(?:fsdp_wrapped_module|checkpoint_wrapped_module|flat_param)\b",
        "FSDP's name for a part of the model",
        "save the whole state: FSDP's FULL_STATE_DICT, or `accelerate merge-weights` for a sharded checkpoint",
    ),
    (
        r"^(?:_forward_module\.)?module\.",
        "the name of the model inside DataParallel or DeepSpeed",
        "save the model inside: `model.module.save_pretrained(...)`",
    ),
)
ZERO_3 = (
    "saved from DeepSpeed's ZeRO-3 (or FSDP) without gathering? in the checkpoint's folder `python zero_to_fp32.py . OUT` makes"
    " whole weights; stage3_gather_16bit_weights_on_model_save saves them so"
)
# Bookkeeping of quantizers that has no elements where it is not used.
MAY_BE_EMPTY = re.compile(r"g_idx(_sort_indices)?$|perm$")


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors of a model as far as they can be told: `index` names their files, `stored` is what headers say of them.

    `files` are those that hold each; `total` is the size in bytes that the index gives, None where it gives none.
    """

    stored: dict[str, Stored] = {}
    files: dict[str, tuple[str, ...]] = {}
    index: dict[str, str] = {}
    total: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors: the headers' where they are here, else the index's."""
        return tuple(self.stored or self.index)


def read(folder: Path) -> Weights:
    """Read index and headers in a view; what is damaged is left out, and reported elsewhere."""
    stored: dict[str, Stored] = {}
    files: dict[str, tuple[str, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(OrchestrateError):
            header = safetensors_header(path)
            header.pop("__metadata__", None)
            stored |= {name: msgspec.convert(value, Stored) for name, value in header.items()}
            files |= {name: (*files.get(name, ()), path.name) for name in header}
    index: dict[str, Any] = {}
    with contextlib.suppress(OrchestrateError):
        index = read_json(folder / INDEX)
    named, metadata = index.get("weight_map"), index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Weights(
        stored=stored,
        files=files,
        index={name: str(file) for name, file in named.items()} if isinstance(named, dict) else {},
        total=total if type(total) is int else None,
    )


def check(weights: Weights, source: str, reads: Callable[[str], bool]) -> None:
    """Raise OrchestrateError for weights that no tag converts right; `reads` says whether this tag reads a name by itself."""
    for refusal in (_empty(weights), _wrapped(weights, reads), _unlike_index(weights), _twice(weights)):
        if refusal:
            raise OrchestrateError(f"{source}: {refusal[0]}", refusal[1])


def listed(names: Iterable[str]) -> str:
    """The first of some names of tensors, and the number of the others, as text."""
    every = list(names)
    return quoted(every[0]) + (f" and {len(every) - 1} more" if every[1:] else "")


def _empty(weights: Weights) -> tuple[str, str] | None:
    empty = [name for name, tensor in weights.stored.items() if 0 in tensor.shape and not MAY_BE_EMPTY.search(name)]
    return (f"{len(empty)} of {len(weights.stored)} tensors have no elements ({listed(empty)})", ZERO_3) if empty else None


def _wrapped(weights: Weights, reads: Callable[[str], bool]) -> tuple[str, str] | None:
    for pattern, what, way in WRAPPED:
        marks = [(name, match[0].strip(".")) for name in weights.names if (match := re.search(pattern, name))]
        if marks and not reads(marks[0][1]):
            return f"its tensors bear {what} ({listed(name for name, _ in marks)})", way
    return None


def _unlike_index(weights: Weights) -> tuple[str, str] | None:
    missing = [name for name in weights.index if name not in weights.stored] if weights.stored else []
    extra = [name for name in weights.stored if name not in weights.index] if weights.index else []
    if not missing and not extra:
        return None
    parts = [f"it names {len(missing)} tensors that no file holds ({listed(missing)})"] if missing else []
    parts += [f"the files hold {len(extra)} that it does not name ({listed(extra)})"] if extra else []
    return f"the index of the weights does not fit them: {'; '.join(parts)}", ONE_SAVE


def _twice(weights: Weights) -> tuple[str, str] | None:
    doubled = [name for name, files in weights.files.items() if len(files) > 1]
    if not doubled or weights.index:
        return None
    where = " and ".join(weights.files[doubled[0]][:2])
    return f"{len(doubled)} tensors are in two files ({listed(doubled)} in {where})", "keep one set of weights in the folder"


def check_vision(weights: Weights, source: str, tag: str, tree: Path) -> None:
    """Raise OrchestrateError for a vision tower by names that transformers 5 has and this tag's map of names has not."""
    names = tree / "gguf-py" / "gguf" / "tensor_mapping.py"
    mapping = names.read_bytes() if names.is_file() else b""
    strange = [name for name in weights.names if re.match(r"vision_tower\.(?:embeddings|encoder\.layers|post_layernorm)\.", name)]
    if strange and b'"vision_tower.vision_model.encoder.layers' in mapping and b'"vision_tower.encoder.layers' not in mapping:
        raise OrchestrateError(
            f"{source}: its vision tensors have no `vision_model.` in their names ({listed(strange)}); {tag} knows none without",
            "transformers 5 saves a model so that was made from a config: load a hub copy of it, put these weights into that"
            " (`load_state_dict`), and save it again",
        )


def notes(weights: Weights) -> tuple[str, ...]:
    """Notes on an index that names the tensors of the files, and is odd in other ways."""
    if not weights.index or not weights.stored:
        return ()
    moved = [name for name, file in weights.index.items() if file not in weights.files.get(name, (file,))]
    lines = [f"the index says another file than the one that holds it, for {listed(moved)}"] if moved else []
    twice = [name for name, files in weights.files.items() if len(files) > 1]
    lines += [f"several files hold {listed(twice)}; as in transformers, the last by name counts"] if twice else []
    size = sum(tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in weights.stored.values())
    if weights.total not in (None, size):
        lines.append(f"the index says {weights.total} bytes of weights, the files hold {size}: are they of one save?")
    return tuple(lines)
