"""Models and adapters: which of their files conversion reads, on the hub or in a folder, and the view that a converter is shown."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llamacpp_orchestrator import download
from llamacpp_orchestrator.download import Progress
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.settings import Settings

TRIES = 3
AT_ONCE = 4
SMALL = (
    "*.json", "*.txt", "*.model", "*.model.v*", "*.tiktoken", "*.jinja", "README.md", "additional_chat_templates/*.jinja", "?_*/config.json", "*/chat_template.*",
)  # fmt: skip
NOT_READ = ("*.index.fp32.json", "pytorch_model.bin.index.json", "training_args*", "trainer_state.json", "optimizer*", "requirements.txt", "LICENSE.txt", "*.gguf")
WEIGHTS = ("*.safetensors", "?_*/*.safetensors")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "README.md")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
LFS = b"version https://git-lfs.github.com/spec/"


class HubFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file: path with slashes, size in bytes, and its sha256 or (small files on the hub) its git blob id."""

    path: str
    size: int
    sha256: str = ""
    oid: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one source at one commit; a folder has no commit."""

    source: str
    commit: str = ""
    files: tuple[HubFile, ...] = ()


def select_files(paths: Iterable[str], *, source: str, kind: str, weights: bool, remote_code: bool) -> tuple[str, ...]:
    """The paths that conversion reads; OrchestrateError when what it needs is not among them."""
    names = sorted(paths)
    _check_names(names, source)
    if kind == "adapter":
        return _adapter_files(names, source)
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise OrchestrateError(f"{source} is a LoRA adapter, not a model", "list it under `loras` of its base model")
        raise OrchestrateError(f"{source} has no config.json{'' if names else '; it is empty'}", "is it a Transformers model? GGUF or Diffusers repositories cannot be converted")
    chosen = [name for name in names if _matches(name, SMALL) and not _matches(name, NOT_READ)]
    chosen += [name for name in names if name.endswith(".py") and remote_code]
    if weights:
        chosen += _weights(names, source, remote_code)
    return tuple(sorted(chosen))


def _adapter_files(names: list[str], source: str) -> tuple[str, ...]:
    if "adapter_config.json" not in names:
        raise OrchestrateError(f"{source} has no adapter_config.json", "is it a PEFT LoRA adapter? a whole model belongs under `models`")
    if "adapter_model.safetensors" not in names:
        pickle = " (a pickle, which may run code when it is loaded)" if "adapter_model.bin" in names else ""
        raise OrchestrateError(f"{source} has no adapter_model.safetensors{', only adapter_model.bin' + pickle if pickle else ''}", "save the adapter again with safetensors")
    return tuple(name for name in names if name in ADAPTER)


def _weights(names: list[str], source: str, remote_code: bool) -> list[str]:
    found = [name for name in names if _matches(name, WEIGHTS)]
    root = [name for name in found if "/" not in name and name != "adapter_model.safetensors"]
    # Mistral publishes the same weights twice; upstream's default reads those in Transformers' layout.
    if any(name.startswith("model") for name in root):
        found = [name for name in found if not name.startswith("consolidated")]
    if root:
        return [name for name in found if name != "adapter_model.safetensors"]
    pickles = [name for name in names if "/" not in name and _matches(name, PICKLES)]
    if pickles and remote_code:
        return pickles
    if pickles:
        raise OrchestrateError(
            f"{source} has its weights only as pickles ({pickles[0]}), which may run code when they are loaded",
            "use a repository with safetensors; if you trust this one, set `trust_remote_code: true`",
        )
    raise OrchestrateError(f"{source} has no weights (*.safetensors)", "with only adapters to convert, set `outtype: none`")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _check_names(names: list[str], source: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        parts = re.split(r"[/\\]", name)
        if ".." in parts or "" in parts or re.search(r"[:\x00-\x1f\\]", name):
            raise OrchestrateError(f"{source} lists a file with the name {name!r}, which could leave its folder", "do not use this repository")
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name and _matches(name, (*SMALL, *WEIGHTS)):
            raise OrchestrateError(f"{source} has {other} and {name}, which are one file on many disks", "remove one of the two")


def list_folder(path: Path, *, kind: str, weights: bool, remote_code: bool, sha256: Callable[[Path], str]) -> Snapshot:
    """The files of a folder that conversion reads, pinned by content."""
    names = [file.relative_to(path).as_posix() for file in (*path.glob("*"), *path.glob("*/*")) if file.is_file()]
    chosen = select_files(names, source=str(path), kind=kind, weights=weights, remote_code=remote_code)
    check_index(path, chosen)
    files = tuple(HubFile(path=name, size=(path / name).stat().st_size, sha256=sha256(path / name)) for name in chosen)
    return Snapshot(source=str(path), files=files)


def check_index(path: Path, names: Iterable[str]) -> None:
    """Raise OrchestrateError when the index of a sharded model names files that are not there."""
    have = set(names)
    index = path / "model.safetensors.index.json"
    if index.is_file() and any(name.endswith(".safetensors") for name in have):
        shards = set(map(str, dict(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})).values()))
        if missing := sorted(shards - have):
            raise OrchestrateError(f"{path} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:3])}", "get all shards that the index names")


def list_hub(repo_id: str, revision: str, settings: Settings, *, kind: str, weights: bool, remote_code: bool) -> Snapshot:
    """The files of a repository on the hub that conversion reads, at the commit that a revision means now."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=settings.huggingface, token=_token(settings))

    def ask() -> tuple[str, list[Any]]:
        commit = str(api.model_info(repo_id, revision=revision, timeout=30).sha)
        return commit, list(api.list_repo_tree(repo_id, revision=commit, recursive=True))

    commit, entries = _asking(ask, repo_id, revision, settings)
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise NetworkError(f"{settings.huggingface} did not say which commit {repo_id}@{revision} is", "check HF_ENDPOINT")
    by_path = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    chosen = select_files(by_path, source=repo_id, kind=kind, weights=weights, remote_code=remote_code)
    files = tuple(_hub_file(by_path[name]) for name in chosen)
    return Snapshot(source=repo_id, commit=commit, files=files)


