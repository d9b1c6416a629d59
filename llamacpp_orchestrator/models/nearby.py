"""A folder that holds no model or adapter itself: where near it one lies, or which command makes one of what it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.job.fields import SNAPSHOT

CONFIGS = {"model": "config.json", "adapter": "adapter_config.json"}
CHECKPOINT = re.compile(r"(?:.*[-_])?checkpoint[-_](\d+)|(?:global_)?(?:step|epoch)[-_]?(\d+)")
IN_CACHE = re.compile(r"models--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)")
WEIGHTS = re.compile(r"(?!adapter_model).*\.safetensors|pytorch_model.*\.bin|consolidated.*\.pth")
ADAPTERS = re.compile(r"adapter_model\.(safetensors|bin)")
# Parts of a model that have a config of their own and are none.
PARTS = re.compile(r"\.|__|[1-9]\d*_|(optimizer|scheduler|onnx|openvino|coreml|runs|logs|wandb|blobs|refs)(_|$)")
DEEP, MOST, SHOWN = 3, 2000, 4  # levels down; folders that are looked at; folders that are named
BESIDE = "; it also needs config.json and the tokenizer's files, from the model that was trained, in that folder"


class Place(msgspec.Struct, frozen=True):
    """A folder that holds a model or an adapter."""

    path: Path
    kind: str


def check(path: Path, kind: str, weights: bool) -> None:
    """Raise JobError for a folder without what is needed, where a folder near it has it, or a command can make it."""
    if not path.is_dir() or _holds(path, kind, weights) or (kind == "model" and (path / CONFIGS["adapter"]).is_file()):
        return
    below = sorted((folder for folder in _folders(path, 1) if CHECKPOINT.fullmatch(folder.name)), key=_age, reverse=True)
    ways = (_sharded(path, kind), _inside(path, kind, weights), *(_sharded(folder, kind) for folder in below[:1]))
    for refusal in (*ways, _in_cache(path), _above(path, kind, weights)):
        if refusal:
            raise JobError(*refusal)


def _names(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.iterdir()]
    except OSError:
        return []


def _holds(path: Path, kind: str, weights: bool) -> bool:
    names, shape = _names(path), WEIGHTS if kind == "model" else ADAPTERS
    return CONFIGS[kind] in names and (not weights or any(map(shape.fullmatch, names)))


def _folders(path: Path, depth: int = DEEP) -> Iterator[Path]:
    """The folders below one, its own first, at most DEEP levels down."""
    own = sorted(path / name for name in _names(path) if not PARTS.match(name) and (path / name).is_dir())
    yield from own
    for folder in own if depth > 1 else ():
        yield from _folders(folder, depth - 1)


def _places(path: Path, kind: str, weights: bool) -> list[Place]:
    """The folders below one that hold what is needed; else those that hold what belongs under the other key."""
    if (path / "model_index.json").is_file():  # of Diffusers, whose parts are no models for themselves
        return []
    folders = [folder for _, folder in zip(range(MOST), _folders(path), strict=False)]
    wanted = [Place(folder, kind) for folder in folders if _holds(folder, kind, weights)]
    other = "adapter" if kind == "model" else "model"
    return wanted or [Place(folder, other) for folder in folders if _holds(folder, other, True)]


def _age(path: Path) -> tuple[int, float]:
    match = CHECKPOINT.fullmatch(path.name)
    return int(match[1] or match[2]) if match else -1, path.stat().st_mtime


def _best(path: Path, places: list[Path]) -> Path | None:
    """The checkpoint that a trainer names as its best, or that bears such a name."""
    for folder in (path, *sorted(places, key=_age, reverse=True)):
        try:
            named = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if best := next((place for place in places if place.name == re.split(r"[/\\]", str(named))[-1]), None):
            return best
    return next((place for place in places if re.search(r"(^|[-_])best([-_]|$)", place.name)), None)


def _inside(path: Path, kind: str, weights: bool) -> tuple[str, str] | None:
    found = _places(path, kind, weights)
    if not found:
        return None
    places, holds = [place.path for place in found], found[0].kind
    snapshot = _current(path, places)
    newest, best = max(places, key=_age), _best(path, places)
    marks = {newest: "the newest"} if len(places) > 1 else {}
    marks |= {best: "the best"} if best and len(places) > 1 else {}
    order = sorted(places, key=lambda place: (place not in marks, place.as_posix()))
    listed = ", ".join(
        quoted(place.relative_to(path).as_posix()) + (f" ({marks[place]})" if place in marks else "") for place in order[:SHOWN]
    )
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    some = f"{'an' if holds == 'adapter' else 'a'} {holds}" if len(places) == 1 else f"{holds}s"
    message = f"{path} holds no {kind} itself; {some} in a folder below it: {listed}{more}"
    choice = snapshot or best or newest
    if holds != kind:
        where = "list it under `loras` of its base model" if holds == "adapter" else "a model belongs under `models`"
        return message, f"{where}: {choice}"
    repository = _repository(choice)
    hint = f"name that folder: {choice}" if len(places) == 1 else f"name the one that is meant, such as {choice}"
    return message, f"{hint}; or the hub id, {repository}" if repository else hint


def _current(path: Path, places: list[Path]) -> Path | None:
    """The snapshot that the hub's cache holds for the branch main."""
    for place in places:
        if SNAPSHOT.search(place.as_posix()):
            try:
                commit = (place.parents[1] / "refs" / "main").read_text(encoding="utf-8").strip()
            except (OSError, ValueError):
                continue
            if place.name == commit:
                return place
    return None


