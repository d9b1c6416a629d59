"""Selection of a model's weight files: those that transformers would load, and no other that lies beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted

INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
INDEXES = (INDEX, PICKLE_INDEX)
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODULES = ("[0-9]_*/model.safetensors",)  # of sentence-transformers, with weights of their own
ASIDE = ("joint_head.safetensors",)  # what upstream's scripts read by name beside the weights (conversion/clef.py)
STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|sampler|.*_states).*")  # of a training
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
SHARD = re.compile(r"(.+-)(\d+)-of-(\d{1,5})(\.safetensors|\.bin)")
AGAIN = "download or copy it again"
ONE_SAVE = "get index and weights from one save; a single model.safetensors needs no index"
SHOWN = 3


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a path fits one of some patterns, none of whose parts goes over a slash."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def indexed(path: Path) -> tuple[str, ...]:
    """The files that an index of weight files names; IntegrityError for one that is damaged or names none."""
    try:
        files = set(map(str, json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if not files:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cut = isinstance(error, json.JSONDecodeError)
        lack = f"it is cut, or no JSON ({error})" if cut else "it names no files under `weight_map`"
        raise IntegrityError(f"{path} is not an index of weight files: {lack}", AGAIN) from error
    return tuple(sorted(files))


def check_indexed(index: Sequence[str], names: Iterable[str], source: object) -> None:
    """Raise OrchestrateError when an index names files that are not there."""
    if missing := sorted(set(index).difference(names)):
        message = f"{source} lacks {len(missing)} of {len(index)} weight files: {', '.join(map(quoted, missing[:SHOWN]))}"
        raise OrchestrateError(message, "get all the files that the index names")


def index_name(names: Iterable[str], remote_code: bool) -> str:
    """The file that says which of some files are the weights of a model; "" where none does."""
    root = {name for name in names if "/" not in name}
    if INDEX in root:
        return INDEX
    return PICKLE_INDEX if PICKLE_INDEX in root and remote_code and not any(map(_is_safe, root)) else ""


def _is_safe(name: str) -> bool:
    return name.startswith(("model", "consolidated")) and name.endswith(".safetensors")


def choose(names: Sequence[str], index: Sequence[str], source: str, remote_code: bool) -> list[str]:
    """The weight files of a model; `index` are the files that its index names (see `index_name`), () without one.

    The order is that of transformers (modeling_utils.py, _get_resolved_checkpoint_files, in 4.57 and 5.23 alike): the one file
    model.safetensors before an index, and pickles after both. Upstream's scripts read the index first (older ones do not), and
    without one all that is called model*. Raises OrchestrateError where files are missing, or nothing says which are meant.
    """
    root = [name for name in names if matches(name, ("*.safetensors",)) and name not in (ADAPTER_WEIGHTS, *ASIDE)]
    weights = _of_layout(INDEX, root, index if INDEX in names else (), source) or _own_set("consolidated", root, source)
    weights += ["params.json"] if weights and weights[0].startswith("consolidated") and "params.json" in names else []
    if not weights:
        return _pickles(names, index, source, remote_code)
    aside = [name for name in names if matches(name, MODULES) or name in ASIDE]
    _check_shards(weights, names, source)
    return weights + aside


def _of_layout(index_file: str, root: list[str], index: Sequence[str], source: str) -> list[str]:
    """The files that an index of this name stands for: the single one, those that it names, else what bears their names."""
    single = index_file.removesuffix(".index.json")
    if index and (single not in root or single in index):
        check_indexed(index, root, source)
        return [*index, index_file]
    return [single] if single in root else _own_set(single.partition(".")[0], root, source)


def _own_set(start: str, root: list[str], source: str) -> list[str]:
    """Files that are one set by their names, shards first; OrchestrateError for those of two sets."""
    files = [name for name in root if re.fullmatch(rf"{start}-\d+-of-\d+\.\w+", name)]
    files = files or [name for name in root if name.startswith(start)]
    sets = {_set(name): name for name in reversed(files)}
    if len(sets) > 1:
        first, second = map(quoted, sorted(sets.values())[:2])
        message = f"{source} has more than one set of weights ({first} and {second}), and nothing says which is meant"
        raise OrchestrateError(message, "keep one set in a folder of its own, with config and tokenizer, and name that")
    return files


def _set(name: str) -> str:
    """What files of one set have in common; parts of a model may bear any name, and their headers tell whether they are some."""
    if shard := SHARD.fullmatch(name):
        return f"{shard[1]}of-{shard[3]}"
    return "" if re.fullmatch(r"model[^.]*\.safetensors", name) else name


def unread(names: Iterable[str], chosen: Iterable[str]) -> tuple[str, ...]:
    """Files that look like weights of the same kind and are not read; Mistral's own layout beside the other holds the same."""
    chosen = set(chosen)
    if ADAPTER_WEIGHTS in chosen:
        alike: tuple[str, ...] = ("adapter_model*.safetensors",)
    elif any(name.endswith(".safetensors") for name in chosen):
        alike = ("*.safetensors", INDEX)
    else:
        alike = ("pytorch_model*.bin", PICKLE_INDEX) if any(name.endswith(".bin") for name in chosen) else ()
    elsewhere = ("consolidated", *(() if ADAPTER_WEIGHTS in chosen else ("adapter_model",)))
    return tuple(sorted(name for name in names if matches(name, alike) and name not in chosen and not name.startswith(elsewhere)))


def note(unread: Sequence[str]) -> str:
    """The note on weight files that are not read; "" when there are none."""
    if not unread:
        return ""
    more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
    names = ", ".join(map(quoted, unread[:SHOWN])) + more
    return f"not read: {names}; the weights are those that transformers loads from this folder"


def _check_shards(weights: Sequence[str], names: Sequence[str], source: str) -> None:
    # Upstream converts half a model without complaint when no index tells it that it is one.
    for match in filter(None, map(SHARD.fullmatch, weights)):
        for number in range(1, int(match[3]) + 1):
            other = f"{match[1]}{number:0{len(match[2])}}-of-{match[3]}{match[4]}"
            if other in names and other not in weights:
                message = f"{source} has {int(match[3])} weight files, and its index does not name {other}"
                raise OrchestrateError(message, ONE_SAVE)
            if other not in weights:
                raise OrchestrateError(f"{source} lacks {other}, one of {int(match[3])} weight files", "get all of them")


def is_adapter(source: str) -> OrchestrateError:
    """The error for a source that is a LoRA adapter where a model is needed."""
    return OrchestrateError(f"{source} is a LoRA adapter, not a model", "list it under `loras` of its base model")


def _pickles(names: Sequence[str], index: Sequence[str], source: str, remote_code: bool) -> list[str]:
    pickles = [name for name in names if "/" not in name and matches(name, PICKLES) and not STATE.fullmatch(name)]
    readable = [name for name in pickles if re.fullmatch(r"pytorch_model.*\.bin", name)]
    if readable and remote_code:
        weights = _of_layout(PICKLE_INDEX, readable, index, source)
        _check_shards(weights, names, source)
        return weights
    if "adapter_config.json" in names:
        raise is_adapter(source)
    if pickles:
        raise OrchestrateError(
            f"{source} has its weights only as pickles ({pickles[0]}), which may run code when they are loaded",
            "use a repository with safetensors; pytorch_model*.bin is read if you trust it: `trust_remote_code: true`",
        )
    raise OrchestrateError(f"{source} has no weights (model*.safetensors)", "with only adapters to convert, set `outtype: none`")
