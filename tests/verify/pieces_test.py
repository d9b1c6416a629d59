"""What an output's tokenizer cuts by, against what its source says: merges, scores, types, frames, ends."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import pieces
from llamacpp_orchestrator.verify.pieces import Pieces
from llamacpp_orchestrator.verify.tokenizer import Added
from llamacpp_orchestrator.verify.tokenizer import Tokenizer
from llamacpp_orchestrator.verify.tokenizer import TokenizerFiles
from llamacpp_orchestrator.verify.tokenizer import Vocabulary

TOKENS = ["a", "b", "ab", "<s>", "</s>", "<t>"]
ADDED = [Added(id=3 + number, content=text, special=number < 2) for number, text in enumerate(TOKENS[3:])]
BEGIN = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}
PAIRS: dict[str, Any] = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
MAP = base64.b64encode(b"map").decode()


def source(model: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **tokenizer: Any) -> TokenizerFiles:
    known = {"post_processor": BEGIN} | tokenizer
    made = Tokenizer(model=msgspec.convert(model or PAIRS, Vocabulary), added_tokens=ADDED, **known)
    return TokenizerFiles(tokenizer=made, tokenizer_config={"add_bos_token": True} if config is None else config)


def metadata(**changes: Any) -> dict[str, Any]:
    """What a sound output says; a name changed to None is left out."""
    plain = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": TOKENS,
        "token_type": [1, 1, 1, 3, 3, 4],
        "merges": ["a b"],
        "bos_token_id": 3,
        "eos_token_id": 4,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (plain | changes).items() if value is not None}


SENTENCES = {"model": "llama", "pre": "default", "merges": None, "scores": [-1.0, -2.0, -3.0, -1000.0, -1000.0, -1000.0]}
FILE = Pieces(name="tokenizer.model", texts=("a", "b", "ab"), scores=(-1.0, -2.0, -3.0), types=(1, 1, 1))
UNIGRAM: dict[str, Any] = {"vocab": [["a", -1.0], ["b", -2.0], ["ab", -3.0]]}
MARKED = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": MAP}]}}
BARE: dict[str, Any] = {"post_processor": None, "config": {}}
SOUND: dict[str, tuple[TokenizerFiles, dict[str, Any], Pieces | None, bytes]] = {
    "byte pairs": (source(), metadata(), None, b""),
    "merges as pairs, one with a blank": (
        source({"vocab": {}, "merges": [("a", "b"), (" ", "a")]}),
        metadata(merges=["a b", "Ġ a"]),
        None,
        b"",
    ),
    "merges.txt": (TokenizerFiles(merges=("a b",)), metadata(), None, b""),
    "no merges in either": (source({"vocab": {}}), metadata(merges=None), None, b""),
    "a sentencepiece file": (source(), metadata(**SENTENCES), FILE, b""),
    "a piece that an added token replaced": (
        source(),
        metadata(**SENTENCES),
        msgspec.structs.replace(FILE, texts=(*FILE.texts, "<x>"), scores=(*FILE.scores, 0.0), types=(1, 1, 1, 1)),
        b"",
    ),
    "pieces that fairseq shifted": (
        source(UNIGRAM, **BARE),
        metadata(**SENTENCES | {"model": "t5", "add_bos_token": False, "add_eos_token": False}),
        Pieces(name="sentencepiece.bpe.model", texts=("<s>", "a", "b", "ab"), scores=(0, -1, -2, -3), types=(3, 1, 1, 1)),
        b"",
    ),
    "a map in the file": (
        source(UNIGRAM, **BARE, **MARKED),
        metadata(**SENTENCES | {"model": "t5", "add_eos_token": False, "precompiled_charsmap": list(b"map")}),
        None,
        b"",
    ),
    "a map in the sentencepiece file": (
        source(UNIGRAM, **BARE),
        metadata(**SENTENCES | {"model": "t5", "add_eos_token": False, "precompiled_charsmap": list(b"map")}),
        None,
        b"...map...",
    ),
    "nothing put around": (source(**BARE), metadata(add_bos_token=False), None, b""),
    "a tokenizer with rules of its own": (source(), metadata(model="rwkv", merges=None, bos_token_id=0), None, b""),
    "no tokens": (source(), {}, None, b""),
    "a source that says nothing": (TokenizerFiles(), metadata(), None, b""),
    "an end by its text": (
        msgspec.structs.replace(source(), generation={"eos_token_id": [4, 2]}),
        metadata(tokens=["a", "b", "<|im_end|>", *TOKENS[3:]], merges=["a b"]),
        None,
        b"",
    ),
    "an end of a turn by its key": (
        msgspec.structs.replace(source(), generation={"eos_token_id": [4, 5]}),
        metadata(eot_token_id=5),
        None,
        b"",
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound(name: str) -> None:
    assert pieces.compare(*SOUND[name]) == Findings()


@pytest.mark.parametrize(
    ("said", "have", "file", "failure"),
    [
        (source(), metadata(merges=None), None, "it has none of the source's 1 merges"),
        (
            source(),
            metadata(merges=["a b", "b a"]),
            None,
            "it has 2 merges, the source 1; the first other one is 1, 'b a' instead",
        ),
        (source(), metadata(merges=["b a"]), None, "the first other one is 0, 'b a' instead of 'a b'"),
        (TokenizerFiles(merges=("a b",)), metadata(merges=["b a"]), None, "the first other one is 0"),
        (source(), metadata(pre=None, add_bos_token=True), None, "it does not name its pre-tokenizer"),
        (
            source(),
            metadata(**SENTENCES | {"scores": [-1.0, -2.5, -3.0, 0, 0, 0]}),
            FILE,
            "1 tokens have another score than in the source: the first is 1 ('b'), -2.5 instead of -2",
        ),
        (source(), metadata(**SENTENCES | {"scores": [-1.0]}), FILE, "it has 1 scores for 6 tokens"),
        (
            source(),
            metadata(**SENTENCES | {"tokens": ["a", "x", *TOKENS[2:]]}),
            FILE,
            "1 tokens are not those of tokenizer.model: the first is 1, 'x' instead of 'b'",
        ),
        (
            source(UNIGRAM, **BARE),
            metadata(**SENTENCES | {"model": "t5", "add_eos_token": False, "scores": [-1.0, -2.0, -4.0, 0, 0, 0]}),
            None,
            "the first is 2 ('ab'), -4 instead of -3",
        ),
        (source(), metadata(token_type=[1, 1, 1, 3, 1, 4]), None, "'</s>' is special in the source, and plain text"),
        (source(), metadata(tokens=[*TOKENS[:4], "[PAD4]", "<t>"]), None, "added tokens of the source are not there: '</s>'"),
        (source(), metadata(add_bos_token=False), None, "puts nothing before a text, the source's tokenizer.json '<s>'"),
        (source(), metadata(bos_token_id=4), None, "puts '</s>' before a text, the source's tokenizer.json '<s>'"),
        (source(), metadata(add_eos_token=True), None, "puts '</s>' after a text, the source's tokenizer.json nothing"),
        (source(**BARE), metadata(), None, "puts '<s>' before a text, the source's tokenizer.json nothing"),
        (
            TokenizerFiles(tokenizer_config={"add_bos_token": True}),
            metadata(add_bos_token=False),
            None,
            "puts nothing before a text, where the source's tokenizer_config.json says add_bos_token: true",
        ),
        (
            source(normalizer={"type": "Replace", "content": "▁"}),
            metadata(**SENTENCES),
            None,
            "the output puts a blank before a text, the source's tokenizer.json no blank",
        ),
        (
            source(pre_tokenizer={"type": "Metaspace", "prepend_scheme": "first"}),
            metadata(**SENTENCES, add_space_prefix=False),
            None,
            "the output puts no blank before a text, the source's tokenizer.json a blank",
        ),
        (
            source(UNIGRAM, **BARE, **MARKED),
            metadata(**SENTENCES | {"model": "t5", "add_eos_token": False}),
            None,
            "it has not the map by which the source spells characters another way",
        ),
    ],
)
def test_wrong(said: TokenizerFiles, have: dict[str, Any], file: Pieces | None, failure: str) -> None:
    found = pieces.compare(said, have, file)
    assert failure in found.failures[0] and len(found.failures) == 1


@pytest.mark.parametrize(
    ("said", "have", "file", "note"),
    [
        (
            source(post_processor=None),
            metadata(add_bos_token=False),
            None,
            "the source's tokenizer.json nothing, while its tokenizer_config.json says add_bos_token: true",
        ),
        (
            source(post_processor={**BEGIN, "single": [*BEGIN["single"][:1], *BEGIN["single"]]}),
            metadata(),
            None,
            "puts '<s>' before a text, the source's tokenizer.json '<s>' '<s>'",
        ),
        (
            msgspec.structs.replace(source(), generation={"eos_token_id": [4, 2]}),
            metadata(),
            None,
            "the source ends a text at 'ab' (2) as well",
        ),
        (
            source(),
            metadata(tokens=[*TOKENS[:5], "[PAD5]"]),
            None,
            "added tokens of the source are not there: '<t>'",
        ),
        (
            source(normalizer={"type": "Replace", "content": "▁"}),
            metadata(**SENTENCES),
            FILE,
            "the output puts a blank before a text",
        ),
        (
            source(UNIGRAM, **BARE),
            metadata(**SENTENCES | {"model": "t5", "add_eos_token": False, "precompiled_charsmap": list(b"map")}),
            None,
            "it has a map of characters, the source none that is known",
        ),
        (
            source(UNIGRAM, **BARE, normalizer={"type": "Precompiled", "precompiled_charsmap": "x"}),
            metadata(**SENTENCES | {"model": "t5", "add_eos_token": False}),
            None,
            "the map of characters in the source's tokenizer.json cannot be read",
        ),
    ],
)
def test_what_is_not_certain_is_a_note(said: TokenizerFiles, have: dict[str, Any], file: Pieces | None, note: str) -> None:
    found = pieces.compare(said, have, file)
    assert found.failures == () and len(found.notes) == 1 and note in found.notes[0]


@pytest.mark.parametrize(
    ("processor", "found"),
    [
        (None, ([], [])),
        ({"type": "ByteLevel"}, ([], [])),
        ({"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]}, (["<s>"], ["</s>"])),
        (BEGIN, (["<s>"], [])),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, BEGIN]}, (["<s>"], [])),
        ({"type": "Sequence", "processors": [{"type": "New"}]}, None),
        ({"type": "TemplateProcessing", "single": [{"Sequence": {}}, {"SpecialToken": {"id": "</s>"}}]}, ([], ["</s>"])),
        ({"type": "New"}, None),
        (3, None),
    ],
)
def test_what_a_tokenizer_puts_around_a_text(processor: Any, found: Any) -> None:
    assert pieces.around(processor) == found


@pytest.mark.parametrize(
    "processor", [{"type": "Sequence"}, {"type": "BertProcessing"}, {"type": "TemplateProcessing", "single": 1}]
)
def test_a_post_processor_that_tokenizers_did_not_write(processor: Any) -> None:
    assert pieces.frame(source(post_processor=processor, config={}), metadata()) == Findings()


@pytest.mark.parametrize(
    ("have", "kind", "found"),
    [
        (metadata(), "bos", True),
        (metadata(pre="qwen2"), "bos", False),
        (metadata(pre="gemma4", add_bos_token=False), "bos", True),
        (metadata(model="llama"), "bos", True),
        (metadata(model="llama", add_bos_token=False), "bos", False),
        (metadata(model="t5"), "bos", False),
        (metadata(model="t5"), "eos", True),
        (metadata(), "eos", False),
    ],
)
def test_what_llama_cpp_puts_around_a_text(have: dict[str, Any], kind: str, found: bool) -> None:
    assert pieces.adds(have, kind) is found


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "found"),
    [
        (None, {"type": "ByteLevel"}, None),
        (
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "content": "▁"}]},
            None,
            True,
        ),
        ({"type": "Replace", "content": "▁"}, None, False),
        (None, {"type": "Metaspace", "add_prefix_space": True}, True),
        (None, {"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "prepend_scheme": "never"}]}, False),
    ],
)
def test_a_blank_before_a_text(normalizer: Any, pre_tokenizer: Any, found: bool | None) -> None:
    assert pieces.blank_first(normalizer, pre_tokenizer) is found
