"""Proof by comparison: what an output says next, in the tag's own program, is what transformers and PEFT say of its source."""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import config_keys
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import interpreter as system_interpreter
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import tool_env
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify.gguf import Contents

TOOL = "llama-perplexity"
# The tokens of a piece. The program wants twice as many, and records what follows those of the second half. Half of the least is
# enough for rope to turn otherwise where its base or scaling is wrong; half of the most is a window that can be looked beyond.
LEAST, MOST = 256, 2048
# What is recorded for a piece, in numbers of two bytes; the program keeps them as floats besides.
MOST_NUMBERS = 1 << 28
# The beginning of Alice's Adventures in Wonderland (Lewis Carroll, 1865).
TEXT = """\
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice she had
peeped into the book her sister was reading, but it had no pictures or conversations in it, "and what is the use of a book,"
thought Alice, "without pictures or conversations?"
So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), whether the
pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a White Rabbit
with pink eyes ran close by her.
There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit say to itself,
"Oh dear! Oh dear! I shall be late!" (when she thought it over afterwards, it occurred to her that she ought to have wondered at
this, but at the time it all seemed quite natural); but when the Rabbit actually took a watch out of its waistcoat-pocket, and
looked at it, and then hurried on, Alice started to her feet.
"""
# Architectures with an encoder before the decoder (src/llama-arch.cpp).
PAIRS = ("t5",)
HEAD = struct.Struct("<8s3i")
MAGIC = b"_logits_"
F32, F16, Q8_0, BF16 = 0, 1, 8, 30
# An adapter must come closer to PEFT than its own effect by this factor, as far as sums of 16-bit numbers can tell.
SHARE, FLOOR = 0.1, 1e-3
EXTRA_SECONDS = 1800.0
LESS = "`verify: load` does without this comparison"
WRONG = "the tag converts this model wrongly, or its source is damaged: pin a newer tag, or get the source's files again"
# A model in float32 takes much memory; two at once may take too much.
_one_at_a_time = threading.Lock()


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What llama-perplexity has recorded: the tokens of its first piece, and where the rows for the second half of them lie."""

    tokens: tuple[int, ...]
    vocabulary: int
    first: int
    rows: int
    start: int
    stride: int


class Position(msgspec.Struct, frozen=True, array_like=True):
    """One next token: KL divergence, the source's likeliest, the output's, and how far the source has that behind its own."""

    kl: float
    expected: int
    found: int
    behind: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What transformers_logits.py found; `effect` is the mean KL divergence between the model with and without its adapter."""

    by: str
    unable: str = ""
    notes: tuple[str, ...] = ()
    positions: tuple[Position, ...] = ()
    effect: float = 0.0


class Bounds(msgspec.Struct, frozen=True):
    """How far an output may be off: in mean KL divergence, and in the log-probability of a token that it prefers; None: any."""

    kl: float
    behind: float | None


# The less exact a type is, the nearer two tokens may be for it to prefer the wrong one. A right file of SmolLM2-135M, smaller and
# thus further off than what most people convert, at b11434: f32 4e-7; f16 2e-6; bf16 9e-5, 0.05; q8_0 4e-3, 0.35. In bf16, and
# wrong: rope base times 1.3 3e-3, 0.33; rope scaled by 1.1 1e-2, 0.59; base times 5 5e-2; YaRN that is not meant 7e-2.
BOUNDS = {F32: Bounds(0.001, 0.001), F16: Bounds(0.001, 0.02), BF16: Bounds(0.002, 0.2), Q8_0: Bounds(0.02, 1.0)}
OTHER = Bounds(0.5, None)


class Sides(msgspec.Struct, frozen=True, kw_only=True):
    """An output (an adapter with the `base` that it is tried on), and what it was made from.

    `interpreter` has transformers; `run` runs the tag's program.
    """

    files: tuple[Path, ...]
    base: tuple[Path, ...] = ()
    model: Path
    adapter: Path | None = None
    interpreter: Interpreter
    run: Run = process.stream


