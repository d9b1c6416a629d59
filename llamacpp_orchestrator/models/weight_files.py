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

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODULES = ("[0-9]_*/*.safetensors",)  # of sentence-transformers, with weights of their own
ASIDE = ("joint_head.safetensors",)  # what upstream's scripts read by name beside the weights (conversion/clef.py)
STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|sampler|.*_states).*")  # of a training
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
SHARD = re.compile(r"(.+-)(\d+)-of-(\d{1,5})\.safetensors")
AGAIN = "download or copy it again"
SHOWN = 3


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a path fits one of some patterns, none of whose parts goes over a slash."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def indexed(path: Path) -> tuple[str, ...]:
    """The files that an index of weight files names; IntegrityError for one that is damaged or names none."""
    try:
        named = set(map(str, json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cut = isinstance(error, json.JSONDecodeError)
        lack = f"it is cut, or no JSON ({error})" if cut else "it names no files under `weight_map`"
        raise IntegrityError(f"{path} is not an index of weight files: {lack}", AGAIN) from error
    return tuple(sorted(named))


def check_indexed(index: Sequence[str], names: Iterable[str], source: object) -> None:
    """Raise OrchestrateError when an index names files that are not there."""
    if missing := sorted(set(index).difference(names)):
        message = f"{source} lacks {len(missing)} of {len(index)} weight files: {', '.join(map(quoted, missing[:SHOWN]))}"
        raise OrchestrateError(message, "get all the files that the index names")


def choose(names: Sequence[str], index: Sequence[str], source: str, remote_code: bool) -> list[str]:
    """The weight files of a model with their index; `index` are the files that the index names, () without one.

    The order is that of transformers (modeling_utils.py, _get_resolved_checkpoint_files, in 4.57 and 5.23 alike): the one file
    model.safetensors before an index. Upstream's scripts read the index first, and without one all that is called model*.
    """
    root = [name for name in names if matches(name, ("*.safetensors",)) and name not in (ADAPTER_WEIGHTS, *ASIDE)]
    if index and (SINGLE not in root or SINGLE in index):
        check_indexed(index, root, source)
        weights = [*index, INDEX]
    elif SINGLE in root:
        weights = [SINGLE]
    else:
        weights = _without_index(root)
        weights += ["params.json"] if weights and weights[0].startswith("consolidated") and "params.json" in names else []
    if not weights:
        return _pickles(names, source, remote_code)
    aside = [name for name in names if matches(name, MODULES) or name in ASIDE]
    _check_shards([*weights, *aside], source)
    return weights + aside


def _without_index(root: list[str]) -> list[str]:
    """Shards, else what upstream takes for weights by its name, else Mistral's own layout."""
    shards = [name for name in root if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    named = (shards, *([name for name in root if name.startswith(start)] for start in ("model", "consolidated")))
    return next(filter(None, named), [])


def unread(names: Iterable[str], chosen: Iterable[str]) -> tuple[str, ...]:
    """Files that look like weights of the model and are not read; Mistral's own layout beside the other holds the same."""
    chosen = set(chosen)
    if not any(name.endswith(".safetensors") for name in chosen):
        return ()
    elsewhere = ("consolidated", "adapter_model")
    beside = [name for name in names if matches(name, ("*.safetensors", INDEX)) and not name.startswith(elsewhere)]
    return tuple(sorted(set(beside) - chosen))


def note(unread: Sequence[str]) -> str:
    """The note on weight files that are not read; "" when there are none."""
    if not unread:
        return ""
    more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
    names = ", ".join(map(quoted, unread[:SHOWN])) + more
    return f"not read: {names}; the weights are those that transformers loads from this folder"


def _check_shards(names: list[str], source: str) -> None:
    # Upstream converts half a model without complaint when no index tells it that it is one.
    for match in filter(None, map(SHARD.fullmatch, names)):
        for number in range(1, int(match[3]) + 1):
            other = f"{match[1]}{number:0{len(match[2])}}-of-{match[3]}.safetensors"
            if other not in names:
                raise OrchestrateError(f"{source} lacks {other}, one of {int(match[3])} weight files", "get all of them")


def is_adapter(source: str) -> OrchestrateError:
    """The error for a source that is a LoRA adapter where a model is needed."""
    return OrchestrateError(f"{source} is a LoRA adapter, not a model", "list it under `loras` of its base model")


def _pickles(names: Sequence[str], source: str, remote_code: bool) -> list[str]:
    pickles = [name for name in names if "/" not in name and matches(name, PICKLES) and not STATE.fullmatch(name)]
    readable = [name for name in pickles if re.fullmatch(r"pytorch_model.*\.bin", name)]
    if readable and remote_code:
        return readable + [name for name in names if name == "pytorch_model.bin.index.json"]
    if "adapter_config.json" in names:
        raise is_adapter(source)
    if pickles:
        raise OrchestrateError(
            f"{source} has its weights only as pickles ({pickles[0]}), which may run code when they are loaded",
            "use a repository with safetensors; pytorch_model*.bin is read if you trust it: `trust_remote_code: true`",
        )
    raise OrchestrateError(f"{source} has no weights (model*.safetensors)", "with only adapters to convert, set `outtype: none`")
