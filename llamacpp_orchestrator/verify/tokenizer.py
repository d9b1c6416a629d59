"""Comparison of an output's tokens, special tokens and chat template with the files of its source."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import config_keys
from llamacpp_orchestrator.convert import encoders
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify.tensors import listed

TEMPLATE = "tokenizer.chat_template"
# A special token's name in the source → its key in the output, and whose place it may take where it has none of its own.
SPECIAL = {
    "bos": ("bos_token_id", "cls"),
    "eos": ("eos_token_id", "sep"),
    "unk": ("unknown_token_id", ""),
    "pad": ("padding_token_id", ""),
    "sep": ("seperator_token_id", "eos"),
    "mask": ("mask_token_id", ""),
}
# A token type of the output that marks a token as special: unknown, control, defined by the user.
MARKED = (2, 3, 4)
# Tokenizers whose special tokens upstream takes from the source's files, and where the runtime looks for the end of a text
# when a file does not say it (llama.cpp's src/llama-vocab.cpp); others have rules of their own.
END = {"llama": 2, "gpt2": 11, "bert": -1, "t5": 1}


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """An output whose words are checked, with its source: as it is (`view`), and in the form that transformers is given."""

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    view: Path
    translated: Path
    interpreter: Interpreter
    log: Path


class Added(msgspec.Struct, frozen=True):
    """A token that was added to a tokenizer."""

    id: int
    content: str
    special: bool = False


class Vocabulary(msgspec.Struct, frozen=True):
    """The tokens of a tokenizer.json: by name, or in their order with a score; merges as one text each, or as pairs."""

    vocab: dict[str, int] | list[tuple[str, float]] = {}
    merges: list[str | tuple[str, str]] = []


class Tokenizer(msgspec.Struct, frozen=True):
    """The parts of a tokenizer.json that are compared; it is large, so the rest is not even decoded."""

    model: Vocabulary = Vocabulary()
    added_tokens: list[Added] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None


class TokenizerFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a source about its tokens and its chat template; `templates` are (file name, text), `unread` file names."""

    tokenizer: Tokenizer | None = None
    config: dict[str, Any] = {}
    generation: dict[str, Any] = {}
    tokenizer_config: dict[str, Any] | None = None
    special_map: dict[str, Any] = {}
    templates: tuple[tuple[str, str], ...] = ()
    merges: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read(view: Path) -> TokenizerFiles:
    """Read the files of a source that speak about tokens; one that is damaged is named, as upstream may do without it."""
    unread = []

    def document(name: str) -> dict[str, Any] | None:
        try:
            if isinstance(content := json.loads((view / name).read_text(encoding="utf-8")), dict):
                return content
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            pass
        unread.append(name)
        return None

    tokenizer = None
    if (view / "tokenizer.json").is_file():
        try:
            tokenizer = msgspec.json.decode((view / "tokenizer.json").read_bytes(), type=Tokenizer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            unread.append("tokenizer.json")
    config = document("tokenizer_config.json")
    # In the order in which upstream looks; transformers looks into chat_template.jinja first.
    templates = [("tokenizer_config.json", text) for text in _templates((config or {}).get("chat_template"))]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        templates.append(("chat_template.jinja", (view / "chat_template.jinja").read_text(encoding="utf-8")))
    alone = (document("chat_template.json") or {}).get("chat_template")
    templates += [("chat_template.json", text) for text in _templates(alone)]
    return TokenizerFiles(
        tokenizer=tokenizer,
        config=document("config.json") or {},
        generation=document("generation_config.json") or {},
        tokenizer_config=config,
        special_map=document("special_tokens_map.json") or {},
        templates=tuple(templates),
        merges=_merges(view / "merges.txt"),
        unread=tuple(unread),
    )


def _merges(file: Path) -> tuple[str, ...]:
    """The lines of a merges.txt as upstream reads them, for a source without tokenizer.json."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return ()
    parts = [line.split() for line in lines[lines[0].strip().startswith("#") :]]
    return tuple(" ".join(pair) for pair in parts if len(pair) == 2)


def _templates(value: Any) -> list[str]:
    """One text, or the default of several: only that one is what an output's plain key holds."""
    if isinstance(value, str):
        return [value]
    several = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    named = [entry.get("template") for entry in several if entry.get("name") == "default"]
    return [text for text in named[-1:] if isinstance(text, str)]


def compare(source: TokenizerFiles, metadata: Mapping[str, Any], rows: int) -> Findings:
    """Compare all about tokens; `rows` is the length of the output's embedding of tokens, 0 without one."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return template(source, metadata)
    return (
        sizes(source, tokens, rows)
        + texts(source, tokens, str(metadata.get("tokenizer.ggml.model")))
        + special(source, tokens, metadata)
        + template(source, metadata)
        + Findings(notes=tuple(f"{name} of the source cannot be read" for name in source.unread))
    )


def sizes(source: TokenizerFiles, tokens: list[str], rows: int) -> Findings:
    """Check that there are as many tokens as rows for them, and as many as the source has."""
    failures = []
    if rows and len(tokens) != rows:
        failures.append(f"it lists {len(tokens)} tokens, and has numbers for {rows}")
    due = max(_by_id(source.tokenizer), default=-1) + 1
    limit = next((part["vocab_size"] for part in config_keys.parts(source.config) if part.get("vocab_size")), None)
    # Some models have more tokens than numbers for them (an image's place): those upstream leaves out.
    due = min(due, limit) if isinstance(limit, int) else due
    if len(tokens) < due:
        failures.append(f"it lists {len(tokens)} tokens, the source's tokenizer.json {due}")
    if isinstance(limit, int) and rows and len(tokens) != limit and not failures:
        return Findings(notes=(f"it lists {len(tokens)} tokens, the source's config.json says {limit}",))
    return Findings(failures=tuple(failures))


def _by_id(tokenizer: Tokenizer | None) -> dict[int, str]:
    if tokenizer is None:
        return {}
    vocab = tokenizer.model.vocab
    plain = (
        {number: text for text, number in vocab.items()}
        if isinstance(vocab, dict)
        else dict(enumerate(text for text, _ in vocab))
    )
    return plain | {token.id: token.content for token in tokenizer.added_tokens}


def texts(source: TokenizerFiles, tokens: list[str], model: str) -> Findings:
    """Check that each token is the source's; only byte-pair vocabularies are taken over letter by letter."""
    added = {token.id for token in source.tokenizer.added_tokens} if source.tokenizer else set()
    other = [
        number
        for number, text in _by_id(source.tokenizer).items()
        if number not in added and tokens[number : number + 1] not in ([], [text])
    ]
    if model != "gpt2" or not other:
        return Findings()
    first = other[0]
    mine, theirs = tokens[first], _by_id(source.tokenizer)[first]
    return Findings(failures=(f"{len(other)} tokens are not the source's: the first is {first}, {mine!r} instead of {theirs!r}",))


def special(source: TokenizerFiles, tokens: list[str], metadata: Mapping[str, Any]) -> Findings:
    """Check that the special tokens are those that some file of the source names."""
    if (model := metadata.get("tokenizer.ggml.model")) not in END:
        return Findings()
    named = {kind: _named(source, kind) for kind in ("cls", *SPECIAL)}
    framing = _numbers(source.tokenizer.post_processor) if source.tokenizer else set()
    types = metadata.get("tokenizer.ggml.token_type") or []
    failures: list[str] = []
    notes: list[str] = []
    for kind, (key, stand_in) in SPECIAL.items():
        ids, words = named[kind]
        if stand_in:
            ids, words = ids | named[stand_in][0], words | named[stand_in][1]
        mine = metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(mine, int):
            default = "".join(tokens[END[model] : END[model] + 1])
            ends = kind == "eos" and encoders.generates(metadata)
            if ends and default not in words and any(word in tokens for word in words):
                failures.append(f"it has no {key}, so that it would never end; the source says {_alternatives(ids, words)}")
            continue
        if mine >= len(tokens):
            line = f"its {key} is {mine}, and there are {len(tokens)} tokens"
            (notes if mine in ids else failures).append(line)
        elif (ids or words) and mine not in ids | framing and tokens[mine] not in words:
            others = {number for other in named if other != kind for number in named[other][0]}
            certain = mine in others or (mine < len(types) and types[mine] not in MARKED)
            line = f"its {key} is {mine} ({tokens[mine]!r}), where the source says {_alternatives(ids, words)}"
            (failures if certain else notes).append(line)
    return Findings(failures=tuple(failures), notes=tuple(notes))


def source_ends(source: TokenizerFiles) -> set[int]:
    """The ids at which a source ends a text: generation_config.json and config.json may name several."""
    return _ids(source, "eos")


def _alternatives(ids: set[int], words: set[str]) -> str:
    return " or ".join([repr(word) for word in sorted(words)] + [str(number) for number in sorted(ids)])


def _named(source: TokenizerFiles, kind: str) -> tuple[set[int], set[str]]:
    """The ids and the texts that the files of a source give for one special token."""
    ids, words = _ids(source, kind), set()
    for config in (source.tokenizer_config or {}, source.special_map):
        text = config.get(f"{kind}_token")
        text = text.get("content") if isinstance(text, dict) else text
        words |= {text} if isinstance(text, str) and text else set()
    return ids | {number for number, text in _by_id(source.tokenizer).items() if text in words}, words


def _ids(source: TokenizerFiles, kind: str) -> set[int]:
    ids: set[int] = set()
    for config in (*config_keys.parts(source.config), source.generation):
        value = config.get(f"{kind}_token_id")
        ids |= {number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)}
    return ids


