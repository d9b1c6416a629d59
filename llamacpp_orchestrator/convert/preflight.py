"""What the pinned tag would refuse after gigabytes of downloads, told before: by its own scripts and a model's small files."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import arguments
from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import config_keys
from llamacpp_orchestrator.convert import encoders
from llamacpp_orchestrator.convert import positions
from llamacpp_orchestrator.convert import quantized
from llamacpp_orchestrator.convert import runtime
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.source.tree import TAG_MARK
from llamacpp_orchestrator.util.store import MARK
from llamacpp_orchestrator.util.store import text_of

# With these the script goes other ways than the ones that are looked at here.
ELSEWHERE = ("--mistral-format", "--remote", "--print-supported-models", "--dspark", "--target-model-dir")
# As text, as one of a list, or in brackets.
BASE_MODEL = r"^base_model:\s*(?:-[ \t]*|\[[ \t]*)?[\"']?([\w.-]+/[\w.-]+)"
LONGEST_FRONT = 1 << 16
LIST = "--print-supported-models"
EMBEDDING = "model.embed_tokens.weight"


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A model as far as it is here, the tag that is to convert it, and where trees of other tags may lie.

    `mmproj`: its projector is wanted too.
    """

    tree: Path
    tag: str
    folder: Path
    source: str
    args: tuple[str, ...] = ()
    weights: bool = True
    compared: bool = True
    mmproj: bool = False
    trees: Path | None = None


def check_job(job: Job, tag: str, file: str, tree: Path) -> None:
    """Raise JobError for a script, a type or an option that this tag does not have, with those that it does."""
    for model in job.models:
        for kind in ("model", *(["adapter"] if model.loras else [])):
            if not (tree / SCRIPTS[kind]).is_file():
                lacking = f"{file}: {model.name}: {tag} has no {SCRIPTS[kind]}, which converts {kind}s"
                raise JobError(lacking, "set `llama_cpp.tag` to a newer one; from b3878 on all have it")
        asked = [("model", model.name, each) for each in model.outtype if each != "none"]
        asked += [("model", model.name, each) for each in model.mmproj]
        asked += [("adapter", lora.name, each) for lora in model.loras for each in lora.outtype]
        for kind, name, outtype in asked:
            known = capabilities.outtypes(tree, kind)
            if known and outtype not in known:
                also = "; types such as Q4_K_M belong under `quantize`" if "_" in outtype and kind == "model" else ""
                raise JobError(
                    f"{file}: {name}: {tag} has no outtype `{outtype}` for {kind}s",
                    f"it has {', '.join(known)}{also}",
                )
            if kind == "adapter" and outtype == "auto" and not arguments.chooses_adapter_type(tree):
                message = f"{file}: {name}: {job.llama_cpp.tag} cannot choose the type of an adapter by itself (outtype auto)"
                raise JobError(message, f"name one: {', '.join(each for each in known if each != 'auto')}")
        for kind, name, args in [("model", model.name, model.args), *(("adapter", each.name, each.args) for each in model.loras)]:
            if found := arguments.complaint(capabilities.options(tree, kind), args):
                what, hint = found
                raise JobError(f"{file}: {name}: {SCRIPTS[kind]} of {tag} {what}", hint)


def check_model(subject: Subject) -> None:
    """Raise OrchestrateError for a model that this tag cannot convert, as far as its small files tell; in doubt say nothing."""
    flags = _flags(subject)
    if flags.isdisjoint(ELSEWHERE):
        config = read_json(subject.folder / "config.json")
        check_architecture(subject, config, "--mmproj" in flags)
        weights = headers.read(subject.folder) if subject.weights and "--vocab-only" not in flags else headers.Weights()
        check_weights(subject, config, weights)
        if "--mmproj" in flags or subject.mmproj:
            headers.check_vision(weights, subject.source, subject.tag, subject.tree)
        if "--mmproj" not in flags and "--vocab-only" not in flags:
            check_scaling(subject, config)
            check_quantization(subject, config, weights)
            check_vocabulary(subject, config, weights)
            check_numbers(subject, config)
            check_encoder(subject, config, whole=bool(weights.stored))


