"""The front matter of a card, as the hub's own library reads it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from llamacpp_orchestrator.card import front as card_front
from llamacpp_orchestrator.card import text as card_text
from llamacpp_orchestrator.card.facts import Facts
from llamacpp_orchestrator.card.facts import Origin
from tests.support import cards

SUITE = settings(max_examples=200, derandomize=True, database=None, deadline=None)
CHAT = {"pipeline_tag": "text-generation", "tags": ["gguf", "llama.cpp", "conversational"]}
LLAMA = {"license": "llama3.2", "base_model": "meta/Llama-3.2-1B", "base_model_relation": "quantized"}
BASE = {"base_model": "meta/Llama-3.2-1B", "base_model_relation": "quantized"}
EXPECTED: dict[str, dict[str, Any]] = {
    "quantized, measured": {"language": ["en", "no"], **LLAMA, **CHAT}
    | {"tags": ["gguf", "llama.cpp", "imatrix", "conversational"]},
    "unmeasured": {"language": ["en", "no"], **LLAMA, **CHAT},
    "split": {"language": ["en", "no"], **LLAMA, **CHAT},
    "adapter": {
        "language": ["en", "no"],
        "license": "apache-2.0",
        "base_model": "meta/Llama-3.2-1B",
        "base_model_relation": "adapter",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "llama.cpp", "lora"],
    },
    "merge": {
        "language": ["en", "no"],
        "license": ["llama3.2", "apache-2.0"],
        "base_model": ["meta/Llama-3.2-1B", "me/one"],
        "base_model_relation": "merge",
        **CHAT,
    },
    "merged alone": {
        "language": ["en", "no"],
        "license": ["llama3.2", "apache-2.0"],
        "base_model": ["meta/Llama-3.2-1B", "me/one"],
        "base_model_relation": "merge",
        "pipeline_tag": "text-generation",
    },
    "projector alone": {"language": ["en", "no"], **LLAMA, **CHAT} | {"tags": ["gguf", "llama.cpp"]},
    "vision": {**BASE, "pipeline_tag": "image-text-to-text", "tags": CHAT["tags"]},
    "encoder": {"language": ["en"], **BASE, "pipeline_tag": "sentence-similarity", "tags": ["gguf", "llama.cpp"]},
    "folder": {"license": "mit", **BASE, **CHAT},
    "gated": {
        "language": ["en"],
        "license": "other",
        "license_name": "my-license",
        "license_link": f"https://huggingface.co/meta/Llama-3.2-1B/blob/{cards.COMMIT}/LICENSE",
        **BASE,
        **CHAT,
    },
    "languages": {"language": ["en", "no", "zh", "eng"], **BASE, **CHAT},
    "together": {"language": ["en", "no"], **LLAMA, **CHAT} | {"tags": ["gguf", "llama.cpp", "lora", "conversational"]},
}


def origin(role: str = "base", commit: str = cards.COMMIT, **front: Any) -> Origin:
    return Origin(source="a/b" if commit else "folder", role=role, commit=commit, front=front)


def read(facts: Facts, language: str = "en") -> dict[str, Any]:
    data: dict[str, Any] = ModelCard(card_text.text(facts, language)).data.to_dict()
    return data


@pytest.mark.parametrize("language", card_text.LANGUAGES)
@pytest.mark.parametrize("kind", cards.KINDS)
def test_the_hub_reads_what_is_meant(kind: str, language: str) -> None:
    assert read(cards.KINDS[kind], language) == EXPECTED[kind]


@pytest.mark.parametrize(
    "place", ["/home/me/base", "./x", "../x/y", "~/x", "C:\\x\\y", "file:///x", "x", "https://x.y/a/b", "a/b/c"]
)
def test_no_place_of_a_machine_is_a_base_model(place: str) -> None:
    facts = cards.facts(origins=(origin(commit="", base_model=[place, "c/d"]),))
    assert read(facts)["base_model"] == "c/d"
    alone = card_text.text(cards.facts(origins=(origin(commit="", base_model=place),)), "en")
    assert "base_model" not in alone and (place == "x" or place not in alone)


@pytest.mark.parametrize(
    ("relation", "origins", "bases"),
    [
        ("quantized", (origin(), Origin(source="c/d", role="base", commit="1")), ["a/b", "c/d"]),
        ("quantized", (origin(), origin()), "a/b"),
        ("adapter", (origin(commit=""), origin(role="adapter", commit="", base_model="c/d")), "c/d"),
        ("adapter", (origin(), origin(role="adapter", commit="", base_model="c/d")), "a/b"),
        ("merge", (origin(commit="", base_model="c/d"), origin(role="merged", commit="", base_model="e/f")), "c/d"),
        ("merge", (origin(commit=""), origin(role="merged", commit="", base_model="e/f")), "e/f"),
        ("quantized", (origin(commit=""),), None),
    ],
)  # fmt: skip
def test_base_models(relation: str, origins: tuple[Origin, ...], bases: object) -> None:
    data = read(cards.facts(relation=relation, origins=origins))
    assert data.get("base_model") == bases and data.get("base_model_relation") == (relation if bases else None)


@pytest.mark.parametrize(
    ("front", "commit", "keys"),
    [
        ({"license": "Apache-2.0"}, "", {"license": "apache-2.0"}),
        ({"license": "My Own Licence, v2"}, "", {"license": "other", "license_name": "my-own-licence-v2"}),
        ({"license": ["mit", "apache-2.0"]}, "1", {"license": ["mit", "apache-2.0"]}),
        ({"license": "other", "license_name": "Qwen Research"}, "1", {"license": "other", "license_name": "qwen-research"}),
        ({"license": "other", "license_link": "https://x.y/z"}, "", {"license": "other", "license_link": "https://x.y/z"}),
        ({"license": "other", "license_link": "LICENSE"}, "", {"license": "other"}),
        ({"license": "other", "license_link": "/etc/x"}, "1", {"license": "other"}),
        ({"license": "other", "license_link": "../x"}, "1", {"license": "other"}),
        ({"license": "other", "license_link": "./L i.md"}, "1", {"license_link": "https://huggingface.co/a/b/blob/1/L%20i.md"}),
        ({"license": {"name": "mit"}}, "1", {}),
        ({}, "1", {}),
    ],
)
def test_licences(front: dict[str, Any], commit: str, keys: dict[str, Any]) -> None:
    data = read(cards.facts(origins=(origin(commit=commit, **front),)))
    assert {key: value for key, value in data.items() if key.startswith("license")} == (
        keys if "license" in keys or not keys else {"license": "other", **keys}
    )


@pytest.mark.parametrize(
    ("front", "more", "tag"),
    [
        ({}, {}, "text-generation"),
        ({}, {"chat": False}, None),
        ({}, {"chat": False, "embedding": True}, "feature-extraction"),
        ({"pipeline_tag": "fill-mask"}, {}, "fill-mask"),
        ({"pipeline_tag": "<b>"}, {"chat": False}, None),
        ({"pipeline_tag": ["a", "b"]}, {}, "a"),
    ],
)
def test_tasks(front: dict[str, Any], more: dict[str, Any], tag: str | None) -> None:
    assert read(cards.facts(origins=(origin(**front),), **more)).get("pipeline_tag") == tag
    assert read(cards.facts(*cards.VISION, origins=(origin(),))).get("pipeline_tag") is None


@pytest.mark.parametrize(
    "word",
    ["no", "on", "y", "null", "~", "1.10", "1e3", "0o7", "2024-01-01", "12:30", ".inf", "# x", "a: b", "- x", "é", "x\u2028y"],
)
def test_texts_stay_texts(word: str) -> None:
    dumped = card_front.dump({"key": word, "list": [word]})
    assert yaml.safe_load(dumped) == {"key": word, "list": [word]}
    assert dumped.splitlines()[0][5] in "'\""  # to readers of YAML 1.2, such as the hub, more words are numbers


@pytest.mark.no_cover
@SUITE
@given(
    strategies.dictionaries(
        strategies.sampled_from("abc"), strategies.one_of(strategies.text(), strategies.lists(strategies.text()))
    )
)
def test_what_is_dumped_is_read_back(values: dict[str, Any]) -> None:
    assert yaml.safe_load(card_front.dump(values)) == values