def _hub_file(entry: Any) -> HubFile:
    if entry.lfs:
        return HubFile(path=entry.path, size=entry.lfs.size, sha256=entry.lfs.sha256)
    return HubFile(path=entry.path, size=entry.size, oid=entry.blob_id)


def _token(settings: Settings) -> bool | None:
    # A token was given to the hub itself; a mirror has no right to it. None lets the library find it, False forbids it.
    return None if urlsplit(settings.huggingface).hostname in ("huggingface.co", "hub-ci.huggingface.co") else False


def _asking(ask: Callable[[], Any], repo_id: str, revision: str, settings: Settings) -> Any:
    """Ask the hub, again where that can heal; every refusal in its own words."""
    from huggingface_hub.errors import HfHubHTTPError

    for turn in range(TRIES):
        try:
            return ask()
        except (OrchestrateError, KeyboardInterrupt):
            raise
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 0) if isinstance(error, HfHubHTTPError) else 0
            heals = status in (0, 408, 429) or status >= 500
            if not heals or type(error).__name__ in ("JSONDecodeError", "AssertionError") or turn == TRIES - 1:
                raise explain(error, status, repo_id, revision, settings) from error
            if download.STOP.wait(0.5 * 4**turn):
                raise Stopped(2) from error
    raise AssertionError("unreachable")


def explain(error: Exception, status: int, repo_id: str, revision: str, settings: Settings) -> OrchestrateError:
    """What the hub's refusal means, and what to do: gated, private, missing and misspelt are told apart."""
    kind, page = type(error).__name__, f"{settings.huggingface}/{repo_id}"
    if kind == "GatedRepoError":
        return NetworkError(f"{repo_id} is gated", f"accept its licence at {page}, then `hf auth login` or set HF_TOKEN", status)
    if kind == "RevisionNotFoundError":
        return NetworkError(f"{repo_id} has no revision {revision}", f"see {page}/tree/main for its branches and commits", status)
    if kind in ("RemoteEntryNotFoundError", "EntryNotFoundError"):
        return NetworkError(f"a file of {repo_id} is no longer at {revision}", "lock the job again: orchestrate lock JOB --upgrade", status)
    if kind == "RepositoryNotFoundError" and status in (401, 404):
        return NetworkError(f"{repo_id} is not on the hub, or it is private", "check the spelling (org/name); for a private one: `hf auth login` or HF_TOKEN", status)
    if status in (401, 403):
        return NetworkError(f"{repo_id}: the hub refuses ({status})", "the token is wrong or may not read this: `hf auth login` again", status)
    if status == 429:
        return NetworkError(f"{repo_id}: the hub limits requests (429)", "wait some minutes; with HF_TOKEN set the limit is higher", status)
    if kind in ("JSONDecodeError", "AssertionError"):
        return NetworkError(f"{settings.huggingface} did not answer as a hub does", "is there a login page between? check HF_ENDPOINT and the network", status)
    said = str(error).strip().splitlines()
    return NetworkError(f"{repo_id}: {settings.huggingface} cannot be reached: {said[0][:200] if said else kind}", "check the network, or set a mirror (HF_ENDPOINT)", status)


