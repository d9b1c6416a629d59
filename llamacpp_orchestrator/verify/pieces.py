"""Comparison of an output's tokenizer with its source's: merges, scores, token types, begin and end of a text."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import msgspec

from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify.tensors import listed
from llamacpp_orchestrator.verify.tokenizer import TokenizerFiles
from llamacpp_orchestrator.verify.tokenizer import source_ends

# Tokenizers of the output by the names of llama.cpp's src/llama-vocab.cpp: byte pairs, sentencepiece's pairs, unigrams.
PAIRS, SENTENCES, UNIGRAM = ("gpt2", "gemma4"), "llama", "t5"
# Files of sentencepiece in the order in which upstream's scripts look for them.
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# gguf.TokenType.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
# Pre-tokenizers for which llama.cpp adds a first token though the file does not say so, and the one where it always does.
ADDING, ALWAYS = (
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken chameleon".split(),  # noqa: SIM905
    "gemma4",
)
# Tokens that llama.cpp ends a text at by what they are called, whatever the file says.
ENDS = frozenset(
    """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT>
    [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[
    """.split()  # noqa: SIM905
)
SPACE = "▁"
# Where llama.cpp looks for begin and end when a file does not say it.
USUAL = {"bos": {"llama": 1, "gpt2": 11}, "eos": {"llama": 2, "gpt2": 11, "t5": 1}}


class Pieces(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a sentencepiece file: texts, scores and types (gguf.TokenType) of its pieces in their order."""

    name: str
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]


def compare(source: TokenizerFiles, metadata: Mapping[str, Any], pieces: Pieces | None, raw: bytes = b"") -> Findings:
    """Compare all that decides how texts are cut; `raw` is the sentencepiece file, in which a map of characters may lie."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return Findings()
    return (
        merges(source, metadata)
        + scores(source, metadata, pieces)
        + types(source, metadata)
        + lost(source, metadata)
        + frame(source, metadata)
        + prefix(source, metadata, pieces is not None)
        + charsmap(source, metadata, raw)
        + ends(source, metadata)
    )


def merges(source: TokenizerFiles, metadata: Mapping[str, Any]) -> Findings:
    """Check that a byte-pair vocabulary has its merges and the name of its pre-tokenizer; nothing loads it without merges."""
    if metadata.get("tokenizer.ggml.model") not in PAIRS:
        return Findings()
    failures = []
    if not metadata.get("tokenizer.ggml.pre"):
        failures.append("it does not name its pre-tokenizer, so that llama.cpp would cut texts in a way of its own")
    due, have = source_merges(source), metadata.get("tokenizer.ggml.merges") or []
    if due and not have:
        failures.append(f"it has none of the source's {len(due)} merges (the tag's script does not know how they are written)")
    elif due and have != due:
        at = next((at for at, (one, other) in enumerate(zip(have, due, strict=False)) if one != other), min(len(have), len(due)))
        first = f"the first other one is {at}, {''.join(have[at : at + 1])!r} instead of {''.join(due[at : at + 1])!r}"
        failures.append(f"it has {len(have)} merges, the source {len(due)}; {first}")
    return Findings(failures=tuple(failures))


def source_merges(source: TokenizerFiles) -> list[str]:
    """A source's merges as a GGUF holds them, one text each; a blank inside a part is written as byte-level vocabularies do."""
    if source.tokenizer is None or not source.tokenizer.model.merges:
        return list(source.merges)
    return [
        pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair)
        for pair in source.tokenizer.model.merges
    ]


def scores(source: TokenizerFiles, metadata: Mapping[str, Any], pieces: Pieces | None) -> Findings:
    """Compare the scores of plain tokens, which decide how a text is cut; others have scores of upstream's own."""
    if metadata.get("tokenizer.ggml.model") not in (SENTENCES, UNIGRAM):
        return Findings()
    tokens, have = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.scores") or []
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    due = _scores(source, pieces)
    if due and len(have) != len(tokens):
        return Findings(failures=(f"it has {len(have)} scores for {len(tokens)} tokens",))
    plain = [number for number, kind in enumerate(kinds) if kind == NORMAL and number < len(tokens)]
    failures = []
    if wrong := [n for n in plain if tokens[n] in due and not math.isclose(have[n], due[tokens[n]], rel_tol=1e-5, abs_tol=1e-6)]:
        n = wrong[0]
        first = f"the first is {n} ({tokens[n]!r}), {have[n]:.6g} instead of {due[tokens[n]]:.6g}"
        failures.append(f"{len(wrong)} tokens have another score than in the source: {first}")
    if pieces and pieces.name != "sentencepiece.bpe.model":
        failures += _texts(pieces, tokens, kinds)
    return Findings(failures=tuple(failures))