def _flags(subject: Subject) -> set[str]:
    known = capabilities.options(subject.tree, "model") if subject.weights else ()
    words = [word.partition("=")[0] for word in subject.args if word.startswith("--")]
    return {name for word in words for option in arguments.named(known, word) for name in option.names}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none: complaints about that are made elsewhere."""
    with contextlib.suppress(OrchestrateError):
        return safetensors.read_json(path)
    return {}


def claimed(config: dict[str, Any], deep: int = 2) -> list[str]:
    """The architectures that a config names, its own first, then those of its parts: which part counts, each tag says anew."""
    named = config.get("architectures")
    found = [str(named[0])] if isinstance(named, list) and named else []
    parts = [part for part in config.values() if isinstance(part, dict)] if deep else []
    return found + [name for part in parts for name in claimed(part, deep - 1)]


def check_architecture(subject: Subject, config: dict[str, Any], mmproj: bool = False) -> None:
    """Raise OrchestrateError when the tag's own registry lacks the architecture, naming tags in the cache that have it."""
    known, names = capabilities.architectures(subject.tree), claimed(config)
    if known is None or not names or not config.get("architectures"):
        return
    able = known.mmproj if mmproj else known.text
    if able.intersection(names) or any((subject.folder / name).is_file() for name in capabilities.layouts(subject.tree)):
        return
    name, what = names[0], "the projector of the architecture" if mmproj else "the architecture"
    if not mmproj and name in known.mmproj:
        hint = "it makes only its projector: `args: [--mmproj]`; the language model is a repository of its own"
    else:
        hint = _elsewhere(subject, lambda tree: _knows(tree, name, mmproj))
        near = difflib.get_close_matches(name, sorted(able), 3, 0.6)
        hint += f"; the nearest that it knows: {', '.join(near)}" if near else ""
        hint += f"; all that it knows: orchestrate exec JOB -- {SCRIPTS['model']} {LIST}" if _lists(subject.tree) else ""
    raise OrchestrateError(f"{subject.source}: {subject.tag} does not know {what} {quoted(name)}", hint)


def check_projector(tree: Path, tag: str, name: str, config: dict[str, Any]) -> None:
    """Raise JobError when a tag has no projector for a model, or cannot make any, as far as its source tells."""
    text = (tree / SCRIPTS["model"]).read_bytes()
    if b'"--mmproj"' not in text:
        raise JobError(
            f"{name}: {tag} cannot make projectors (its script has no --mmproj)", "pin a newer tag, or leave `mmproj` out"
        )
    registry = capabilities.architectures(tree)
    known = registry.mmproj if registry else frozenset()
    vision = config.get("vision_config")
    named = (vision.get("architectures") if isinstance(vision, dict) else None) or config.get("architectures")
    if not known or not isinstance(named, list) or not named or named[0] in known:
        return
    if not any(config.get(key) for key in ("vision_config", "audio_config")):
        raise JobError(
            f"{name} has no vision or audio part: its config.json says {quoted(named[0])}", "leave `mmproj` out for this model"
        )
    raise JobError(f"{name}: {tag} has no projector for {quoted(named[0])}", "pin a newer tag, or leave `mmproj` out")


def _lists(tree: Path) -> bool:
    return any(LIST in option.names for option in capabilities.options(tree, "model"))


def _knows(tree: Path, name: str, mmproj: bool) -> bool:
    known = capabilities.architectures(tree)
    return known is not None and name in (known.mmproj if mmproj else known.text)


def _elsewhere(subject: Subject, able: Callable[[Path], bool], otherwise: str = "pin a newer tag") -> str:
    """What to pin instead: the tags that can do it, of those whose trees lie in the cache."""
    trees = sorted(subject.trees.iterdir()) if subject.trees and subject.trees.is_dir() else []
    found = [path for path in trees if path != subject.tree and (path / MARK).is_file() and able(path)]
    names = {text_of(path / TAG_MARK) or path.name.removeprefix("package-") for path in found}
    tags = sorted(names, key=lambda name: (len(name), name))  # the oldest of them first: b9821 before b10605
    return f"set `llama_cpp.tag` to one that does: {', '.join(tags)} in the cache, or a newer one" if tags else otherwise


