"""The front matter of a model card: what the hub reads of it (https://huggingface.co/docs/hub/model-cards).

No `library_name`: to the hub a library is code that knows an architecture, and GGUF is a format, which it sees by the files and
counts by them (huggingface.js has no such key in model-libraries.ts); `transformers` would show code that cannot load them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from llamacpp_orchestrator.card.facts import Facts
from llamacpp_orchestrator.card.facts import Origin
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job import spec

# The hub takes no other languages than codes of ISO 639 and these two words, and no capitals.
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
WORD = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # a licence or a task, as the hub writes them
PLAIN = re.compile(r"[A-Za-z][\w./ -]+", re.ASCII)  # what no reader of YAML takes for a number or a date
EMBEDDING = ("feature-extraction", "sentence-similarity")


def keys(facts: Facts) -> dict[str, Any]:
    """The keys that the facts support, in the order in which they are written."""
    bases = base_models(facts)
    values = {
        "language": _languages(facts),
        **_licence(facts),
        "base_model": bases[0] if len(bases) == 1 else bases,
        "base_model_relation": facts.relation if bases else "",
        "pipeline_tag": pipeline_tag(facts),
        "tags": _tags(facts),
    }
    return {key: value for key, value in values.items() if value}


def _speaking(facts: Facts, key: str) -> list[Origin]:
    """The origins whose cards say something of a key: adapters where the files are such, else all that is in the model."""
    named = [origin for origin in facts.origins if origin.front.get(key) not in (None, "", [])]
    adapters = [origin for origin in named if origin.role == "adapter"]
    model = [origin for origin in named if origin.role != "adapter"]
    return (adapters or model) if facts.relation == "adapter" else model


def base_models(facts: Facts) -> list[str]:
    """The hub ids of what the files derive from; for a folder those that its own card names, or the card of its adapter."""
    roles = ("base", "merged") if facts.relation == "merge" else ("base",)
    derived = [origin for origin in facts.origins if origin.role in roles]
    ids = _hub_ids(name for origin in derived for name in _derived(origin))
    return ids or _hub_ids(name for origin in facts.origins for name in _texts(origin.front.get("base_model")))


def _derived(origin: Origin) -> list[str]:
    if origin.commit:
        return [origin.source]
    return _texts(origin.front.get("base_model")) if origin.role == "base" else []


def _hub_ids(names: Iterable[str]) -> list[str]:
    """Names without those that are folders of some machine, or anything else."""
    return unique(name for name in names if not spec.is_folder(name) and not fields.source(name))


def _languages(facts: Facts) -> list[str]:
    """The languages' codes, without the country in one such as zh-CN."""
    words = [word for origin in _speaking(facts, "language") for word in _texts(origin.front["language"])]
    codes = [re.split("[-_]", word.lower())[0] for word in words]
    return unique(code for code in codes if LANGUAGE.fullmatch(code))


def _licence(facts: Facts) -> dict[str, Any]:
    """The licences of all that is in the files, with name and link of the first that has such."""
    speaking = _speaking(facts, "license")
    words = unique(word for origin in speaking for word in licences(origin))
    name = next(filter(None, map(licence_name, speaking)), "")
    link = next(filter(None, map(_licence_link, speaking)), "")
    return {"license": words[0] if len(words) == 1 else words, "license_name": name, "license_link": link}


def licences(origin: Origin) -> list[str]:
    """The licences that a card names; one that is no word of the hub's kind is another."""
    words = [word.lower() for word in _texts(origin.front.get("license"))]
    return unique(word if WORD.fullmatch(word) else "other" for word in words)


def licence_name(origin: Origin) -> str:
    """The name of a licence that is not on the hub's list, as the hub writes such; "" for none."""
    words = [*_texts(origin.front.get("license_name")), *_texts(origin.front.get("license"))]
    named = next((word for word in words if word == origin.front.get("license_name") or not WORD.fullmatch(word.lower())), "")
    return re.sub(r"[^a-z0-9.+-]+", "-", named.lower()).strip("-")


def _licence_link(origin: Origin) -> str:
    """The address of a licence: a file beside the model's card is one of the hub, and none where the model is a folder."""
    link = next(iter(_texts(origin.front.get("license_link"))), "")
    if re.fullmatch(r"https?://[^\s<>]+", link):
        return link
    file = link.removeprefix("./")
    within = origin.commit and re.fullmatch(r"\w[\w./ -]*", file) and ".." not in file
    return f"https://huggingface.co/{quote(f'{origin.source}/blob/{origin.commit}/{file}')}" if within else ""


def pipeline_tag(facts: Facts) -> str:
    """The task: as the origin's card says, else by what the files are; "" where nobody can tell."""
    spoken = [word for origin in _speaking(facts, "pipeline_tag") for word in _texts(origin.front["pipeline_tag"])]
    if tag := next(filter(WORD.fullmatch, spoken), ""):
        return tag
    if facts.embedding:
        return EMBEDDING[0]
    return "text-generation" if facts.chat and not any(file.kind == "mmproj" for file in facts.files) else ""


def _tags(facts: Facts) -> list[str]:
    gguf = any(file.kind != "merged" for file in facts.files)
    found = {
        "gguf": gguf,
        "llama.cpp": gguf,
        "imatrix": bool(facts.matrix),
        "lora": any(file.kind == "adapter" for file in facts.files),
        "conversational": facts.chat,
    }
    return [tag for tag, there in found.items() if there]


def _texts(value: Any) -> list[str]:
    """One text or a list of them, each in one line; nothing for what is something else."""
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip().isprintable() and text.strip()]


def unique(values: Iterable[str]) -> list[str]:
    """The values without those that came before."""
    return list(dict.fromkeys(values))


def dump(values: Mapping[str, Any]) -> str:
    """Keys as YAML, without the last line's end; texts that YAML 1.1 or 1.2 takes for something else are quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if PLAIN.fullmatch(value) else '"')

    Dumper.add_representer(str, text)
    return yaml.dump(dict(values), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=2**31).rstrip("\n")
