"""The hub's rules for the front matter of a model card, in its own words where they are known."""

from __future__ import annotations

import re
from typing import Any

import yaml

LICENSES = """apache-2.0, mit, openrail, bigscience-openrail-m, creativeml-openrail-m, bigscience-bloom-rail-1.0,
 bigcode-openrail-m, afl-3.0, artistic-2.0, bsl-1.0, bsd, bsd-2-clause, bsd-3-clause, bsd-3-clause-clear, c-uda, cc,
 cc0-1.0, cc-by-2.0, cc-by-2.5, cc-by-3.0, cc-by-4.0, cc-by-sa-3.0, cc-by-sa-4.0, cc-by-nc-2.0, cc-by-nc-3.0,
 cc-by-nc-4.0, cc-by-nd-4.0, cc-by-nc-nd-3.0, cc-by-nc-nd-4.0, cc-by-nc-sa-2.0, cc-by-nc-sa-3.0, cc-by-nc-sa-4.0,
 cdla-sharing-1.0, cdla-permissive-1.0, cdla-permissive-2.0, wtfpl, ecl-2.0, epl-1.0, epl-2.0, etalab-2.0, eupl-1.1,
 eupl-1.2, agpl-3.0, gfdl, gpl, gpl-2.0, gpl-3.0, lgpl, lgpl-2.1, lgpl-3.0, isc, h-research, intel-research,
 lppl-1.3c, ms-pl, apple-ascl, apple-amlr, mpl-2.0, odc-by, odbl, openmdw-1.0, openrail++, osl-3.0, postgresql,
 ofl-1.1, ncsa, unlicense, zlib, pddl, lgpl-lr, deepfloyd-if-license, fair-noncommercial-research-license, llama2,
 llama3, llama3.1, llama3.2, llama3.3, llama4, grok2-community, gemma, unknown, other""".replace("\n", "")
RELATIONS = "adapter, merge, quantized, finetune"


def front_matter(text: str) -> Any:
    """What a card begins with, None for nothing; raises yaml.YAMLError."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    return yaml.safe_load(block.group(2)) if block else None


def values(card: dict[str, Any], key: str) -> list[str]:
    """What a key has, which may be one or several."""
    content = card.get(key, [])
    return [str(value) for value in (content if isinstance(content, list) else [content])]


def errors(text: str) -> list[str]:
    """What the hub does not take in a card."""
    try:
        card = front_matter(text)
    except yaml.YAMLError as error:
        return [str(error).partition("\n")[0]]
    if card is None:
        return []
    if not isinstance(card, dict):
        return ['"value" must be of type object']
    flaws = [] if isinstance(card.get("tags", []), list) else ['"tags" must be an array']
    for key, choices in (("license", LICENSES), ("base_model_relation", RELATIONS)):
        if not set(values(card, key)) <= set(choices.split(", ")):
            flaws.append(f'"{key}" must be one of [{choices}]')
    for key, pattern, words in (
        ("base_model", r"(?:\w[\w.-]*/)?\w[\w.-]*", ' with value "{}" is not valid. Use a model id from https://hf.co/models.'),
        ("language", r"[^A-Z]+", " must only contain lowercase characters"),
    ):
        flaws += [f'"{key}"{words.format(value)}' for value in values(card, key) if not re.fullmatch(pattern, value)]
    return flaws


def warnings(text: str) -> list[str]:
    """What the hub takes, but says."""
    return [] if errors(text) or front_matter(text) else ["empty or missing yaml metadata in repo card"]


def card_data(text: str) -> dict[str, Any]:
    """What the hub tells of a card: nothing of one that it would not take."""
    return {} if errors(text) else front_matter(text) or {}
