"""A sentencepiece model made of tokenizer.json, for scripts that read the pieces of a vocabulary nowhere else.

transformers 5 saves tokenizer.json alone. Upstream finds the tokens there, but not what they are worth (gguf-py's LlamaHfVocab
gives each the score -1000), and by that the runtime cuts a text. The format is sentencepiece_model.proto of sentencepiece.
"""

from __future__ import annotations

import re
import struct
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

from llamacpp_orchestrator.convert import config_keys
from llamacpp_orchestrator.translation import Json
from llamacpp_orchestrator.translation import Read
from llamacpp_orchestrator.translation import Reader
from llamacpp_orchestrator.translation import Rule

TOKENIZER, FAIRSEQ = "tokenizer.json", "sentencepiece.bpe.model"
NAMES = ("tokenizer.model", "spiece.model", FAIRSEQ)
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
ALL_BYTES, TAB = 256, "<0x09>"
# fairseq's four, by which the ids of XLM-R's family differ from those of its sentencepiece model.
FIRST = ["<s>", "<pad>", "</s>", "<unk>"]
Piece = tuple[str, float, int]


def pieces(read: Read, reader: Reader) -> Json:
    """The file of pieces that the script looks for, where only tokenizer.json has them."""
    if not reader.pieces or any(read(name) is not None for name in NAMES) or not isinstance(read(TOKENIZER), dict):
        return {}
    tokenizer = read(TOKENIZER)
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    try:
        if kind == "BPE" and reader.pieces == "tokenizer.model" and is_spaced(tokenizer):
            ranked = _ranked(tokenizer, _unknown(read))
            return {reader.pieces: proto(tokenizer, BPE, ranked[: _rows(read, len(model["vocab"]))])}
        if kind == "Unigram" and reader.pieces != "tokenizer.model":
            scored = _scored(tokenizer)
            if reader.pieces == FAIRSEQ:
                if [text for text, *_ in scored[:4]] != FIRST:
                    return {}
                scored = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), *scored[4:]]
            return {reader.pieces: proto(tokenizer, UNIGRAM, scored)}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        pass  # a tokenizer.json of another kind: upstream says what it lacks
    return {}


