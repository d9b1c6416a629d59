"""What may be published, and what a card is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from llamacpp_orchestrator.export import publication
from llamacpp_orchestrator.export import publish
from llamacpp_orchestrator.job.check_levels import EXCUSES
from llamacpp_orchestrator.job.check_levels import LOAD
from llamacpp_orchestrator.job.check_levels import LOGITS
from llamacpp_orchestrator.pipeline.receipt import Receipt
from llamacpp_orchestrator.pipeline.receipt import Versions

VERSIONS = Versions(tool="0", tag="b1", commit="", tree="", environment="")


def receipt(*levels: str, kind: str = "model", notes: tuple[str, ...] = ()) -> Receipt:
    return Receipt(
        path="m.gguf",
        kind=kind,
        type="f16",
        recipe="",
        command=(),
        inputs=(),
        versions=VERSIONS,
        files=(),
        levels=levels,
        notes=notes,
    )


ASKED: list[tuple[str, Receipt, str]] = [
    ("auto", receipt("structure", "content"), ""),
    ("auto", receipt("structure", "content", "load"), ""),
    ("auto", receipt("structure"), "content"),
    ("auto", receipt(), "structure"),
    ("structure", receipt("structure"), ""),
    ("load", receipt("structure", "content"), "load"),
    ("load", receipt("structure", "content", notes=(f"a projector, {EXCUSES[LOAD]}",)), ""),
    ("logits", receipt("structure", "content", notes=(f"a projector, {EXCUSES[LOAD]}",)), ""),
    ("logits", receipt("structure", "content", "load"), "logits"),
    ("logits", receipt("structure", "content", "load", notes=(f"it says nothing, {EXCUSES[LOGITS]}",)), ""),
    ("logits", receipt("structure", notes=(f"it says nothing, {EXCUSES[LOGITS]}",)), "content"),
    ("logits", receipt("structure", kind="merged"), ""),
]


@pytest.mark.parametrize("verify, record, missing", ASKED)
def test_which_check_is_missing(verify: str, record: Receipt, missing: str) -> None:
    assert publication.unchecked(verify, record) == missing


FRONT: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("# no front matter", {}),
    ("---\nlanguage: no\nversion: 1.10\n---\n", {"language": "no", "version": "1.10"}),
    ("\ufeff---\r\nlicense: mit\r\n---\r\n# m", {"license": "mit"}),
    ("---\ntags:\n\t- a\n---\n", {"tags": ["a"]}),
    ("---\nlicense: [\n---\n", {}),
    ("---\n- a\n---\n", {}),
]


@pytest.mark.parametrize("card, expected", FRONT)
def test_front_matter_is_read_as_text(card: str, expected: dict[str, Any]) -> None:
    assert publication.front_matter(card) == expected


PLACES = ["/home/me/x", "~/x", "--opt=/home/me/x", "C:\\x", "D:/x", "file:///x", "a b /x", "\\\\server\\x"]


@pytest.mark.parametrize("text", PLACES)
def test_a_place_on_a_machine_is_seen_wherever_it_stands_in_a_text(text: str) -> None:
    assert publish.PLACE.search(text)


@pytest.mark.parametrize("text", ["org/m", "https://github.com/x/y", "./x", "../x", "{name}-{type}.gguf", "a/b@c", "bf16"])
def test_what_is_no_place_of_a_machine(text: str) -> None:
    assert not publish.PLACE.search(text)
