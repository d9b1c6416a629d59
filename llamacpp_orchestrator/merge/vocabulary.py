"""The two ends of a vocabulary: which moves with which, whether they stay one matrix, and how many tokens there are then."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import updates
from llamacpp_orchestrator.merge.adapter_parts import Parts
from llamacpp_orchestrator.merge.base_files import Base
from llamacpp_orchestrator.merge.records import Update
from llamacpp_orchestrator.merge.updates import Changes


def both_ends(parts: Parts, base: Base, changes: Changes) -> Changes:
    """The changes of an adapter with what PEFT lets happen at the head, of a base that has one matrix for both ends.

    It gives the head the embedding's trained tokens (peft/utils/other.py) and whatever `ensure_weight_tying` binds to it; a
    matrix that was resized is that of both ends still, and saved by both names. All else that changes one end changes it alone.
    """
    embedding, head = updates.embedding_name(base), updates.head_name(base)
    first, last = changes.get(embedding, ()), changes.get(head, ())
    is_one = updates.is_tied(base)
    if not embedding or not _is_tied_by_config(base):
        return changes
    if is_one and parts.config.get("ensure_weight_tying") and first:
        return {**changes, head: first}
    modules = {name.rpartition(".")[2] for name in adapter_parts.words(parts.config, "modules_to_save")}
    if is_one and not {embedding.split(".")[-2], head.split(".")[-2]} & modules and any(map(is_whole, first)):
        last = (*filter(is_whole, first), *(update for update in last if not is_whole(update)))
    rows = [update for update in first if update.indices]
    if {update.indices for update in last} - {None} <= {update.indices for update in rows}:
        last = (*(update for update in last if not update.indices), *rows)
    return {**changes, head: last} if last else changes


def is_whole(update: Update) -> bool:
    """Tell whether an update replaces a tensor, whatever its size."""
    return update.kind == "tensor" and update.indices is None


def unties(base: Base, changes: Sequence[Changes]) -> bool:
    """Tell whether one matrix for both ends cannot hold what the adapters make of them.

    Raises OrchestrateError for a base that would be another model with two.
    """
    ends = updates.embedding_name(base), updates.head_name(base)
    is_untied = _is_tied_by_config(base) and any(own.get(ends[0], ()) != own.get(ends[1], ()) for own in changes)
    if is_untied and base.text.get("is_encoder_decoder"):
        message = (
            f"an adapter changes one end of the vocabulary of {base.name}, whose class scales its answers by their being one"
        )
        raise OrchestrateError(message, "serve it with PEFT, or train it without its embeddings")
    return is_untied


def _is_tied_by_config(base: Base) -> bool:
    """Tell whether both ends are one by the config; transformers 5 keeps a head of its own beside that, 4 does not."""
    return updates.is_tied(base) or bool(base.text.get("tie_word_embeddings"))


def rows(base: Base, sums: Mapping[str, tuple[Update, ...]]) -> int | None:
    """The number of tokens after a merge that changes it, None for one that does not.

    Raises OrchestrateError where one end would have rows that nobody has trained.
    """
    ends = [name for name in (updates.embedding_name(base), updates.head_name(base)) if name in base.tensors or name in sums]
    sizes = {name: _rows(updates.shape_of(base, name)[0], sums.get(name, ())) for name in ends}
    before = {updates.shape_of(base, name)[0] for name in ends}
    after = max(sizes.values(), default=0)
    if any(len({*map(_span, sums.get(name, ()))} - {0, size}) for name, size in sizes.items()):
        message = (
            f"the adapters do not agree on the size of the vocabulary of {base.name}: one resizes it, another fits it as it was"
        )
        raise OrchestrateError(message, "merge the one that resizes it alone, and train the other on the result")
    if -1 in sizes.values():
        message = f"an adapter trains tokens that {base.name} has not, and leaves others before them untrained"
        raise OrchestrateError(message, "save the adapter again with PEFT's save_pretrained(..., save_embedding_layers=True)")
    if {*sizes.values()} == before:
        return None
    for name, size in sizes.items():
        if sum(is_whole(update) and _span(update) == size for update in sums.get(name, ())) > 1:
            message = f"two adapters resize the vocabulary of {base.name}, each for tokens of its own"
            raise OrchestrateError(message, "merge one of them, and train the other on the result")
    if len({*sizes.values()}) > 1:
        few = min(sizes, key=lambda name: sizes[name])
        message = (
            f"the adapters resize one end of the vocabulary of {base.name} to {after} tokens; {quoted(few)} has {sizes[few]}"
        )
        raise OrchestrateError(message, "save the adapter again with PEFT's save_pretrained(..., save_embedding_layers=True)")
    return after


def _rows(before: int, sums: Sequence[Update]) -> int:
    """The rows of an end: those of its new matrix, with one more for each trained token in turn beyond them; -1 with a gap."""
    whole = next((update.tensor.shape[0] for update in sums if update.tensor and is_whole(update)), before)
    more = {row for update in sums for row in update.indices or () if row >= whole}
    return whole + len(more) if more == set(range(whole, whole + len(more))) else -1


def _span(update: Update) -> int:
    """The rows that an update must find, 0 for one that names its own."""
    if update.a and update.b:
        return update.a.shape[1] if update.transposed else update.b.shape[0]
    return update.tensor.shape[0] if update.tensor and update.indices is None else 0
