"""What the pinned tag would refuse after gigabytes of downloads, told before: by its own scripts and a model's small files."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import config_keys
from llamacpp_orchestrator.convert import encoders
from llamacpp_orchestrator.convert import positions
from llamacpp_orchestrator.convert import quantized
from llamacpp_orchestrator.convert import runtime
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.store import text_of

# With these the script goes other ways than the ones that are looked at here.
ELSEWHERE = ("--mistral-format", "--remote", "--print-supported-models", "--dspark", "--target-model-dir")
# As text, as one of a list, or in brackets.
BASE_MODEL = r"^base_model:\s*(?:-[ \t]*|\[[ \t]*)?[\"']?([\w.-]+/[\w.-]+)"
LONGEST_FRONT = 1 << 16
EMBEDDING = "model.embed_tokens.weight"
LIST, MMPROJ = "--print-supported-models", "--mmproj"
NEWER = "pin a newer tag"
USAGE = 2  # argparse's own exit code
# What a tag says that it does not know: an architecture, or the digest of a pre-tokenizer.
UNKNOWN = (r"Model (\S+) is not supported", r"pre-tokenizer was not recognized[\s\S]*?chkhsh:\s+([0-9a-f]{64})")


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A model as far as it is here, the tag that is to convert it, and the cache with the trees of other tags.

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
    store: Store | None = None


def check_job(job: Job, tag: str, file: str, tree: Path) -> None:
    """Raise JobError for a script, a type or an option that this tag does not have, with those that it does."""
    for model in job.models:
        asked = [("model", model.name, model.outtype, model.args), ("model", model.name, model.mmproj, ())]
        for kind, name, types, args in [*asked, *(("adapter", lora.name, lora.outtype, lora.args) for lora in model.loras)]:
            if not (tree / SCRIPTS[kind]).is_file():
                lacking = f"{file}: {model.name}: {tag} has no {SCRIPTS[kind]}, which converts {kind}s"
                raise JobError(lacking, "set `llama_cpp.tag` to a newer one; from b3878 on all have it")
            for what, hint in (*_types(tree, tag, kind, types), *_options(tree, tag, kind, args)):
                raise JobError(f"{file}: {name}: {what}", hint)
        if model.mmproj and (known := capabilities.options(tree, "model")) and MMPROJ not in known:
            message = f"{file}: {model.name}: {tag} cannot make projectors (its script has no {MMPROJ})"
            raise JobError(message, "pin a newer tag, or leave `mmproj` out")


def _types(tree: Path, tag: str, kind: str, types: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What is to be said of types that a script does not have, and which it has."""
    known = capabilities.outtypes(tree, kind)
    for outtype in types:
        if known and outtype not in (*known, "none"):
            also = "; types such as Q4_K_M belong under `quantize`" if "_" in outtype and kind == "model" else ""
            yield f"{tag} has no outtype `{outtype}` for {kind}s", f"it has {', '.join(known)}{also}"
        if outtype == "auto" and kind == "adapter" and not capabilities.chooses_adapter_type(tree):
            named = ", ".join(name for name in known if name != "auto")
            yield f"{tag} cannot choose the type of an adapter by itself (outtype auto)", f"name one: {named}"


