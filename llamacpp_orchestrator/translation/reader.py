"""The forms that a tag's scripts read by themselves, by marks in their source, and those that they must be spared."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.translation import Reader

VOCABULARY = "gguf-py/gguf/vocab.py"
# What a tag knows → a text that stands in its source then: in the scripts, or in the module that reads vocabularies.
MARKS = {
    "rope_parameters": ("scripts", '"rope_parameters"'),
    # Of llama3's scaling, b3878 takes the old context from beside `rope_scaling`, where few checkpoints have it.
    "outer context": ("scripts", 'self.hparams.get("original_max_position_embeddings", 8192)'),
    "pooling_mode": ("scripts", '"pooling_mode"'),
    # Such a script takes null for false, where the key is there.
    "prefix by key": ("one script", 'tokenizer_config_json["add_prefix_space"]'),
    "merge pairs": (VOCABULARY, "isinstance(merges[0], list)"),
    "chat_template.jinja": (VOCABULARY, "chat_template.jinja"),
    "post-processor": (VOCABULARY, "TemplateProcessing"),
    "post-processor of bytes": (VOCABULARY, "processor_type == 'ByteLevel'"),
}


def pieces(classes: Sequence[ast.ClassDef]) -> str:
    """The file from which a class takes a sentencepiece vocabulary; "" where it wants none, or reads tokenizer.json as well."""
    setter = capabilities.method(classes, "set_vocab")
    if setter is None:
        return ""
    ways, words = capabilities.called(setter[1]), set(capabilities.within(setter[1]))
    if "_xlmroberta_set_vocab" in ways or "sentencepiece.bpe.model" in words:
        return "sentencepiece.bpe.model"
    if "spiece.model" in words:
        return "spiece.model"
    either = "_set_vocab_gpt2" in ways and "_set_vocab_llama_hf" not in ways
    # What asks whether the file is there reads the other well; what tries it reads by guess, or ends.
    asks = either and not any(isinstance(node, (ast.Try, ast.Raise)) for node in ast.walk(setter[1]))
    return "tokenizer.model" if not asks and ("_set_vocab_sentencepiece" in ways or "tokenizer.model" in words) else ""


def ends(classes: Sequence[ast.ClassDef]) -> bool:
    """Tell whether a class itself writes what stands around a text; a second word on it ends the older scripts."""
    setter = capabilities.method(classes, "set_vocab")
    return setter is not None and "add_add_bos_token" in capabilities.called(setter[1])


@functools.lru_cache(maxsize=16)  # asked for each output of a job; a tree in the cache does not change
def reader(tree: Path, transformers: str, architecture: str = "") -> Reader:
    """The reader of an architecture's checkpoints at a tag, with a version of transformers ("4.57.6"; "" is an unknown one)."""
    vocabulary = (tree / VOCABULARY).read_text(encoding="utf-8") if (tree / VOCABULARY).is_file() else ""
    knows = {name for name, (where, text) in MARKS.items() if where == VOCABULARY and text in vocabulary}
    knows |= {name for name, (where, text) in MARKS.items() if where == "scripts" and capabilities.mentions(tree, text)}
    whole = capabilities.core(tree).read_text(encoding="utf-8") if capabilities.core(tree).is_file() else ""
    knows |= {name for name, (where, text) in MARKS.items() if where == "one script" and text in whole}
    version = tuple(map(int, re.findall(r"\d+", transformers)[:3]))
    classes = capabilities.converter(tree, architecture)
    knows |= {"ends by itself"} if ends(classes) else set()
    return Reader(transformers=version, knows=frozenset(knows), pieces=pieces(classes))
