"""Tokenizer files as older readers know them: classes, special tokens, merges, the begin of a text, chat templates."""

from __future__ import annotations

from typing import Any

from llamacpp_orchestrator.translation import Json
from llamacpp_orchestrator.translation import Read
from llamacpp_orchestrator.translation import Reader
from llamacpp_orchestrator.translation import Rule

CONFIG, TOKENIZER, TEMPLATE, MERGES = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja", "merges.txt"
# What transformers 4 has no class of this name for, nor one with "Fast" behind it; any other is one of its own.
NEWER = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend", "MistralCommonBackend", "Qwen3_5Tokenizer")
PLAIN = "PreTrainedTokenizerFast"
# Classes whose post-processor transformers 4 makes anew, with a begin of text unless `add_bos_token` says otherwise.
REBUILDING = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
SPACE = chr(ord(" ") + 256)  # how llama.cpp writes a space within a merge since it reads pairs


def plain_class(read: Read, reader: Reader) -> Json:
    """The class that reads tokenizer.json as it stands, for one that transformers 4 does not have."""
    config = read(CONFIG)
    older = not isinstance(config, dict) or config.get("tokenizer_class") not in NEWER
    return {} if older or not reader.before(5) or read(TOKENIZER) is None else {CONFIG: {**config, "tokenizer_class": PLAIN}}


def special_tokens(read: Read, reader: Reader) -> Json:
    """A list of `extra_special_tokens` under its older name; a dict was always called so."""
    config = read(CONFIG)
    tokens = config.get("extra_special_tokens") if isinstance(config, dict) else None
    if not isinstance(tokens, list) or not reader.before(5):
        return {}
    rest = {key: value for key, value in config.items() if key != "extra_special_tokens"}
    return {CONFIG: {**rest, "additional_special_tokens": rest.get("additional_special_tokens") or tokens}}


def named_tokens(read: Read, reader: Reader) -> Json:
    """A model's own special tokens (an image's place, say) under their older name."""
    config = read(CONFIG)
    tokens = config.get("model_specific_special_tokens") if isinstance(config, dict) else None
    if not isinstance(tokens, dict) or not reader.before(5) or "extra_special_tokens" in config:
        return {}
    return {CONFIG: {("extra_special_tokens" if key == "model_specific_special_tokens" else key): config[key] for key in config}}


def merges(read: Read, reader: Reader) -> Json:
    """Merges that are pairs as lines of merges.txt, unless that is there; those that no line can hold are left to the checks."""
    if "merge pairs" in reader.knows or read(MERGES) is not None:
        return {}
    model = (read(TOKENIZER) or {}).get("model")
    pairs = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(pairs, list) or not pairs or not isinstance(pairs[0], list):
        return {}
    parts = [[part.replace(" ", SPACE) for part in pair] for pair in pairs]
    if any(len(pair) != 2 or any(part.split() != [part] for part in pair) for pair in parts):
        return {}
    return {MERGES: "\n".join(["#version: 0.2", *map(" ".join, parts), ""])}


def prefix_unsaid(read: Read, reader: Reader) -> Json:
    """No `add_prefix_space` rather than null, which says nothing."""
    config = read(CONFIG)
    if "prefix by key" not in reader.knows or not isinstance(config, dict) or config.get("add_prefix_space", True) is not None:
        return {}
    return {CONFIG: {key: value for key, value in config.items() if key != "add_prefix_space"}}


def ends_of_text(read: Read, reader: Reader) -> Json:
    """`add_bos_token` and `add_eos_token` as the post-processor does it, where transformers 5 has left them out.

    Older scripts read no post-processor, and some classes of transformers 4 make one of their own by these two.
    """
    config = read(CONFIG)
    if not isinstance(config, dict) or "backend" not in config or "add_bos_token" in config or "ends by itself" in reader.knows:
        return {}
    tokenizer = read(TOKENIZER)
    if not isinstance(tokenizer, dict):
        return {}
    begin, end = framed(tokenizer.get("post_processor"))
    rebuilt = reader.before(5) and str(config.get("tokenizer_class")).removesuffix("Fast") in REBUILDING
    if ("post-processor" if begin or end else "post-processor of bytes") in reader.knows and not rebuilt:
        return {}
    return {CONFIG: {**config, "add_bos_token": begin, **({"add_eos_token": end} if begin or end else {})}}


def framed(processor: Any) -> tuple[bool, bool]:
    """Tell whether a post-processor of tokenizer.json puts a special token before a text, and one behind it."""
    if not isinstance(processor, dict):
        return False, False
    if processor.get("type") == "Sequence":
        parts = [framed(part) for part in processor.get("processors") or ()]
        return any(first for first, _ in parts), any(last for _, last in parts)
    if processor.get("type") == "TemplateProcessing":
        single = [part for part in processor.get("single") or () if isinstance(part, dict)]
        return bool(single) and "SpecialToken" in single[0], bool(single) and "SpecialToken" in single[-1]
    return (True, True) if processor.get("type") in ("BertProcessing", "RobertaProcessing") else (False, False)


def inner_template(read: Read, reader: Reader) -> Json:
    """The chat template of a file of its own in tokenizer_config.json; without that, upstream looks for none."""
    template, config = read(TEMPLATE), read(CONFIG)
    if "chat_template.jinja" in reader.knows or not isinstance(template, str) or not isinstance(config, dict):
        return {}
    return {} if config.get("chat_template") else {CONFIG: {**config, "chat_template": template}}


RULES = (
    Rule(
        name="the tokenizer's class by its older name",
        since="transformers 5.0",
        source="transformers 5.23, tokenization_auto.py",
        apply=plain_class,
    ),
    Rule(
        name="extra_special_tokens as additional_special_tokens",
        since="transformers 5.0",
        source="transformers 5.23, tokenization_utils_base.py",
        apply=special_tokens,
    ),
    Rule(
        name="model_specific_special_tokens as extra_special_tokens",
        since="transformers 5.0",
        source="transformers 5.23 against 4.57.6, tokenization_utils_base.py",
        apply=named_tokens,
    ),
    Rule(
        name="pairs of merges as merges.txt",
        since="transformers 4.45",
        source="llama.cpp, gguf-py/gguf/vocab.py, which reads pairs since November 2024",
        apply=merges,
    ),
    Rule(
        name="no add_prefix_space that is null",
        since="transformers 4.40",
        source="llama.cpp b3878, LlamaModel.set_vocab",
        apply=prefix_unsaid,
    ),
    Rule(
        name="add_bos_token and add_eos_token as tokenizer.json has it",
        since="transformers 5.0",
        source="transformers 5.23, tokenization_utils_tokenizers.py, against 4.57.6, tokenization_llama_fast.py",
        apply=ends_of_text,
    ),
    Rule(
        name="the chat template in tokenizer_config.json",
        since="transformers 4.51",
        source="llama.cpp, gguf-py/gguf/vocab.py, which reads chat_template.jinja since May 2025",
        apply=inner_template,
    ),
)