def is_spaced(tokenizer: Json) -> bool:
    """Tell whether a byte-pair tokenizer.json is of sentencepiece's kind: spaces are letters, and what has no token is bytes."""
    cuts = [part for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers") if not _is_idle(part, tokenizer)]
    whole = all(cut["type"] == "Metaspace" and not cut.get("split") for cut in cuts)
    return whole and bool(tokenizer["model"].get("byte_fallback"))


def _is_idle(cut: Json, tokenizer: Json) -> bool:
    """Tell whether a part cuts nothing: Gemma's looks for blanks, and the normalizer has made letters of them before."""
    changed = [part for part in _parts(tokenizer.get("normalizer"), "normalizers") if part.get("type") == "Replace"]
    blank = {"String": " "}
    return cut.get("type") == "Split" and cut.get("pattern") == blank and any(part.get("pattern") == blank for part in changed)


def _rows(read: Read, least: int) -> int | None:
    """The number of tokens that a model has rows for; what a library adds beyond (<mask>) is in no text and ends old scripts."""
    config = read("config.json")
    size = config_keys.flat(config).get("vocab_size") if isinstance(config, dict) else None
    return size if isinstance(size, int) and size >= least else None


def _unknown(read: Read) -> str:
    """The token for what has none, which tokenizer.json need not name where there are bytes."""
    named = read(TOKENIZER)["model"].get("unk_token") or (read("tokenizer_config.json") or {}).get("unk_token") or "<unk>"
    return str(named["content"] if isinstance(named, dict) else named)


def _tokens(tokenizer: Json, texts: dict[int, str], unknown: str) -> Iterator[tuple[int, str, int]]:
    """(id, text, type) of every token without a gap; what is missing is a piece that nobody uses."""
    added = {token["id"]: token for token in tokenizer.get("added_tokens") or ()}
    texts = texts | {number: token["content"] for number, token in added.items()}
    for number in range(max(texts) + 1):
        text = texts.get(number, f"[PAD{number}]")
        if text == unknown:
            kind = UNKNOWN
        elif number in added:
            kind = CONTROL if added[number].get("special") else USER_DEFINED
        else:
            kind = NORMAL if number in texts else UNUSED
        yield number, text, kind


def _ranked(tokenizer: Json, unknown: str) -> list[Piece]:
    """Pieces whose score is the negative rank of the first merge that makes them, as sentencepiece's own trainer has it."""
    model = tokenizer["model"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    ranks = {text: rank for rank, text in enumerate(dict.fromkeys(first + second for first, second in pairs))}
    ranked = []
    texts = {number: text for text, number in model["vocab"].items()}
    if TAB not in model["vocab"] and "\t" in model["vocab"]:  # transformers' converter for Gemma writes it as it looks
        texts[model["vocab"]["\t"]] = TAB
    for number, text, kind in _tokens(tokenizer, texts, unknown):
        byte = kind == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", text)
        score = 0.0 if kind != NORMAL or byte else -float(ranks.get(text, len(ranks) + number))
        ranked.append((text, score, BYTE if byte else kind))
    if sum(kind == BYTE for *_, kind in ranked) != ALL_BYTES:
        raise ValueError("sentencepiece has all bytes or none")
    return ranked


def _scored(tokenizer: Json) -> list[Piece]:
    vocabulary = tokenizer["model"]["vocab"]
    texts = {number: str(text) for number, (text, _) in enumerate(vocabulary)}
    unknown = texts[tokenizer["model"]["unk_id"]]
    return [
        (text, float(vocabulary[number][1]) if number < len(vocabulary) and kind in (NORMAL, UNKNOWN) else 0.0, kind)
        for number, text, kind in _tokens(tokenizer, texts, unknown)
    ]


def _parts(section: Any, inner: str) -> list[Json]:
    """The parts of a normalizer or pre-tokenizer, whether it is a sequence or one."""
    if not isinstance(section, dict):
        return []
    return [part for step in section[inner] for part in _parts(step, inner)] if section.get("type") == "Sequence" else [section]


def prefixed(tokenizer: Json) -> bool:
    """Tell whether a space is put before a text: by a normalizer that prepends it, or by the pre-tokenizer."""
    cut = [part for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers") if part.get("type") == "Metaspace"]
    prepends = any(part.get("type") == "Prepend" for part in _parts(tokenizer.get("normalizer"), "normalizers"))
    return prepends or any(part.get("prepend_scheme", "always") != "never" and part.get("add_prefix_space", True) for part in cut)


def _normalizer(tokenizer: Json) -> bytes:
    parts = _parts(tokenizer.get("normalizer"), "normalizers")
    charsmap = next((b64decode(part["precompiled_charsmap"]) for part in parts if part.get("type") == "Precompiled"), b"")
    squeezed = any(part.get("type") == "Replace" and "{2,}" in str(part.get("pattern")) for part in parts)
    split = any(part.get("type") == "WhitespaceSplit" for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    named = _bytes(1, b"identity") + (_bytes(2, charsmap) if charsmap else b"")
    return named + _number(3, prefixed(tokenizer)) + _number(4, squeezed or split) + _number(5, 1)


def proto(tokenizer: Json, kind: int, scored: list[Piece]) -> bytes:
    """A ModelProto: pieces (text, score, type), how it was trained as far as readers ask, and how texts are normalized."""
    single = len({text for text, *_ in scored}) == len(scored) and all(text for text, *_ in scored)
    if not single or sum(type_ == UNKNOWN for *_, type_ in scored) != 1:
        raise ValueError("sentencepiece has no piece twice, none without letters, and one for the unknown")
    body = b"".join(
        _bytes(1, _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, type_))
        for text, score, type_ in scored
    )
    trainer = _number(3, kind) + _number(4, len(scored)) + _number(35, kind == BPE)
    return body + _bytes(2, trainer) + _bytes(3, _normalizer(tokenizer))


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


RULES = (
    Rule(
        name="tokenizer.json's vocabulary as a sentencepiece model",
        since="transformers 5.0",
        source="transformers 5.23, tokenization_utils_tokenizers.py; llama.cpp, conversion/base.py, _create_vocab_sentencepiece",
        apply=pieces,
    ),
)
