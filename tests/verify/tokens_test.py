"""How a tag's own program cuts texts, held against the source's tokenizer: the call, its answer, the judgement."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import tokens
from llamacpp_orchestrator.verify.tokens import ENGLISH
from llamacpp_orchestrator.verify.tokens import OTHER
from llamacpp_orchestrator.verify.tokens import Source

WORDS = ["<s>", "</s>", "a", "b", "c"]
PLAIN = [[2, 3], [4, 4]]
FRAMED = [[0, 2, 3], [0, 4, 4]]
FILE = Source(file="tokenizer.json", ids=FRAMED, plain=PLAIN, transformers=FRAMED)
PIECES = Source(file="tokenizer.model", plain=PLAIN, transformers=FRAMED)


def test_the_call_takes_a_text_as_it_is() -> None:
    asked = tokens.command(Path("llama-tokenize"), Path("/o/a.gguf"), Path("/o/t.txt"), "--ids --no-escape --stdin")
    assert asked.argv[1:] == ("-m", str(Path("/o/a.gguf")), "-f", str(Path("/o/t.txt")), "--ids", "--no-escape")
    assert "--no-escape" not in tokens.command(Path("tokenize"), Path("a"), Path("t"), "--ids").argv
    assert not any("\\" in text or text.endswith("\n") for text in tokens.TEXTS.values())


@pytest.mark.parametrize(
    ("out", "ids"), [("[1, 2, 3]\n", [1, 2, 3]), ("loading [x]\n[7]\r\n", [7]), ("[]\n", []), ("[1]\n[2, 3]\n", [2, 3])]
)
def test_what_the_program_has_written(out: str, ids: list[int]) -> None:
    assert tokens.read(out) == ids


def test_a_program_that_has_written_no_tokens() -> None:
    with pytest.raises(ValueError):
        tokens.read("0.1 I llama_model_loader: loaded\n")


@pytest.mark.parametrize(
    ("have", "source"),
    [
        (FRAMED, FILE),
        (FRAMED, PIECES),
        (PLAIN, Source(file="tokenizer.model", plain=PLAIN)),
        (FRAMED, Source(transformers=FRAMED)),
    ],
)
def test_the_same_tokens(have: list[list[int]], source: Source) -> None:
    assert tokens.compare([ENGLISH, OTHER], have, source, WORDS) == Findings()


@pytest.mark.parametrize(
    ("have", "source", "strict", "failure", "note"),
    [
        ([[0, 2, 4], [0, 4, 4]], FILE, True, "4 ('c') instead of 3 ('b') (token 2 of English and code)", ""),
        ([[0, 2, 4], [0, 4, 4]], FILE, False, "4 ('c') instead of 3 ('b') (token 2 of English and code)", ""),
        ([[0, 2, 3], [0, 4]], FILE, True, "the end instead of 4 ('c') (token 2 of other languages)", ""),
        ([[0, 2, 3], [0, 4]], FILE, False, "", "the end instead of 4 ('c') (token 2 of other languages)"),
        ([[0, 2, 3], [0, 4, 9]], PIECES, True, "0 ('<s>') instead of 4 ('c') (token 0 of other languages)", ""),
        (PLAIN, FILE, True, "around a text llama.cpp puts nothing, the source's tokenizer.json 0 ('<s>') and nothing", ""),
        (PLAIN, PIECES, True, "around a text llama.cpp puts nothing, transformers 0 ('<s>') and nothing", ""),
        (PLAIN, Source(transformers=FRAMED), True, "otherwise than transformers the source's: 2 ('a') instead of 0 ('<s>')", ""),
        (
            FRAMED,
            Source(file="tokenizer.json", ids=PLAIN, plain=PLAIN, transformers=FRAMED),
            True,
            "",
            "puts 0 ('<s>') and nothing, the source's tokenizer.json nothing; transformers does as the output",
        ),
        (
            PLAIN,
            Source(file="tokenizer.json", ids=PLAIN, plain=PLAIN, transformers=FRAMED),
            True,
            "",
            "transformers does not follow the source's tokenizer.json, the output does: 0 ('<s>') instead of 2 ('a')",
        ),
        (
            [[0, 2, 4], [0, 4, 4]],
            Source(file="tokenizer.json", ids=FRAMED, plain=PLAIN, transformers=[[0, 2, 4], [0, 4, 4]]),
            True,
            "",
            "transformers cuts as the output does",
        ),
        (
            FRAMED,
            Source(file="tokenizer.json", ids=[[0, 1, *each] for each in PLAIN], plain=PLAIN),
            True,
            "",
            "around a text llama.cpp puts 0 ('<s>') and nothing, the source's tokenizer.json 0 ('<s>') 1 ('</s>') and nothing",
        ),
        (PLAIN, Source(), True, "", "nothing here can read how the source cuts a text"),
    ],
)
def test_other_tokens(have: list[list[int]], source: Source, strict: bool, failure: str, note: str) -> None:
    found = tokens.compare([ENGLISH, OTHER], have, source, WORDS, strict)
    assert (len(found.failures), len(found.notes)) == (bool(failure), bool(note))
    assert failure in "".join(found.failures) and note in "".join(found.notes)
