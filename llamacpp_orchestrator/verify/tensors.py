"""Comparison of an output's tensors with its source's, by names, shapes and counts; no file is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping

import msgspec

from llamacpp_orchestrator.models.safetensors import Shapes
from llamacpp_orchestrator.util.findings import Findings

BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# What no runtime reads, so that no converter writes it: tables that are computed, masks, counters, a pooler that only trains.
DROPPED = re.compile(r"(inv_freq|masked_bias|position_ids|num_batches_tracked|pooler\.dense\.\w+)$|(attn|attention)\.bias$")
# Without these nothing works, whatever the architecture; others may be left out.
CORE = ("token_embd.weight", "output_norm.weight", "output.weight", "position_embd.weight", "token_types.weight")
# What a block does not work without where its architecture has it; other kinds may be of some sizes of a model only.
WORKING = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down")
SHOWN = 3


class Sides(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors of a source and of its output, and which becomes which; `names` are the architecture's."""

    source: dict[str, tuple[int, ...]]
    output: dict[str, tuple[int, ...]]
    mapped: dict[str, str]
    names: tuple[str, ...] = ()
    blocks: int = 0
    headless: bool = False


class Uncertain(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors that only the model's class can decide on: those that may be lacking, and those unlike their siblings' shapes."""

    absent: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()


def listed(names: list[str]) -> str:
    """The first SHOWN names, and the number of the others, as text."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def is_dropped(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether upstream leaves a tensor of a source out; a mask called `bias` has more than one dimension."""
    match = DROPPED.search(name)
    return bool(match) and (bool(match and match[1]) or len(shape) != 1)


def source_counts(sides: Sides) -> dict[str, int]:
    """The count of numbers that the source has for each tensor of the output, by the output's names."""
    counts: dict[str, int] = {}
    for name, shape in sides.source.items():
        to = sides.mapped.get(name, "")
        if to and not is_dropped(name, shape):
            counts[to] = counts.get(to, 0) + math.prod(shape)
    return counts


def account(sides: Sides) -> Findings:
    """Tensors of the source that the output lacks or holds only in part."""
    due = source_counts(sides)
    sums = _balanced(sides)
    failures, notes = [], []
    siblings = Counter(match[2] for name in sides.output if (match := BLOCK.fullmatch(name)))
    empty = set(empty_blocks(sides))
    gone = [name for name in due if name not in sides.output and name != "output.weight"]
    for name in gone:
        match = BLOCK.fullmatch(name)
        if match and siblings[match[2]]:
            failures.append(f"{name} is not there, though the source has it and other blocks do too")
        elif name in CORE or (match and int(match[1]) in empty):
            failures.append(f"{name} is not there, though the source has it")
        elif not match or int(match[1]) not in sums:
            notes.append(name)
    lines = [f"upstream left out what it calls {listed(sorted(notes))}"] if notes else []
    sizes = _sizes(sides, due, sums)
    return Findings(failures=tuple(failures) + sizes.failures, notes=tuple(lines) + sizes.notes + _unnamed(sides, sums))


def _sizes(sides: Sides, due: dict[str, int], sums: set[int]) -> Findings:
    failures, notes = [], []
    ratios: dict[str, set[float]] = {}
    for name, count in due.items():
        if name in sides.output and (match := BLOCK.fullmatch(name)):
            ratios.setdefault(match[2], set()).add(math.prod(sides.output[name]) / max(count, 1))
    for name, count in due.items():
        if name not in sides.output or (have := math.prod(sides.output[name])) == count:
            continue
        match = BLOCK.fullmatch(name)
        line = f"{name} holds {have} numbers, the source {count}"
        if match and 1.0 in ratios[match[2]]:
            failures.append(line)
        elif not match or int(match[1]) not in sums:
            notes.append(line)
    return Findings(failures=tuple(failures), notes=(listed(notes),) if notes else ())


def _balanced(sides: Sides) -> set[int]:
    """The blocks that hold as many numbers as the source's."""
    have: Counter[int] = Counter()
    due: Counter[int] = Counter()
    for name, shape in sides.output.items():
        if match := BLOCK.fullmatch(name):
            have[int(match[1])] += math.prod(shape)
    for name, shape in sides.source.items():
        if not is_dropped(name, shape) and (number := _number(name)) is not None:
            due[number] += math.prod(shape)
    return {number for number in have if have[number] == due[number]}


def _number(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _unnamed(sides: Sides, sums: set[int]) -> tuple[str, ...]:
    names = [
        name
        for name, shape in sides.source.items()
        if not sides.mapped.get(name) and not is_dropped(name, shape) and _number(name) not in sums
    ]
    have, due = (sum(map(math.prod, side.values())) for side in (sides.output, sides.source))
    if not names or have >= due:
        return ()
    return (f"it holds {have} numbers, the source {due}; upstream left out, or gave another name, {listed(sorted(names))}",)


def uncertain(sides: Sides) -> Uncertain:
    """Tensors that a block lacks and another has, or has in another shape; and what every model has and this one has not."""
    kinds: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, shape in sides.output.items():
        if match := BLOCK.fullmatch(name):
            kinds.setdefault(match[2], {})[int(match[1])] = shape
    absent = [f"blk.{number}.{kind}" for kind, have in kinds.items() for number in range(sides.blocks) if number not in have]
    absent += [
        name
        for name in CORE
        if name in sides.names and name not in sides.output and not (name == "output.weight" and sides.headless)
    ]
    lost = [kind for kind in WORKING if f"blk.{{bid}}.{kind}.weight" in sides.names and not _has(kinds, kind)]
    absent += [f"blk.{number}.{kind}.weight" for number in range(sides.blocks) for kind in lost]
    odd = [f"blk.{number}.{kind}" for kind, have in kinds.items() if len(set(have.values())) > 1 for number in have]
    return Uncertain(absent=tuple(absent), shapes=tuple(odd))


def _has(kinds: Mapping[str, object], kind: str) -> bool:
    """Tell whether a kind of tensor is in some block, by itself, for several experts, or as a part of one that holds three."""
    fused = ("attn_qkv.weight",) if kind in ("attn_q", "attn_k", "attn_v") else ()
    return not kinds.keys().isdisjoint((f"{kind}.weight", f"{kind}_exps.weight", *fused))


def empty_blocks(sides: Sides) -> tuple[int, ...]:
    """Blocks that the output promises and of which it holds nothing."""
    have = {int(match[1]) for name in sides.output if (match := BLOCK.fullmatch(name))}
    return tuple(number for number in range(sides.blocks) if number not in have)


def decide(sides: Sides, doubtful: Uncertain, expected: Mapping[str, int] | None) -> Findings:
    """Decide by the model's class (`expected`: numbers by name); where nobody knows it, only a missing block is a failure."""
    if expected is None:
        if empty := empty_blocks(sides):
            line = f"{len(empty)} of {sides.blocks} blocks are not there (the first is blk.{empty[0]}): the source is not whole"
            return Findings(failures=(line,))
        line = f"some blocks lack what others have, and transformers does not know the model: {listed(list(doubtful.absent))}"
        return Findings(notes=(line,) if doubtful.absent else ())
    due = source_counts(sides)
    absent = [name for name in doubtful.absent if name in expected and name not in due]
    failures = [f"{listed(absent)} must be there by the model's class, but the source has no such tensor"] if absent else []
    failures += [
        f"{name} has {due[name]} numbers in the source, where the model's class has {expected[name]}"
        for name in doubtful.shapes
        if name in due and name in expected and due[name] != expected[name]
    ]
    return Findings(failures=tuple(failures))


def zeroed(sides: Sides, zeros: Mapping[str, tuple[int, int]], spare: int) -> Findings:
    """Tensors with more zeros than their source accounts for; a rest that was padded may be zero.

    `spare` are the zeros of the source for those tensors that cannot be compared one by one, negative where nobody knows.
    """
    due = source_counts(sides)
    failures, unknown = [], []
    for name, (have, explained) in zeros.items():
        count = math.prod(sides.output[name])
        if name not in due or explained < 0:
            unknown += [name] if have == count else []
        elif have > explained + max(0, count - due[name]):
            failures.append(f"{name} has {have} zeros in {count} numbers, where the source has {explained}")
    if 0 <= spare < sum(math.prod(sides.output[name]) for name in unknown):
        failures.append(f"nothing but zeros in {listed(unknown)}, where all that the source can have for it has {spare}")
    elif unknown:
        return Findings(
            failures=tuple(failures), notes=(f"nothing but zeros, and not comparable with the source: {listed(unknown)}",)
        )
    return Findings(failures=tuple(failures))


def same_shape(before: Shapes, after: Shapes) -> Findings:
    """Check that a quantized file has the tensors of what it was made from."""
    return Findings(failures=tuple(_differences(before, after)))


def _differences(before: Shapes, after: Shapes) -> Iterator[str]:
    if lost := [name for name in before if name not in after]:
        yield f"{listed(lost)} is not there, though it is in the file that it was made from"
    if new := [name for name in after if name not in before]:
        yield f"{listed(new)} is in no file that it was made from"
    for name in before.keys() & after.keys():
        if _plain(before[name]) != _plain(after[name]):
            yield f"{name} has the shape {list(after[name])}, where it had {list(before[name])}"


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones at its end, which llama-quantize leaves out: they hold no more numbers."""
    return shape if len(shape) < 2 or shape[-1] != 1 else _plain(shape[:-1])


def adapter(source: Shapes, output: Shapes, silent: tuple[set[str], set[str]]) -> Findings:
    """Check that an adapter holds all of its source; `silent` are the matrices of source and output that are all zero."""
    modules = {re.sub(r"\.?lora_(embedding_)?[AB]\b.*$", "", name) for name in source}
    have, due = (sum(map(math.prod, side.values())) for side in (output, source))
    failures: list[str] = []
    notes: list[str] = []
    uncertain = any("experts" in name or "vision" in name or "visual" in name or "audio" in name for name in modules)
    for what, mine, theirs in (("tensors", len(output), 2 * len(modules)), ("numbers", have, due)):
        if mine != theirs:
            (notes if uncertain else failures).append(f"it holds {mine} {what}, where the source has {theirs}")
    # Matrices of experts become one, which is zero only where each of them is.
    if len(silent[1]) > len(silent[0]):
        failures.append(f"{listed(sorted(silent[1]))} is all zero, where the source is not")
    ends = {name for name in output if name.endswith("lora_b")}
    if ends and ends <= silent[1]:
        notes.append("every B matrix is zero, as in the source: the adapter changes nothing")
    return Findings(failures=tuple(failures), notes=tuple(notes))