def scaling(config: dict[str, Any]) -> str:
    """The kind of rope scaling that a config asks of all texts, by the spelling of either time; "" for none."""
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    nested = [part.get(key) for part in parts for key in ("rope_scaling", "rope_parameters")]
    ropes = [rope.get("full_attention", rope) for rope in nested if isinstance(rope, dict)]
    kinds = [rope.get("rope_type", rope.get("type")) for rope in ropes if isinstance(rope, dict) and rope.get("factor") != 1]
    return next((str(kind) for kind in kinds if kind in capabilities.SCALINGS), "")


def check_scaling(subject: Subject, config: dict[str, Any]) -> None:
    """Raise OrchestrateError for a scaling of rope that the architecture's class at this tag would pass over."""
    kind, names = scaling(config), claimed(config)[:1]

    def able(tree: Path) -> bool:
        classes = capabilities.converter(tree, names[0])
        return not classes or kind in capabilities.scalings(classes)

    if kind and names and subject.weights and not able(subject.tree):
        message = f"{subject.source}: {subject.tag} does not know the rope scaling {kind} of {quoted(names[0])}"
        raise OrchestrateError(f"{message}, and would convert the model as if it had none", _elsewhere(subject, able))


def check_weights(subject: Subject, config: dict[str, Any], weights: headers.Weights) -> None:
    """Raise OrchestrateError for weights that are not whole, or bear other names than the model's, before they are converted."""
    named = config.get("transformers_weights")
    if named and weights.stored and not (subject.folder / str(named)).exists():
        message = f"{subject.source}: config.json names other weights than are read (transformers_weights: {quoted(named)})"
        raise OrchestrateError(message, "rename that file to model.safetensors, alone in a folder with the model's other files")
    headers.check(weights, subject.source, lambda text: capabilities.reads(subject.tree, claimed(config), text))


def check_encoder(subject: Subject, config: dict[str, Any], *, whole: bool) -> None:
    """Raise OrchestrateError for what this tag would drop of a model that embeds or ranks."""
    if subject.weights and claimed(config):
        classes = capabilities.converter(subject.tree, claimed(config)[0])
        encoders.check(subject.folder, subject.source, subject.tag, config, classes, whole=whole)


def check_quantization(subject: Subject, config: dict[str, Any], weights: headers.Weights) -> None:
    """Raise OrchestrateError for weights that are quantized in a way that this tag does not undo."""
    classes = [each for name in claimed(config) for each in capabilities.converter(subject.tree, name)]
    nvfp4 = (subject.folder / "hf_quant_config.json").is_file()
    found = quantized.complaint(subject.tree, config, weights, classes, nvfp4=nvfp4)
    if found is None:
        return
    what, way, said = found
    base = declared_base(subject.folder, config)
    hint = f"name the unquantized model: {base}" if base and base != subject.source else "name the model that it was made from"
    hint = f"{way}, or {hint}" if way and not way.startswith("or ") else f"{hint}, {way}" if way else hint
    hint += "; if it was merged to plain weights since, take `quantization_config` out of its config.json" if said else ""
    raise OrchestrateError(f"{subject.source} is quantized already ({quoted(what)}), which {subject.tag} cannot read", hint)


def check_numbers(subject: Subject, config: dict[str, Any]) -> None:
    """Raise OrchestrateError for what no GGUF of the model's architecture can say at this tag, unless nothing is compared."""
    if not (subject.weights and subject.compared) or not (told := impossible(subject.tree, config)):
        return
    hint = _elsewhere(subject, lambda tree: _able(tree, config), "no tag that is known here can; a newer one may")
    way = "with `verify: structure` it is converted all the same, to a model that answers otherwise than its source"
    raise OrchestrateError(f"{subject.source}: {told[0]}; {subject.tag} has no way to write it into a GGUF", f"{hint}; {way}")