def _scores(source: TokenizerFiles, pieces: Pieces | None) -> dict[str, float]:
    if pieces:
        return dict(zip(pieces.texts, pieces.scores, strict=True))
    vocab = source.tokenizer.model.vocab if source.tokenizer else {}
    return dict(vocab) if isinstance(vocab, list) else {}


def _texts(pieces: Pieces, tokens: list[str], kinds: list[int]) -> Iterator[str]:
    """Plain pieces that are not there under their number; an added token may have taken the place of one."""
    other = [
        number
        for number, (text, kind) in enumerate(zip(pieces.texts, pieces.types, strict=True))
        if kind == NORMAL and kinds[number : number + 1] in ([NORMAL], [UNUSED]) and tokens[number : number + 1] != [text]
    ]
    if other:
        first = f"the first is {other[0]}, {tokens[other[0]]!r} instead of {pieces.texts[other[0]]!r}"
        yield f"{len(other)} tokens are not those of {pieces.name}: {first}"


def types(source: TokenizerFiles, metadata: Mapping[str, Any]) -> Findings:
    """Check that special tokens are marked as such: one that is not is cut into letters, and a reader may type it."""
    kinds, tokens = metadata.get("tokenizer.ggml.token_type"), metadata["tokenizer.ggml.tokens"]
    if metadata.get("tokenizer.ggml.model") not in (*PAIRS, SENTENCES) or source.tokenizer is None or not isinstance(kinds, list):
        return Findings()
    plain = [
        token.content
        for token in source.tokenizer.added_tokens
        if token.special and kinds[token.id : token.id + 1] == [NORMAL] and tokens[token.id : token.id + 1] == [token.content]
    ]
    line = f"{listed([repr(text) for text in plain])} is special in the source, and plain text in the output"
    return Findings(failures=(line,) if plain else ())


def lost(source: TokenizerFiles, metadata: Mapping[str, Any]) -> Findings:
    """Tokens that were added to the source's vocabulary and whose places are empty in the output's."""
    model, tokens = metadata.get("tokenizer.ggml.model"), metadata["tokenizer.ggml.tokens"]
    added = source.tokenizer.added_tokens if source.tokenizer else []
    gone = [token for token in added if tokens[token.id : token.id + 1] == [f"[PAD{token.id}]"] != [token.content]]
    if not gone:
        return Findings()
    line = f"added tokens of the source are not there: {listed([repr(token.content) for token in gone])}"
    # T5's places for what was cut out of a text have always been left out.
    certain = model in (*PAIRS, SENTENCES) and any(token.special for token in gone)
    return Findings(failures=(line,)) if certain else Findings(notes=(line,))


def around(processor: Any) -> tuple[list[str], list[str]] | None:
    """The tokens that a tokenizer.json puts before and after a text; None for an unknown kind of post-processor."""
    kind = processor.get("type") if isinstance(processor, dict) else ""
    if processor is None or kind == "ByteLevel":
        return [], []
    if kind in ("RobertaProcessing", "BertProcessing"):
        return [str(processor["cls"][0])], [str(processor["sep"][0])]
    if kind == "Sequence":
        before: list[str] = []
        after: list[str] = []
        for part in processor["processors"]:
            if (more := around(part)) is None:
                return None
            before, after = more[0] + before, after + more[1]
        return before, after
    if kind != "TemplateProcessing":
        return None
    words = [part.get("SpecialToken", {}).get("id") for part in processor["single"]]
    at = words.index(None) if None in words else len(words)
    return words[:at], [word for word in words[at:] if word]


def adds(metadata: Mapping[str, Any], kind: str) -> bool:
    """Whether llama.cpp puts a token before ("bos") or after ("eos") a text; src/llama-vocab.cpp has what a file leaves open."""
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "bos" and ALWAYS in (model, pre):
        return True
    key = metadata.get(f"tokenizer.ggml.add_{kind}_token")
    usual = model == SENTENCES or (model == "gpt2" and pre in ADDING) if kind == "bos" else model == UNIGRAM
    return key if isinstance(key, bool) else usual


def frame(source: TokenizerFiles, metadata: Mapping[str, Any]) -> Findings:
    """Compare the tokens put around a text with those of the source's tokenizer; a key of its config may say otherwise."""
    if metadata.get("tokenizer.ggml.model") not in (*PAIRS, SENTENCES, UNIGRAM):
        return Findings()
    try:
        frames = around(source.tokenizer.post_processor) if source.tokenizer else None
    except (AttributeError, KeyError, IndexError, TypeError):  # not as tokenizers writes it
        frames = None
    findings = Findings()
    for at, (kind, where) in enumerate((("bos", "before"), ("eos", "after"))):
        key = (source.tokenizer_config or {}).get(f"add_{kind}_token")
        words = frames[at] if frames else None
        findings += _side(kind, where, words, key if isinstance(key, bool) else None, metadata)
    return findings


