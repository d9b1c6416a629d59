"""What a tag's scripts read by themselves, told by marks in their source, and which of today's forms they must be spared."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from llamacpp_orchestrator import scripts
from llamacpp_orchestrator.translation import Reader

VOCABULARY = "gguf-py/gguf/vocab.py"
# What a tag knows → a text that stands in its source then: in the scripts, or in the module that reads vocabularies.
MARKS = {
    "rope_parameters": ("scripts", '"rope_parameters"'),
    # Of llama3's scaling, b3878 takes the old context from beside `rope_scaling`, where few checkpoints have it.
    "outer context": ("scripts", 'self.hparams.get("original_max_position_embeddings", 8192)'),
    "pooling_mode": ("scripts", '"pooling_mode"'),
    "merge pairs": (VOCABULARY, "isinstance(merges[0], list)"),
    "chat_template.jinja": (VOCABULARY, "chat_template.jinja"),
    "post-processor": (VOCABULARY, "TemplateProcessing"),
}


@functools.lru_cache(maxsize=16)  # asked for each output of a job; a tree in the cache does not change
def reader(tree: Path, transformers: str, architecture: str = "") -> Reader:
    """How a tag reads checkpoints of an architecture, with a version of transformers ("4.57.6", or "" where nobody knows it)."""
    vocabulary = (tree / VOCABULARY).read_text(encoding="utf-8") if (tree / VOCABULARY).is_file() else ""
    knows = {name for name, (where, text) in MARKS.items() if where == VOCABULARY and text in vocabulary}
    knows |= {name for name, (where, text) in MARKS.items() if where == "scripts" and scripts.mentions(tree, text)}
    version = tuple(map(int, re.findall(r"\d+", transformers)[:3]))
    return Reader(transformers=version, knows=frozenset(knows), pieces=scripts.pieces(scripts.converter(tree, architecture)))