def windows(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> list[int]:
    """How far back attention reaches where it does not reach all, by an output's metadata and by its source's config.json."""
    said = [part.get("sliding_window") for part in config_keys.parts(config) if part.get("use_sliding_window") is not False]
    said.append(metadata.get(f"{metadata.get('general.architecture')}.attention.sliding_window"))
    return [each for each in said if isinstance(each, int) and each > 0]


def context(reach: Sequence[int], vocabulary: int) -> int:
    """The tokens of a piece: all that are compared lie beyond the nearest window, where such texts are not too long."""
    wanted = max(LEAST, 2 * min(reach, default=0))
    return wanted if wanted <= MOST and wanted // 2 * vocabulary <= MOST_NUMBERS else LEAST


def text(tokens: int) -> str:
    """A text of at least so many tokens, by whatever tokenizer: as many words, those of TEXT and then every second, third, ..."""
    words = TEXT.split()
    return " ".join(words[number * (1 + number // len(words)) % len(words)] for number in range(tokens))


def command(tool: Path, files: Sequence[Path], base: Sequence[Path], folder: Path, ends: bool, size: int = LEAST) -> Command:
    """The call that records next tokens of `logits.txt` in `logits.bin`, on the processor; `ends`: its texts get an end."""
    model = (base or files)[0]
    more = ("--lora", str(files[0])) if base else ()
    # The program stops at a vocabulary that adds an end to each text; which tokens are compared does not matter.
    endless = ("--override-kv", "tokenizer.ggml.add_eos_token=bool:false") if ends else ()
    words = (
        "-m",
        str(model),
        *more,
        *endless,
        "-f",
        "logits.txt",
        "--kl-divergence-base",
        "logits.bin",
        "--chunks",
        "1",
        "-ngl",
        "0",
    )
    env = dict(tool_env(tool)) | {"CUDA_VISIBLE_DEVICES": ""}
    argv = (str(tool), *words, "-c", str(size), "-b", str(size), "-ctk", "f32", "-ctv", "f32")
    return Command(argv, cwd=str(folder), env=tuple(sorted(env.items())))


def read(path: Path) -> Record:
    """What a file of llama-perplexity holds (tools/perplexity/perplexity.cpp); OrchestrateError when it is not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD.size)
        magic, context, vocabulary, pieces = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0, 0, 0)
        if magic != MAGIC or min(context, vocabulary, pieces) < 1:
            raise _unreadable(f"it begins with {head[:8]!r}")
        first, start = context // 2, HEAD.size + 4 * context * pieces
        rows, stride = context - 1 - first, 2 * (2 * ((vocabulary + 1) // 2) + 4)
        if size != start + pieces * rows * stride:
            raise _unreadable(f"it has {size} bytes, not {start + pieces * rows * stride}")
        tokens = struct.unpack(f"<{context}i", file.read(4 * context))
    return Record(tokens=tokens, vocabulary=vocabulary, first=first, rows=rows, start=start, stride=stride)


def _unreadable(why: str) -> OrchestrateError:
    return OrchestrateError(f"what this tag's {TOOL} has recorded cannot be read: {why}", LESS)


def bounds(types: Iterable[int]) -> Bounds:
    """How far tensors of such types (gguf-py/gguf/constants.py, GGMLQuantizationType) may be off, by the least exact of them."""
    found = [BOUNDS.get(each, OTHER) for each in types]
    return max(found, key=lambda each: (each.kl, each.behind or 0.0), default=BOUNDS[F32])


def judge(name: str, answer: Answer, allowed: Bounds, first: int = 0) -> Findings:
    """Whether an output says next what its source says; `first` is the number of the first position."""
    mean = math.fsum(each.kl for each in answer.positions) / len(answer.positions)
    most = allowed.kl
    if answer.effect and most <= BOUNDS[BF16].kl:
        most = min(most, max(SHARE * answer.effect, FLOOR))
    figures = f"mean KL divergence {shown(mean)} from {answer.by} over {len(answer.positions)} positions"
    figures += f" (what the adapter changes: {shown(answer.effect)})" if answer.effect else ""
    other = [(number, each) for number, each in enumerate(answer.positions, first) if each.found != each.expected]
    far = [pair for pair in other if allowed.behind is not None and not pair[1].behind <= allowed.behind]
    if far or not mean <= most:
        number, each = max(far or enumerate(answer.positions, first), key=lambda pair: (pair[1].behind, pair[1].kl))
        tokens = f"at position {number} its likeliest token is {each.found}, the source's {each.expected}"
        said = f"{name} does not go on as its source does: {tokens}; {figures}, where {shown(most)} is allowed"
        return Findings(failures=("; ".join((said, *answer.notes)),))
    near = " (nearly tied)" if allowed.behind is not None else ""
    same = f"{len(other)} of the top tokens differ{near}" if other else "all top tokens equal"
    return Findings(notes=(f"logits: {figures}, {same}", *answer.notes))


def shown(number: float) -> str:
    """A divergence for people; what rounding alone makes of 0 is 0."""
    return f"{max(number, 0.0):.2g}" if not math.isnan(number) else "nan"


def check(sides: Sides, find: Callable[[str], Path], tell: Callable[[str], None]) -> tuple[Findings, bool]:
    """Compare an output with its source, and whether that could be done; CommandFailed when one of the two cannot be run."""
    have = gguf.contents(sides.files)
    whole = gguf.contents(sides.base) if sides.base else have
    types = {each.type for _, each in (*have.tensors.values(), *whole.tensors.values()) if len(each.shape) > 1}
    config = sides.model / "config.json"
    reach = windows(whole.metadata, json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {})
    size = context(reach, _vocabulary(whole))
    folder = sides.interpreter.scratch
    words, record = folder / "logits.txt", folder / "logits.bin"
    try:
        with _one_at_a_time:
            words.write_text(text(2 * size), encoding="utf-8", newline="\n")
            _record(sides, find(TOOL), bool(whole.metadata.get("tokenizer.ggml.add_eos_token")), size)
            if not record.is_file():
                raise OrchestrateError(f"{TOOL} said that it was done, but has recorded nothing", LESS, sides.interpreter.log)
            found = read(record)
            answer = _ask(sides, found, record, tell)
    finally:
        words.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
    if answer.unable:
        return Findings(notes=(f"{answer.unable}, so its next tokens were not compared",)), False
    short = f"its window of {min(reach)} tokens is longer than the text that was compared" if size < min(reach, default=0) else ""
    return judge(sides.files[0].name, answer, bounds(types), found.first) + Findings(notes=(short,) if short else ()), True


def _vocabulary(have: Contents) -> int:
    rows = have.tensors["token_embd.weight"][1].shape if "token_embd.weight" in have.tensors else (0,)
    return rows[-1]


def _record(sides: Sides, tool: Path, ends: bool, size: int) -> None:
    by = sides.interpreter
    try:
        asked = command(tool, sides.files, sides.base, by.scratch, ends, size)
        sides.run(sandbox.around(asked, by.limits, write=(by.scratch,)), by.log, lambda line: None)
    except CommandFailed as error:
        message = diagnose.pointed(f"{TOOL} cannot run {sides.files[0].name}: {error.message}", error.tail)
        raise error.retold(message, diagnose.machine(error.code, f"{error.message}\n{error.tail}")[1] or LESS) from error


def question(model: Path, adapter: Path | None, record: Record, path: Path) -> dict[str, Any]:
    """What inside/transformers_logits.py is asked about a source and what was recorded of an output."""
    return {
        "model": str(model),
        "adapter": str(adapter or ""),
        "tokens": record.tokens,
        "record": [str(path), record.start, record.stride],
        "first": record.first,
        "rows": record.rows,
        "vocabulary": record.vocabulary,
    }


def _ask(sides: Sides, record: Record, path: Path, tell: Callable[[str], None]) -> Answer:
    tell("asking transformers")
    seen = [sides.model, *([sides.adapter] if sides.adapter else [])]
    try:
        asked = question(sides.model, sides.adapter, record, path)
        return system_interpreter.ask(sides.interpreter, "transformers_logits", asked, Answer, seen)
    except CommandFailed as error:
        message = diagnose.pointed(f"transformers cannot run the source of {sides.files[0].name}: {error.message}", error.tail)
        hint = f"in float32 it takes 4 bytes of memory for each parameter; {LESS}"
        raise error.retold(message, hint) from error