def _side(kind: str, where: str, words: list[str] | None, key: bool | None, metadata: Mapping[str, Any]) -> Findings:
    tokens, usual = metadata["tokenizer.ggml.tokens"], USUAL[kind].get(str(metadata.get("tokenizer.ggml.model")), -1)
    number = metadata.get(f"tokenizer.ggml.{kind}_token_id", usual)
    have = [tokens[number]] if adds(metadata, kind) and 0 <= number < len(tokens) else []
    mine = f"the output puts {_quoted(have)} {where} a text"
    if words is None:
        line = f"{mine}, where the source's tokenizer_config.json says add_{kind}_token: {str(key).lower()}"
        return Findings(failures=(line,)) if key is not None and key != bool(have) else Findings()
    theirs = f"the source's tokenizer.json {_quoted(words)}"
    if key is not None and key != bool(words):
        line = f"{mine}; {theirs}, while its tokenizer_config.json says add_{kind}_token: {str(key).lower()}, as some readers do"
        return Findings(notes=(line,))
    if have == words:
        return Findings()
    # A GGUF can name one token; where a source has more, its chat template as a rule has them as well.
    return Findings(notes=(f"{mine}, {theirs}",)) if len(words) > 1 else Findings(failures=(f"{mine}, {theirs}",))


def _quoted(words: list[str]) -> str:
    return " ".join(map(repr, words)) or "nothing"


def prefix(source: TokenizerFiles, metadata: Mapping[str, Any], has_pieces: bool) -> Findings:
    """Check that a blank is put before a text as in the source; where it has two files for that, they may differ."""
    model = metadata.get("tokenizer.ggml.model")
    if model not in (SENTENCES, UNIGRAM) or source.tokenizer is None:
        return Findings()
    due = blank_first(source.tokenizer.normalizer, source.tokenizer.pre_tokenizer)
    key = metadata.get("tokenizer.ggml.add_space_prefix")
    have = key if isinstance(key, bool) else model == SENTENCES
    if due is None or due == have:
        return Findings()
    words = {True: "a blank", False: "no blank"}
    line = f"the output puts {words[have]} before a text, the source's tokenizer.json {words[due]}"
    return Findings(notes=(line,)) if has_pieces else Findings(failures=(line,))


def blank_first(normalizer: Any, pre_tokenizer: Any) -> bool | None:
    """Tell whether a tokenizer.json puts a blank before a text; None where it does not work with visible blanks."""
    steps = [*_steps(normalizer, "normalizers"), *_steps(pre_tokenizer, "pretokenizers")]
    for step in steps:
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            return scheme != "never" if scheme else bool(step.get("add_prefix_space", True))
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            return True
    return False if any(step.get("type") == "Replace" and step.get("content") == SPACE for step in steps) else None


def _steps(step: Any, inner: str) -> Iterator[dict[str, Any]]:
    if isinstance(step, dict):
        yield step
        for part in step.get(inner) or []:
            yield from _steps(part, inner)


def charsmap(source: TokenizerFiles, metadata: Mapping[str, Any], raw: bytes) -> Findings:
    """Check that a unigram tokenizer has the map by which its source spells characters another way."""
    if metadata.get("tokenizer.ggml.model") != UNIGRAM:
        return Findings()
    have = bytes(metadata.get("tokenizer.ggml.precompiled_charsmap") or b"")
    due = b""
    for step in _steps(source.tokenizer.normalizer if source.tokenizer else None, "normalizers"):
        try:
            due = due or base64.b64decode(step.get("precompiled_charsmap") or "")
        except (binascii.Error, TypeError):
            return Findings(notes=("the map of characters in the source's tokenizer.json cannot be read",))
    if have == due or (have and have in raw):
        return Findings()
    if not due:
        return Findings(notes=("it has a map of characters, the source none that is known",))
    return Findings(failures=("it has not the map by which the source spells characters another way (precompiled_charsmap)",))


def ends(source: TokenizerFiles, metadata: Mapping[str, Any]) -> Findings:
    """Check that a text ends at each token that the source names, by number or as llama.cpp knows it by its text."""
    tokens = metadata["tokenizer.ggml.tokens"]
    kept = {metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")}
    gone = [
        f"{tokens[number]!r} ({number})"
        for number in sorted(source_ends(source) - kept)
        if 0 <= number < len(tokens) and tokens[number] not in ENDS
    ]
    line = f"the source ends a text at {listed(gone)} as well; llama.cpp will not, unless it is told to stop there"
    return Findings(notes=(line,) if gone else ())