def _repository(path: Path) -> str:
    match = next(filter(None, (IN_CACHE.fullmatch(part) for part in reversed(path.parts))), None)
    return f"{match['org']}/{match['name']}" if match else ""


def _in_cache(path: Path) -> tuple[str, str] | None:
    repository = _repository(path)
    message = f"{path} is a part of the hub's cache, and no whole snapshot of {repository} lies there"
    return (message, f"write the hub id: {repository}") if repository else None


def _above(path: Path, kind: str, weights: bool) -> tuple[str, str] | None:
    place = next((parent for parent in list(path.parents)[:2] if _holds(parent, kind, weights)), None)
    return (f"{path} holds no {kind} itself; one lies in a folder above it", f"name that folder: {place}") if place else None


def _sharded(path: Path, kind: str) -> tuple[str, str] | None:
    """What a checkpoint of DeepSpeed or FSDP is, and the command that makes whole weights of its parts."""
    for folder in (path, path.parent):
        names = _names(folder)
        steps = sorted((folder / name for name in names if re.fullmatch(r"global_step\d+", name)), key=_step)
        if folder == path and not steps and any(re.search(r"(optim|model)_states\.pt$", name) for name in names):
            steps, folder = [path], path.parent
        if steps and (folder == path or path in steps):
            return _deepspeed(folder, steps[-1] if folder == path else path, kind)
    shards = next((place for place in (path, *sorted(path.iterdir())) if _is_distributed(place)), None)
    if not shards:
        return None
    dest = shards.parent
    what = f"{path} is a sharded checkpoint of FSDP ({quoted(shards.name)}), not whole weights"
    command = f"accelerate merge-weights {_word(shards)} {_word(dest)}"
    return what, f"make them whole, then name {dest}: {command}{_beside(dest, kind)}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("global_step"))


def _deepspeed(folder: Path, step: Path, kind: str) -> tuple[str, str]:
    script = folder / "zero_to_fp32.py"
    try:
        # A copy of the script as it was when the model was trained: older ones write pickles alone.
        safe = "safe_serialization" in script.read_text(encoding="utf-8")
    except (OSError, ValueError):
        safe = not script.is_file()
    program = "zero_to_fp32.py" if script.is_file() else "-m deepspeed.utils.zero_to_fp32"
    dest = ". --safe_serialization" if safe else "pytorch_model.bin"
    tag = "" if (folder / "latest").is_file() else f" --tag {step.name}"
    hint = f"make them whole, then name {folder}: cd {_word(folder)} && python {program} . {dest}{tag}" + _beside(folder, kind)
    hint += "" if safe else "; with `trust_remote_code: true` the pickle that it writes is read"
    return f"{folder} is a checkpoint of DeepSpeed (ZeRO, {step.name}), its weights lie in parts", hint


def _is_distributed(path: Path) -> bool:
    """Tell whether a folder holds the weights of a model as torch.distributed.checkpoint writes them."""
    if path.name.startswith("optimizer") or not path.is_dir():
        return False
    return any(name.endswith(".distcp") for name in _names(path))


def _beside(folder: Path, kind: str) -> str:
    return BESIDE if kind == "model" and not (folder / CONFIGS[kind]).is_file() else ""


def _word(path: Path) -> str:
    """A path as it is typed: in quotes where it holds a blank."""
    return f'"{path}"' if " " in str(path) else str(path)
