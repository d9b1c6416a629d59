"""Tokens, special tokens and chat templates of an output against what the files of a source say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import tokenizer
from llamacpp_orchestrator.verify.tokenizer import Added
from llamacpp_orchestrator.verify.tokenizer import Tokenizer
from llamacpp_orchestrator.verify.tokenizer import TokenizerFiles
from llamacpp_orchestrator.verify.tokenizer import Vocabulary

TOKENS = ["a", "b", "c", "<s>", "</s>", "<pad>"]
TYPES = [1, 1, 1, 3, 3, 3]
SAID = TokenizerFiles(
    tokenizer=Tokenizer(
        model=Vocabulary(vocab={"a": 0, "b": 1, "c": 2}),
        added_tokens=[Added(id=3 + number, content=text) for number, text in enumerate(TOKENS[3:])],
    ),
    config={"vocab_size": 6, "bos_token_id": 3, "eos_token_id": 4},
    generation={"eos_token_id": [4, 5]},
    tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"},
    templates=(("tokenizer_config.json", "{{ x }}\n"),),
)


def metadata(**changes: Any) -> dict[str, Any]:
    """What a sound output says; a name changed to None is left out."""
    plain = {
        "model": "gpt2",
        "tokens": TOKENS,
        "token_type": TYPES,
        "bos_token_id": 3,
        "eos_token_id": 4,
        "padding_token_id": 5,
    }
    said = {f"tokenizer.ggml.{key}": value for key, value in (plain | changes).items() if key != "template" and value is not None}
    return said | ({"tokenizer.chat_template": changes.get("template", "{{ x }}\n")} if changes.get("template", "x") else {})


def replaced(**changes: Any) -> TokenizerFiles:
    return msgspec.structs.replace(SAID, **changes)


def without(vocab: Any) -> TokenizerFiles:
    return replaced(
        tokenizer=Tokenizer(model=Vocabulary(vocab=vocab), added_tokens=SAID.tokenizer.added_tokens if SAID.tokenizer else [])
    )


SOUND: dict[str, tuple[TokenizerFiles, dict[str, Any], int]] = {
    "as it is": (SAID, metadata(), 6),
    "no tokenizer.json": (replaced(tokenizer=None), metadata(), 6),
    "a list with scores": (without([("a", -1.0), ("b", -2.0), ("c", -3.0)]), metadata(), 6),
    "one of two ends": (SAID, metadata(eos_token_id=5), 6),
    "an added token of another spelling": (SAID, metadata(tokens=[*TOKENS[:5], "pad"], padding_token_id=None), 6),
    "tokens without numbers, as for an image": (
        replaced(config={"text_config": {"vocab_size": 5}}),
        metadata(tokens=TOKENS[:5], padding_token_id=None),
        5,
    ),
    "words of another alphabet, as BERT has them": (SAID, metadata(model="bert", tokens=["A", "B", "C", *TOKENS[3:]]), 6),
    "a tokenizer with rules of its own": (SAID, metadata(model="rwkv", eos_token_id=0), 6),
    "no tokens at all": (SAID, {"tokenizer.chat_template": "{{ x }}\n"}, 0),
    "no end, where nothing is generated": (
        SAID,
        metadata(eos_token_id=None) | {"general.architecture": "qwen3", "qwen3.pooling_type": 3},
        6,
    ),
    "an end where the runtime looks for it": (
        replaced(tokenizer=None, config={}, generation={}),
        metadata(model="t5", tokens=["<pad>", "</s>"], eos_token_id=None, bos_token_id=None, padding_token_id=0),
        2,
    ),
    "a begin that only the frame names": (
        replaced(
            tokenizer=Tokenizer(post_processor={"special_tokens": {"[CLS]": {"ids": [0]}}, "cls": ["<s>", 1]}),
            config={},
            tokenizer_config={"bos_token": "x", "eos_token": "</s>"},
        ),
        metadata(bos_token_id=0),
        6,
    ),
}


@pytest.mark.parametrize("text", ["[1]", "1", "true", "{", ""])
def test_what_is_no_document_is_named(tmp_path: Path, text: str) -> None:
    names = ("config.json", "tokenizer_config.json", "chat_template.json", "generation_config.json", "special_tokens_map.json")
    for name in names:
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert sorted(tokenizer.read(tmp_path).unread) == sorted(names)


@pytest.mark.parametrize(
    ("said", "texts"),
    [
        ("x", ["x"]),
        ([{"name": "default", "template": "x"}, {"name": ["y"], "template": "z"}, 1], ["x"]),
        ([{"name": "default", "template": 1}], []),
        (1, []),
        ({"default": "x"}, []),
    ],
)
def test_one_template_of_several(tmp_path: Path, said: Any, texts: list[str]) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}), encoding="utf-8")
    assert [text for _, text in tokenizer.read(tmp_path).templates] == texts


@pytest.mark.parametrize("name", SOUND)
def test_sound(name: str) -> None:
    assert tokenizer.compare(*SOUND[name]) == Findings()


@pytest.mark.parametrize(
    ("said", "have", "rows", "failure"),
    [
        (SAID, metadata(tokens=TOKENS[:5], padding_token_id=None), 6, "it lists 5 tokens, and has numbers for 6"),
        (SAID, metadata(tokens=TOKENS[:5], padding_token_id=None), 5, "it lists 5 tokens, the source's tokenizer.json 6"),
        (
            SAID,
            metadata(tokens=["a", "c", "b", *TOKENS[3:]]),
            6,
            "2 tokens are not the source's: the first is 1, 'c' instead of 'b'",
        ),
        (SAID, metadata(eos_token_id=9), 6, "its eos_token_id is 9, and there are 6 tokens"),
        (SAID, metadata(eos_token_id=0), 6, "its eos_token_id is 0 ('a'), where the source says '</s>' or 4 or 5"),
        (SAID, metadata(bos_token_id=4), 6, "its bos_token_id is 4 ('</s>'), where the source says '<s>' or 3"),
        (SAID, metadata(eos_token_id=None), 6, "it has no eos_token_id, so that it would never end; the source says '</s>'"),
        (SAID, metadata(template=""), 6, "the source's chat template is not there"),
        (SAID, metadata(template="{{ x }}"), 6, "its chat template is not the source's (from letter 7: '' instead of '\\n')"),
        (SAID, metadata(template="{{ y }}\n"), 6, "(from letter 3: 'y }}\\n' instead of 'x }}\\n')"),
    ],
)
def test_wrong(said: TokenizerFiles, have: dict[str, Any], rows: int, failure: str) -> None:
    found = tokenizer.compare(said, have, rows)
    assert failure in found.failures[0] and len(found.failures) <= 2


@pytest.mark.parametrize(
    ("said", "have", "note"),
    [
        (replaced(config={"vocab_size": 8}), metadata(), "it lists 6 tokens, the source's config.json says 8"),
        (replaced(config=SAID.config | {"bos_token_id": 9}), metadata(bos_token_id=9), "its bos_token_id is 9, and there are 6"),
        (SAID, metadata(bos_token_id=2, token_type=[1, 1, 4]), "its bos_token_id is 2 ('c'), where the source says"),
        (replaced(templates=()), metadata(), "the source has no chat template that upstream reads, the output has one"),
        (
            replaced(templates=(*SAID.templates, ("chat_template.jinja", "other"))),
            metadata(),
            "its chat template is that of tokenizer_config.json; chat_template.jinja of the source holds another",
        ),
        (replaced(unread=("special_tokens_map.json",)), metadata(), "special_tokens_map.json of the source cannot be read"),
    ],
)
def test_what_is_not_certain_is_a_note(said: TokenizerFiles, have: dict[str, Any], note: str) -> None:
    found = tokenizer.compare(said, have, 6)
    assert found.failures == () and len(found.notes) == 1 and note in found.notes[0]


def test_what_the_files_of_a_source_say(tmp_path: Path) -> None:
    assert tokenizer.read(tmp_path) == TokenizerFiles()
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    files: dict[str, Any] = {
        "config.json": {"vocab_size": 3},
        "generation_config.json": {"eos_token_id": 2},
        "special_tokens_map.json": {"eos_token": "</s>"},
        "tokenizer_config.json": {"chat_template": named},
        "chat_template.json": {"chat_template": "j"},
        "tokenizer.json": {"model": {"vocab": [["a", -1.5]]}, "added_tokens": [{"id": 1, "content": "b", "special": True}]},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_bytes(b"line\r\nnext")
    found = tokenizer.read(tmp_path)
    assert found.templates == (("tokenizer_config.json", "d"), ("chat_template.jinja", "line\nnext"), ("chat_template.json", "j"))
    assert (found.config, found.generation, found.special_map) == (
        files["config.json"],
        {"eos_token_id": 2},
        {"eos_token": "</s>"},
    )
    assert found.tokenizer == Tokenizer(
        model=Vocabulary(vocab=[("a", -1.5)]), added_tokens=[Added(id=1, content="b", special=True)]
    )
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "special_tokens_map.json").write_text("[")
    assert tokenizer.read(tmp_path).unread == ("tokenizer.json", "special_tokens_map.json")