def cache_folder() -> Path:
    """Where the hub's library keeps its models; shared with everything else on this machine."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _cached(snapshot: Snapshot, file: HubFile) -> Path:
    return cache_folder() / f"models--{snapshot.source.replace('/', '--')}" / "snapshots" / snapshot.commit / file.path


def missing_bytes(snapshot: Snapshot) -> int:
    """How many bytes of a snapshot are not in the hub's cache."""
    return sum(file.size for file in snapshot.files if not _whole(_cached(snapshot, file), file))


def _whole(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def fetch(snapshot: Snapshot, settings: Settings, progress: Progress) -> Path:
    """Bring all files of a snapshot into the hub's cache, hash each, and answer their folder.

    Raises IntegrityError when a file is not what the hub's listing says even after a second download.
    """
    total = sum(file.size for file in snapshot.files)
    done: dict[str, int] = {}

    def one(file: HubFile) -> None:
        _fetch_file(snapshot, file, settings)
        done[file.path] = file.size

    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(one, file) for file in snapshot.files]
        while not all(future.done() for future in waiting):
            progress(min(total, sum(done.values()) + _arriving(snapshot)), total)
            if download.STOP.wait(0.1) or any(future.done() and future.exception() for future in waiting):
                pool.shutdown(wait=False, cancel_futures=True)
                break
        for future in waiting:
            if not future.cancelled():
                future.result()
    return _cached(snapshot, HubFile(path="x", size=0)).parent


def _arriving(snapshot: Snapshot) -> int:
    blobs = cache_folder() / f"models--{snapshot.source.replace('/', '--')}" / "blobs"
    count = 0
    for path in blobs.glob("*.incomplete"):
        try:
            count += path.stat().st_size
        except OSError:
            continue
    return count


def _fetch_file(snapshot: Snapshot, file: HubFile, settings: Settings) -> None:
    from huggingface_hub import hf_hub_download

    path = _cached(snapshot, file)
    for turn in range(2):
        if not _whole(path, file):
            again = turn > 0 or path.exists()

            def ask(again: bool = again) -> str:
                return hf_hub_download(
                    snapshot.source, file.path, revision=snapshot.commit, endpoint=settings.huggingface, token=_token(settings),
                    cache_dir=cache_folder(), force_download=again, etag_timeout=30,
                )  # fmt: skip

            _asking(ask, snapshot.source, snapshot.commit, settings)
        found = digest_of(path, file)
        if found == (file.sha256 or file.oid):
            return
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise IntegrityError(
        f"{file.path} of {snapshot.source} is not what the hub lists: expected {file.sha256 or file.oid}, got {found}",
        "the download was altered on its way; try again later, or without the mirror (HF_ENDPOINT)",
    )


def digest_of(path: Path, file: HubFile) -> str:
    """The digest of a file in the kind that its record has: sha256, or the sha1 that git gives a blob."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def make_view(files: Iterable[HubFile], origin: Path, dest: Path) -> None:
    """Make a folder that holds links to some files and nothing else; a copy only where a disk has no links at all."""
    for file in files:
        target, link = (origin / file.path).resolve(), dest / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        for way in (os.symlink, os.link, shutil.copyfile):
            try:
                way(target, link)
                break
            except OSError:
                if way is shutil.copyfile:
                    raise


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; IntegrityError for one that is cut, damaged, or only a Git LFS pointer."""
    size = path.stat().st_size
    again = "download or copy it again"
    with path.open("rb") as file:
        start = file.read(8)
        if start + file.read(len(LFS) - 8) == LFS:
            raise IntegrityError(f"{path.name} is a Git LFS pointer, not weights", "run `git lfs pull` in its repository, or name the hub id instead of the folder")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise IntegrityError(f"{path.name} ({size} bytes) is not a safetensors file", again)
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"{path.name} has a damaged header", again) from error
    if size != whole:
        raise IntegrityError(f"{path.name} is {'cut' if size < whole else 'too long'}: its header says {whole} bytes, it has {size}", again)
    return dict(header)


def check_safetensors(path: Path) -> None:
    """Raise IntegrityError for a file that is not whole, OrchestrateError for one without tensors."""
    if not [key for key in safetensors_header(path) if key != "__metadata__"]:
        raise OrchestrateError(f"{path.name} holds no tensors", "was the model or adapter saved whole?")


def check_remote_code(config: Mapping[str, Any], source: str) -> None:
    """Raise OrchestrateError for a model whose config asks to run its own Python code, which upstream would do unasked."""
    if config.get("auto_map"):
        raise OrchestrateError(
            f"{source} wants to run Python code of its own (auto_map in its config)",
            "nothing of it was run; read its *.py files, and if you trust them set `trust_remote_code: true` for this model",
        )
