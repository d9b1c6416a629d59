"""Rules for what upstream copies into a GGUF of a model's origin: without the folders of the machine that made it."""

from __future__ import annotations

import re
from typing import Any

from llamacpp_orchestrator.translation import Json
from llamacpp_orchestrator.translation import Read
from llamacpp_orchestrator.translation import Reader
from llamacpp_orchestrator.translation import Rule

CARD, CONFIG = "README.md", "config.json"
FRONT = re.compile(r"---\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
# As a whole, or as the end of a tag such as base_model:adapter:/home/me/base.
FOLDER = re.compile(r"(?:.*:)?(?:~?[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|file:).*")
MOST_SLASHES = 1  # of a config's `_name_or_path` that upstream takes for the name of a model


def is_place(value: Any) -> bool:
    """Tell whether a value names a folder of some machine, and not a repository or an address."""
    return isinstance(value, str) and not re.match(r"(?!file:)\w\w+://", value) and bool(FOLDER.fullmatch(value))


def kept(value: Any) -> Any:
    """A value of a card without the folders in it; None when nothing is left."""
    if isinstance(value, dict):
        fields = {key: left for key, inner in value.items() if (left := kept(inner)) is not None or inner is None}
        return fields if fields or not value else None
    if isinstance(value, list):
        entries = [left for inner in value if (left := kept(inner)) is not None or inner is None]
        return entries if entries or not value else None
    return None if is_place(value) else value


def card(read: Read, reader: Reader) -> Json:
    """The front matter without base models, data sets and tags that are folders; upstream reads no more than that of a card."""
    text = read(CARD)
    front = FRONT.match(text.replace("\r\n", "\n")) if isinstance(text, str) else None
    if not front or not re.search(r"[/\\]|file:", front[1]):
        return {}
    import yaml  # with the rest of a model's card, which most have without folders in it

    # Tabs and a bare `no` in a list are read as upstream reads them (gguf-py/gguf/metadata.py, load_model_card).
    plain = front[1].replace("- no\n", '- "no"\n').replace("\t", "  ")
    try:
        content = yaml.safe_load(plain)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    left = kept(content) if isinstance(content, dict) else content
    if left == content:
        return {}
    cleaned = yaml.safe_dump(left, sort_keys=False, allow_unicode=True) if left else ""
    return {CARD: f"---\n{cleaned}---\n"}


def name_or_path(read: Read, reader: Reader) -> Json:
    """The config without a `_name_or_path` that is a folder and looks like a name to upstream: its parts become a basename."""
    config = read(CONFIG)
    named = config.get("_name_or_path") if isinstance(config, dict) else None
    if not is_place(named) or str(named).count("/") > MOST_SLASHES:
        return {}
    return {CONFIG: {key: value for key, value in config.items() if key != "_name_or_path"}}


SOURCE = (
    "llama.cpp, gguf-py/gguf/metadata.py, Metadata.apply_metadata_heuristic, and convert_lora_to_gguf.py, which has no --metadata"
)
RULES = (
    Rule(name="without the folders that its card names", since="the first cards of PEFT", source=SOURCE, apply=card),
    Rule(name="without the folder that its config calls its name", since="transformers 4.0", source=SOURCE, apply=name_or_path),
)
