"""The plan of a merge: what of which adapters each tensor of the base gets, and the files that come out."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import base_files
from llamacpp_orchestrator.merge import kinds
from llamacpp_orchestrator.merge import layers
from llamacpp_orchestrator.merge import small_files
from llamacpp_orchestrator.merge import updates
from llamacpp_orchestrator.merge import vocabulary
from llamacpp_orchestrator.merge.adapter_parts import Parts
from llamacpp_orchestrator.merge.base_files import Base
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.merge.records import File
from llamacpp_orchestrator.merge.records import Plan
from llamacpp_orchestrator.merge.records import Tensor
from llamacpp_orchestrator.merge.records import Update

Sums = Mapping[str, tuple[tuple[int, Update], ...]]


def plan(base: Path, base_name: str, adapters: Sequence[Adapter]) -> Plan:
    """The plan by which adapters are merged into the base in a folder; only configs and headers are read.

    Raises OrchestrateError for adapters that were trained on another base, or that cannot be merged into it together.
    """
    every = [adapter_parts.read(one) for one in adapters]
    for parts in every:
        kinds.refuse(parts)
    source = base_files.read(base, base_name)
    kinds.check_base(source.config, base_name, str(every[0].config.get("base_model_name_or_path") or ""))
    notes = [note for parts in every for note in kinds.notes(parts, source.config, base_name)]
    if reason := next(filter(None, map(kinds.unplanned, every)), ""):
        _check_ends(source, every)
        told = f"{reason}: merged by PEFT itself"
        return Plan(by_peft=reason, copies=small_files.beside(source.folder, source.files), notes=(*notes, told))
    source = layers.replicate(source, every)
    changes = [vocabulary.both_ends(parts, source, updates.of(parts, source, kinds.initial(parts))) for parts in every]
    is_untied = vocabulary.unties(source, changes)
    sums = _sums(source, every, changes, is_untied)
    rows = vocabulary.rows(source, {name: tuple(update for _, update in pairs) for name, pairs in sums.items()})
    files = _files(source, sums, rows, is_untied)
    texts, copies, more = small_files.choose(source, every, files, rows, is_untied)
    return Plan(files=files, texts=texts, copies=copies, notes=(*notes, *_unlike_peft(source, every, changes), *more))


def _unlike_peft(base: Base, every: Sequence[Parts], changes: Sequence[updates.Changes]) -> list[str]:
    """Notes on adapters that PEFT 0.21.2 would merge into something else than they are while they are not merged."""
    embedding, lines = updates.embedding_name(base), []
    for parts, own in zip(every, changes, strict=True):
        factors = [update for update in own.get(embedding, ()) if update.kind in ("lora", "dora")]
        if factors and parts.config.get("ensure_weight_tying") and updates.is_tied(base):
            lines.append(
                f"the adapter {parts.adapter.name} moves both ends of the vocabulary once; PEFT's own merge would do it twice"
            )
        if parts.config.get("layer_replication"):
            name = parts.adapter.name
            lines.append(f"each layer that the adapter {name} repeats has its own update; PEFT's own merge would add all to each")
    return lines


def _check_ends(base: Base, every: Sequence[Parts]) -> None:
    """Raise OrchestrateError where PEFT's own merge would change both ends of a vocabulary for an adapter that changes one."""
    ends = [name for parts in every for name in parts.names if any(f".{end}." in name for end in updates.VOCABULARY)]
    if ends and updates.is_tied(base):
        message = f"an adapter changes {quoted(ends[0])}, and {base.name} has one matrix for both ends of its vocabulary"
        raise OrchestrateError(
            message, "PEFT would change both; load the base with tie_word_embeddings=False, save it, and name that"
        )


def _sums(base: Base, every: Sequence[Parts], changes: Sequence[updates.Changes], is_untied: bool) -> Sums:
    """The updates of all adapters by tensor, with each adapter's number; a head that stays one with the embedding has none."""
    sums: dict[str, tuple[tuple[int, Update], ...]] = {}
    head = updates.head_name(base)
    for number, own in enumerate(changes):
        for name, every_update in own.items():
            if name in base.tensors or (name == head and is_untied):
                sums[name] = (*sums.get(name, ()), *((number, update) for update in every_update))
    for name, pairs in sums.items():
        wholes = [(number, update.tensor) for number, update in pairs if vocabulary.is_whole(update)]
        owners = [number for number, tensor in wholes if tensor not in every[number].frozen and not name.endswith(".bias")]
        if len(owners) > 1:
            first, second = (every[number].adapter.name for number in owners[:2])
            message = f"the adapters {first} and {second} both hold a whole {quoted(name)} of their own"
            raise OrchestrateError(message, "only one of them can be merged: a sum of two whole modules is neither")
    return sums


def _files(base: Base, sums: Sums, rows: int | None, is_untied: bool) -> tuple[File, ...]:
    embedding, head = updates.embedding_name(base), updates.head_name(base)
    files = []
    for path, file in base.files.items():
        tensors = [_tensor(base, name, sums.get(name, ()), rows if name in (embedding, head) else None) for name in file.tensors]
        if is_untied and head not in base.tensors and embedding in file.tensors:
            tensors.append(_tensor(base, head, sums.get(head, ()), rows))
        files.append(File(path=path, tensors=tuple(tensors), metadata=file.metadata))
    return tuple(files)


def _tensor(base: Base, name: str, pairs: Sequence[tuple[int, Update]], rows: int | None) -> Tensor:
    """A tensor of the result, from its base, or from the adapter's own where that replaces it whole."""
    stored = base.tensors.get(name) or base.tensors[updates.embedding_name(base)]
    shape = stored.shape if rows is None else (rows, *stored.shape[1:])
    every = tuple(update for _, update in pairs)
    wholes = [(number, update) for number, update in pairs if vocabulary.is_whole(update)]
    result = Tensor(name=name, dtype=stored.dtype, shape=shape, base=stored, updates=every)
    if not wholes:
        return result
    whole = wholes[0]
    # What is reckoned from the matrix itself: by the adapter that replaces it from its own, by others from the base's.
    relative = {number for number, update in pairs if update.kind == "dora" or update.indices}
    if whole[0] in relative and (whole[1].weight != 1 or len(relative | {number for number, _ in wholes}) > 1):
        message = f"{quoted(name)} is replaced by an adapter that also trains it by rows or magnitudes"
        raise OrchestrateError(message, "merge that adapter alone, with weight 1")
    if whole[0] in relative:
        rest = tuple(update for _, update in pairs if update is not whole[1])
        return msgspec.structs.replace(result, base=whole[1].tensor, updates=rest)
    # Without a base it is the adapter's to the last bit, which the base and a difference to it are not.
    is_exact = len(wholes) == 1 and whole[1].weight == 1 and not relative
    return msgspec.structs.replace(result, base=None) if is_exact else result