def _numbers(part: Any) -> set[int]:
    """Every token id that a post-processor names: upstream may take what it puts around a text for its begin and end."""
    if isinstance(part, dict):
        return {number for inner in part.values() for number in _numbers(inner)}
    if isinstance(part, list):
        return {number for inner in part for number in ({inner} if type(inner) is int else _numbers(inner))}
    return set()


def template(source: TokenizerFiles, metadata: Mapping[str, Any]) -> Findings:
    """Check that the chat template is the source's, letter by letter."""
    mine = metadata.get(TEMPLATE)
    if not source.templates or source.tokenizer_config is None:
        return Findings(notes=("the source has no chat template that upstream reads, the output has one",) if mine else ())
    if not isinstance(mine, str):
        return Findings(failures=("the source's chat template is not there",))
    files = [name for name, text in source.templates if text == mine]
    if not files:
        line = _first_difference(mine, source.templates[0][1])
        return Findings(failures=(f"its chat template is not the source's ({line})",))
    others = [name for name, text in source.templates if text != mine]
    line = f"its chat template is that of {files[0]}; {listed(others)} of the source holds another"
    return Findings(notes=(line,) if others else ())


def _first_difference(mine: str, theirs: str) -> str:
    at = next(
        (at for at, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other), min(len(mine), len(theirs))
    )
    return f"from letter {at}: {mine[at : at + 20]!r} instead of {theirs[at : at + 20]!r}"
