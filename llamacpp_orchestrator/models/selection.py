"""Selection of the files of a model or adapter that conversion reads; all must be there, under names that every disk keeps."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.job.fields import RESERVED
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.models.weight_files import MODULES
from llamacpp_orchestrator.models.weight_files import PICKLES
from llamacpp_orchestrator.models.weight_files import matches
from llamacpp_orchestrator.util import pointers

SMALL = (
    "*.json", "*.jinja", "*.model", "*.model.v*", "*.tiktoken", "tokenizer.jsonl", "chat_template.*", "*vocab*.txt", "merges.txt",
    "README.md", "additional_chat_templates/*.jinja", "[0-9]_*/config.json",
)  # fmt: skip
NOT_READ = (
    "*.index.json", "*.index.f*.json", "training_args*", "trainer_state.json", "optimizer*", "adapter_config.json", "params.json",
    "*.receipt.json", "*-quality.json",  # ours, of outputs that lie beside their source
)  # fmt: skip
WEIGHTS = ("*.safetensors", *MODULES)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "README.md")
# What an adapter may bring to a merge besides: its tokenizer, and the adapter that its training began with.
TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.*",
    "additional_chat_templates/*", "*.tiktoken", "*.model", "*.model.v*", "tekken.json",
)  # fmt: skip
INITIAL = ("*init*/adapter_config.json", "*init*/adapter_model.safetensors")
LONGEST = 255  # bytes in the name of a file or folder


class HubFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file: path with slashes, size in bytes, and its sha256 or (small files on the hub) its git blob id."""

    path: str
    size: int
    sha256: str = ""
    oid: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one source at one commit, and weight files beside them that are not read; a folder has no commit."""

    source: str
    commit: str = ""
    files: tuple[HubFile, ...] = ()
    unread: tuple[str, ...] = ()


def select_files(
    paths: Iterable[str], *, source: str, kind: str, weights: bool, remote_code: bool, index: Iterable[str] = ()
) -> tuple[str, ...]:
    """The paths that conversion reads; OrchestrateError when what it needs is not among them.

    `index` are the files that the index of the weights names, where there is one.
    """
    names = sorted(paths)
    check_names(names, source)
    if kind != "model":
        return _adapter_files(names, source, () if kind == "adapter" else (*TOKENIZER, *INITIAL))
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise weight_files.is_adapter(source)
        _check_below(names, "config.json", source)
        hint = "is it a Transformers model? GGUF or Diffusers repositories cannot be converted"
        raise OrchestrateError(f"{source} has no config.json{'' if names else '; it is empty'}", hint)
    chosen = {name for name in names if matches(name, SMALL) and not matches(name, NOT_READ)}
    chosen |= {name for name in names if name.endswith(".py") and remote_code}
    return tuple(sorted(chosen.union(weight_files.choose(names, tuple(index), source, remote_code) if weights else ())))


def _adapter_files(names: list[str], source: str, more: tuple[str, ...]) -> tuple[str, ...]:
    if "adapter_config.json" not in names:
        _check_below(names, "adapter_config.json", source)
        raise OrchestrateError(f"{source} has no adapter_config.json", "is it a PEFT adapter? a model belongs under `models`")
    if "adapter_model.safetensors" not in names:
        only = ", only adapter_model.bin (a pickle, which may run code when it is loaded)" if "adapter_model.bin" in names else ""
        raise OrchestrateError(f"{source} has no adapter_model.safetensors{only}", "save the adapter again with safetensors")
    return tuple(name for name in names if name in ADAPTER or matches(name, more))


def _check_below(names: list[str], config: str, source: str) -> None:
    """Raise OrchestrateError for a repository whose models or adapters lie in folders; of its own folders only one can be named.

    PEFT saves an adapter that has a name of its own in a folder of that name.
    """
    folders = [name.partition("/")[0] for name in names if name.count("/") == 1 and name.endswith(f"/{config}")]
    whole = [folder for folder in folders if any(matches(name, (f"{glob.escape(folder)}/*.safetensors",)) for name in names)]
    if whole and "model_index.json" not in names:  # of Diffusers, whose parts are no models for themselves
        one = quoted(whole[0])
        command = f"hf download {source} --include '{one}/*' --local-dir OUT"
        hint = f"fetch the one that is meant, and name its folder, ./OUT/{one}: {command}"
        listed = ", ".join(map(quoted, whole[:5]))
        raise OrchestrateError(f"{source} has no {config}, but folders with one: {listed}", hint)


def check_names(names: Iterable[str], source: str) -> None:
    """Raise OrchestrateError for names that lead out of their folder, that no disk has, or that are one file on some disks."""
    seen: dict[str, str] = {}
    for name in names:
        parts, read = re.split(r"[/\\]", name), matches(name, (*SMALL, *WEIGHTS))
        if ".." in parts or "" in parts or re.search(r"[:\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]", name):
            message = f"{source} lists a file with the name {shortened(name)}, which could leave its folder"
            raise OrchestrateError(message, "do not use this repository")
        if read and any(RESERVED.fullmatch(part) or part.endswith((".", " ")) for part in parts):
            raise OrchestrateError(f"{source} lists the file {name}, a name that Windows cannot keep", "rename or remove it")
        if read and max(len(part.encode()) for part in parts) > LONGEST:
            message = f"{source} lists a file with a name that is too long for any disk, {shortened(name)}"
            raise OrchestrateError(message, "rename or remove it")
        other = seen.setdefault(name.casefold(), name)
        if other != name and (read or matches(other, (*SMALL, *WEIGHTS))):
            raise OrchestrateError(f"{source} has {other} and {name}, which are one file on many disks", "remove one of the two")


def shortened(name: str) -> str:
    """A file's name as a message may hold it, in quotes."""
    return repr(name if len(name) <= 100 else f"{name[:50]}...{name[-20:]}")