def _options(tree: Path, tag: str, kind: str, args: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What is to be said of options that a script does not have; the rest about them its own parser says once it is asked."""
    known = capabilities.options(tree, kind)
    for name in (word.partition("=")[0] for word in args if known and re.fullmatch(r"--[^ ]+", word)):
        if not any(option.startswith(name) for option in known):
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
            yield f"{SCRIPTS[kind]} of {tag} has no option `{name}`", hint


def check_model(subject: Subject) -> None:
    """Raise OrchestrateError for a model that this tag cannot convert, as far as its small files tell; in doubt say nothing."""
    flags = _flags(subject)
    if flags.isdisjoint(ELSEWHERE):
        config = read_json(subject.folder / "config.json")
        check_architecture(subject, config)
        weights = headers.read(subject.folder) if subject.weights and "--vocab-only" not in flags else headers.Weights()
        check_weights(subject, config, weights)
        if MMPROJ in flags or subject.mmproj:
            headers.check_vision(weights, subject.source, subject.tag, subject.tree)
        if MMPROJ not in flags and "--vocab-only" not in flags:
            check_scaling(subject, config)
            check_quantization(subject, config, weights)
            check_numbers(subject, config)
            check_encoder(subject, config, whole=bool(weights.stored))


def _flags(subject: Subject) -> set[str]:
    known = capabilities.options(subject.tree, "model") if subject.weights else ()
    words = [word.partition("=")[0] for word in subject.args if word.startswith("--")]
    return {name for word in words for name in known if name == word or (word not in known and name.startswith(word))}


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


def check_architecture(subject: Subject, config: dict[str, Any]) -> None:
    """Raise OrchestrateError for an architecture that the tag's sources do not name, naming tags in the cache that do."""
    names = claimed(config)
    if not names or not config.get("architectures") or not capabilities.mentions(subject.tree, ".register("):
        return
    if any(capabilities.knows(subject.tree, name) for name in names):
        return
    if any((subject.folder / name).is_file() for name in capabilities.layouts(subject.tree)):
        return
    hint = elsewhere(subject, lambda tree: capabilities.knows(tree, names[0]))
    near = difflib.get_close_matches(names[0], sorted(capabilities.architectures(subject.tree)), 3, 0.6)
    hint += f"; the nearest that it knows: {', '.join(near)}" if near else ""
    listed = LIST in capabilities.options(subject.tree, "model")
    hint += f"; all that it knows: orchestrate exec JOB -- {SCRIPTS['model']} {LIST}" if listed else ""
    raise OrchestrateError(f"{subject.source}: {subject.tag} does not know the architecture {quoted(names[0])}", hint)


def elsewhere(subject: Subject, able: Callable[[Path], bool], otherwise: str = NEWER) -> str:
    """What to pin instead: the tags that can do it, of those whose trees lie in the cache."""
    store = subject.store
    trees = [path for path in store.folder("source").iterdir() if path.is_dir() and path != subject.tree] if store else []
    marks = [(path, store.mark("source", path.name)) for path in trees] if store else []
    names = {mark.about for path, mark in marks if mark and able(path)}
    tags = sorted(names, key=lambda name: (len(name), name))  # the oldest of them first: b9821 before b10605
    return f"set `llama_cpp.tag` to one that does: {', '.join(tags)} in the cache, or a newer one" if tags else otherwise


def scaling(config: dict[str, Any]) -> str:
    """The kind of rope scaling that a config asks of all texts, by the spelling of either time; "" for none."""
    nested = [part.get(key) for part in config_keys.parts(config) for key in ("rope_scaling", "rope_parameters")]
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
        raise OrchestrateError(f"{message}, and would convert the model as if it had none", elsewhere(subject, able))


def check_weights(subject: Subject, config: dict[str, Any], weights: headers.Weights) -> None:
    """Raise OrchestrateError for weights that are not whole, or bear other names than the model's, before they are converted."""
    named = config.get("transformers_weights")
    if named and weights.stored and not (subject.folder / str(named)).exists():
        message = f"{subject.source}: config.json names other weights than are read (transformers_weights: {quoted(named)})"
        raise OrchestrateError(message, "rename that file to model.safetensors, alone in a folder with the model's other files")
    embedding, size = weights.stored.get(EMBEDDING), config_keys.flat(config).get("vocab_size")
    if embedding and embedding.shape and isinstance(size, int) and embedding.shape[0] < size:
        message = f"{subject.source}: its embedding has {embedding.shape[0]} rows, its config a vocabulary of {size}"
        raise OrchestrateError(message, "use config and weights of one model; were tokens added? resize it and save both again")
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
    hint = elsewhere(subject, lambda tree: _able(tree, config), "no tag that is known here can; a newer one may")
    way = "with `verify: structure` it is converted all the same, to a model that answers otherwise than its source"
    raise OrchestrateError(f"{subject.source}: {told[0]}; {subject.tag} has no way to write it into a GGUF", f"{hint}; {way}")


def impossible(tree: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """What a config asks for and no GGUF of its architecture can say at a tag; () where the tag's class for it cannot be told."""
    ways = [capabilities.decisions(tree, name) for name in claimed(config)]
    way = next((way for way in ways if way.name), capabilities.Decisions())
    text = config_keys.flat(config)
    return runtime.impossible(way.name, text, way.own) + positions.unwritten(text, way.name, way.called)


def _able(tree: Path, config: dict[str, Any]) -> bool:
    return any(capabilities.knows(tree, name) for name in claimed(config)) and not impossible(tree, config)


def declared_base(folder: Path, config: dict[str, Any]) -> str:
    """The model that this one says it was made from: in the front matter of its README, or in its config."""
    named = str(config.get("_name_or_path", ""))
    with contextlib.suppress(OSError, ValueError):
        with (folder / "README.md").open(encoding="utf-8") as file:
            front = re.match(r"---\s*\n(.*?)\n---", file.read(LONGEST_FRONT), re.DOTALL)
        said = re.search(BASE_MODEL, front[1], re.MULTILINE) if front else None
        named = said[1] if said else named
    return named if not fields.source(named) and not fields.is_folder(named) else ""


def refusal(subject: Subject, where: str, error: CommandFailed) -> OrchestrateError:
    """A script's failure in terms of the job: JobError for what it asks for in vain, else with the tags that know more."""
    if error.code == USAGE:
        return JobError(f"{where}: {error.message}", error.hint, error.log)
    said = text_of(error.log)[-LONGEST_FRONT:] if error.log else ""
    lacking = next((match[1] for pattern in UNKNOWN if (match := re.search(pattern, said))), "")
    if not lacking:
        return error
    if subject.mmproj or MMPROJ in _flags(subject):
        config = read_json(subject.folder / "config.json")
        if any(config.get(key) for key in ("vision_config", "audio_config")):
            message = f"{where}: {subject.tag} has no projector for {quoted(lacking)}"
            return JobError(message, f"{NEWER}, or leave `mmproj` out", error.log)
        message = f"{where} has no vision or audio part: its config.json says {quoted(lacking)}"
        return JobError(message, "leave `mmproj` out for this model", error.log)
    if capabilities.knows(subject.tree, lacking):
        part = "it may make only its projector (`args: [--mmproj]`); the language model is a repository of its own then"
        return error.retold(error.message, f"{part}; or {error.hint}")
    hint = elsewhere(subject, lambda tree: capabilities.knows(tree, lacking))
    return error.retold(error.message, error.hint.replace(NEWER, hint, 1))