def impossible(tree: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """What a config asks for and no GGUF of its architecture can say at a tag; () where the tag's class for it cannot be told."""
    ways = [capabilities.decisions(tree, name) for name in claimed(config)]
    way = next((way for way in ways if way.name), capabilities.Decisions())
    text = config_keys.flat(config)
    return runtime.impossible(way.name, text, way.own) + positions.unwritten(text, way.name, way.called)


def _able(tree: Path, config: dict[str, Any]) -> bool:
    return any(_knows(tree, name, False) for name in claimed(config)) and not impossible(tree, config)


def declared_base(folder: Path, config: dict[str, Any]) -> str:
    """The model that this one says it was made from: in the front matter of its README, or in its config."""
    named = str(config.get("_name_or_path", ""))
    with contextlib.suppress(OSError, ValueError):
        with (folder / "README.md").open(encoding="utf-8") as file:
            front = re.match(r"---\s*\n(.*?)\n---", file.read(LONGEST_FRONT), re.DOTALL)
        said = re.search(BASE_MODEL, front[1], re.MULTILINE) if front else None
        named = said[1] if said else named
    return named if not fields.source(named) and not fields.is_folder(named) else ""


def plain_bpe(subject: Subject, config: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a model whose vocabulary this tag is certain to read as GPT-2's kind; {} for all others."""
    folder = subject.folder
    if any((folder / name).is_file() for name in ("tokenizer.model", "tekken.json", "tokenizer.jsonl")):
        return {}
    found = read_json(folder / "tokenizer.json")
    model = found.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        return {}
    names, known = claimed(config)[:1], capabilities.architectures(subject.tree)
    if known is None or set(names) - known.text or len(set(claimed(config))) != 1:
        return {}
    special = read_json(folder / "tokenizer_config.json").get("tokenizer_class", "")
    return found if capabilities.reads_gpt2(capabilities.converter(subject.tree, names[0]), (names[0], str(special))) else {}


def check_vocabulary(subject: Subject, config: dict[str, Any], weights: headers.Weights) -> None:
    """Raise OrchestrateError for a tokenizer that has more tokens than the model has rows for."""
    inner = config.get("text_config")
    size = {**config, **(inner if isinstance(inner, dict) else {})}.get("vocab_size")
    if not subject.weights or not isinstance(size, int):
        return
    tokenizer = plain_bpe(subject, config)
    last = _last_token(tokenizer)
    embedding = weights.stored.get(EMBEDDING) if tokenizer else None
    rows = embedding.shape[0] if embedding and len(embedding.shape) == 2 else None
    hint = "tokens were added without resizing the model: use the original's tokenizer files, or resize and save both again"
    if last >= size:
        raise OrchestrateError(f"{subject.source}: its tokenizer has {last + 1} tokens, its config a vocabulary of {size}", hint)
    if rows is not None and rows < size:
        raise OrchestrateError(f"{subject.source}: its embedding has {rows} rows, its config a vocabulary of {size}", hint)


def _last_token(tokenizer: dict[str, Any]) -> int:
    vocabulary = tokenizer.get("model", {}).get("vocab")
    added = tokenizer.get("added_tokens")
    found = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    found += [each.get("id") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    return max((each for each in found if isinstance(each, int)), default=-1)


def takes_vocabulary(subject: Subject) -> bool:
    """Whether the script writes a vocabulary, and takes it from the model's folder in transformers' layout."""
    return _flags(subject).isdisjoint((*ELSEWHERE, "--mmproj"))


def is_hashed(subject: Subject) -> bool:
    """Whether this tag is certain to ask for the digest of the model's pre-tokenizer."""
    if not takes_vocabulary(subject):
        return False
    return bool(capabilities.hashes(subject.tree) and plain_bpe(subject, read_json(subject.folder / "config.json")))


def check_hash(subject: Subject, digest: str) -> None:
    """Raise OrchestrateError when this tag does not know a pre-tokenizer by its digest, naming tags in the cache that do."""
    known = capabilities.hashes(subject.tree)
    if known and digest and digest not in known:
        hint = _elsewhere(subject, lambda tree: digest in capabilities.hashes(tree))
        also = "; if the tokenizer was changed while fine-tuning, use the original's tokenizer files"
        raise OrchestrateError(f"{subject.source}: {subject.tag} does not know the model's tokenizer", hint + also)