def list_folder(path: Path, *, kind: str, weights: bool, remote_code: bool, sha256: Callable[[Path], str]) -> Snapshot:
    """The files of a folder that conversion reads, pinned by content."""
    if not path.is_dir():
        raise OrchestrateError(f"{path} is not a folder", "check `source`; a hub id is written org/name, with no ./ before it")
    names = [name for name in names_in(path) if (path / name).is_file()]
    index = _index(path, names, kind=kind, weights=weights, remote_code=remote_code)
    chosen = select_files(names, source=str(path), kind=kind, weights=weights, remote_code=remote_code, index=index)
    files = tuple(HubFile(path=name, size=(path / name).stat().st_size, sha256=sha256(path / name)) for name in chosen)
    return Snapshot(source=str(path), files=files, unread=weight_files.unread(names, chosen))


def check_pointers(path: Path, *, kind: str, weights: bool, remote_code: bool) -> None:
    """Raise IntegrityError where files that conversion reads of a folder are pointers to content that is not here."""
    names = names_in(path)
    stand_ins = [name for name in names if pointers.kind(path / name)[0] and name != "README.md"]
    if not stand_ins:
        return
    needed = {name for name in names if matches(name, ADAPTER if kind != "model" else (*SMALL, "*.safetensors"))}
    how: dict[str, Any] = {"kind": kind, "weights": weights, "remote_code": remote_code}
    if weight_files.index_name(names, remote_code) not in stand_ins:
        with contextlib.suppress(OrchestrateError):
            needed = set(select_files(names, source=str(path), index=_index(path, names, **how), **how))
    complaint, way = pointers.complaint(path, (name for name in stand_ins if name in needed))
    if complaint:
        raise IntegrityError(complaint, way)


def _index(path: Path, names: list[str], *, kind: str, weights: bool, remote_code: bool) -> tuple[str, ...]:
    """The weight files that the index of a folder names, () where it has none; IntegrityError for a damaged one."""
    index = weight_files.index_name(names, remote_code) if weights and kind == "model" else ""
    return weight_files.indexed(path / index) if index else ()


def names_in(path: Path) -> list[str]:
    """The files of a folder that may be of a model, with links into nothing; what else lies there is no matter of ours."""
    files = (file for file in (*path.glob("*"), *path.glob("*/*")) if file.is_file() or (file.is_symlink() and not file.exists()))
    names = (file.relative_to(path).as_posix() for file in files)
    return [
        name for name in names if matches(name, (*SMALL, *WEIGHTS, *PICKLES, *INITIAL, "*.py", "*/*.py", "*/adapter_config.json"))
    ]


def check_index(path: Path, names: Iterable[str]) -> None:
    """Raise OrchestrateError when the index of a sharded model is damaged, or names files that are not there."""
    have = set(names)
    for index in have.intersection(weight_files.INDEXES):
        weight_files.check_indexed(weight_files.indexed(path / index), have, path)
