"""Models and adapters on the hub: what a revision holds, and its files in the cache, hashed on arrival."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import TypeVar
from urllib.parse import quote

import msgspec

from llamacpp_orchestrator import download
from llamacpp_orchestrator import tokens
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.modelfiles import INDEX
from llamacpp_orchestrator.modelfiles import LFS
from llamacpp_orchestrator.modelfiles import HubFile as HubFile
from llamacpp_orchestrator.modelfiles import Snapshot as Snapshot
from llamacpp_orchestrator.modelfiles import check_index
from llamacpp_orchestrator.modelfiles import check_names
from llamacpp_orchestrator.modelfiles import check_remote_code as check_remote_code
from llamacpp_orchestrator.modelfiles import check_safetensors as check_safetensors
from llamacpp_orchestrator.modelfiles import list_folder as list_folder
from llamacpp_orchestrator.modelfiles import make_view as make_view
from llamacpp_orchestrator.modelfiles import read_json as read_json
from llamacpp_orchestrator.modelfiles import safetensors_header as safetensors_header
from llamacpp_orchestrator.modelfiles import select_files
from llamacpp_orchestrator.settings import Settings
from llamacpp_orchestrator.store import link

T = TypeVar("T")
Tell = Callable[[str], None]
HUB = "https://huggingface.co"
TRIES = 3
AT_ONCE = 4
WAIT_SECONDS = 0.5
LIMIT_SECONDS = 30.0
# What the library raises when it was answered, but not by a hub, or asked for something that cannot be.
FINAL = ("JSONDecodeError", "AssertionError", "HFValidationError", "OfflineModeIsEnabled")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One repository at one revision on one endpoint, which may be `trusted` with the user's token."""

    endpoint: str
    repo_id: str
    revision: str
    trusted: bool

    @property
    def token(self) -> bool | None:
        """What the library is told: None lets it find the user's token, False forbids it."""
        return None if self.trusted else False


def list_hub(
    repo_id: str, revision: str, settings: Settings, tell: Tell, *, kind: str, weights: bool, remote_code: bool
) -> Snapshot:
    """The files of a repository on the hub that conversion reads, at the commit that a revision means now."""

    def ask(endpoint: str) -> tuple[str, dict[str, Any]]:
        place = Place(endpoint=endpoint, repo_id=repo_id, revision=revision, trusted=settings.trusts(endpoint, HUB))
        return _asking(lambda: _list(place), place)

    commit, by_path = download.first_answer(settings.huggingface, ask, tell)
    chosen = select_files(by_path, source=repo_id, kind=kind, weights=weights, remote_code=remote_code)
    return Snapshot(source=repo_id, commit=commit, files=tuple(_hub_file(by_path[name]) for name in chosen))


def _list(place: Place) -> tuple[str, dict[str, Any]]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=place.endpoint, token=place.token)
    commit = str(api.model_info(place.repo_id, revision=place.revision, timeout=LIMIT_SECONDS).sha)
    entries = list(api.list_repo_tree(place.repo_id, revision=commit, recursive=True))
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        message = f"{place.endpoint} did not say which commit {place.repo_id}@{place.revision} is"
        raise NetworkError(message, "check HF_ENDPOINT")
    return commit, {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _hub_file(entry: Any) -> HubFile:
    if entry.lfs:
        return HubFile(path=entry.path, size=entry.lfs.size, sha256=entry.lfs.sha256)
    return HubFile(path=entry.path, size=entry.size, oid=entry.blob_id)


def _asking(ask: Callable[[], T], place: Place) -> T:
    """Ask the hub, again where that can heal; every refusal in its own words."""
    import huggingface_hub
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.set_verbosity(40)  # errors; ours say more than its warnings
    for turn in range(TRIES):
        # A mirror passes on word of the hub's newer store, which may not be reachable from here; a second try avoids it too.
        huggingface_hub.constants.HF_HUB_DISABLE_XET |= turn > 0 or not place.trusted
        session = huggingface_hub.get_session()
        # The library asks without a time limit: a server that says nothing would hold us for ever.
        session.timeout = LIMIT_SECONDS
        tokens.guard(session, place.endpoint if place.trusted else "")
        try:
            return ask()
        except OrchestrateError:
            raise
        except Exception as error:
            cause = _cause(error)
            response = getattr(cause, "response", None)
            status = int(getattr(response, "status_code", 0) or 0)
            local = isinstance(cause, OSError) and cause.errno and not isinstance(cause, ConnectionError)
            final = local or type(cause).__name__ in FINAL or not (status in (0, 408, 429) or status >= 500)
            if final or turn == TRIES - 1:
                raise explain(cause, status, place) from error
            asked = str(getattr(response, "headers", {}).get("Retry-After", ""))
            if download.STOP.wait(
                min(float(asked), download.LONGEST_WAIT) if re.fullmatch("[0-9]{1,9}", asked) else WAIT_SECONDS * 4**turn
            ):
                raise Stopped(signal.SIGINT) from error
    raise AssertionError("unreachable")


def _cause(error: BaseException) -> BaseException:
    # The library says "not in the cache" of whatever kept it from asking.
    return _cause(error.__cause__) if type(error).__name__ == "LocalEntryNotFoundError" and error.__cause__ else error


def explain(error: BaseException, status: int, place: Place) -> OrchestrateError:
    """What the hub's refusal means, and what to do: gated, private, missing and misspelt are told apart."""
    from huggingface_hub import get_token

    repo_id, revision, kind, page = place.repo_id, place.revision, type(error).__name__, f"{place.endpoint}/{place.repo_id}"
    login = "`hf auth login` or set HF_TOKEN" if place.trusted else "unset HF_ENDPOINT: no token is sent to a mirror"
    said = next(iter(str(error).strip().splitlines()), kind)[:200]
    if kind == "GatedRepoError" and place.trusted and get_token():
        return NetworkError(f"{repo_id} is gated, and your token's account may not read it", f"ask for access at {page}", status)
    unlocked = "orchestrate lock JOB --upgrade"
    spelling = "check the spelling" if "/" in repo_id else f"write org/name: nearly all models have one, `{repo_id}` does not"
    words = {
        "GatedRepoError": (f"{repo_id} is gated", f"accept its licence at {page}, then {login}"),
        "RevisionNotFoundError": (f"{repo_id} has no revision {revision}", f"see {page}/tree/main for its branches and commits"),
        "RemoteEntryNotFoundError": (f"a file of {repo_id} is no longer at {revision}", unlocked),
        "RepositoryNotFoundError": (f"{repo_id} is not on the hub, or it is private", f"{spelling}; if it is private: {login}"),
        "HFValidationError": (f"`{repo_id}` cannot be the name of a repository", "write org/name, or ./folder for a folder"),
        "OfflineModeIsEnabled": (f"{repo_id} is not complete in the cache, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
    }
    page_hint = "is there a login page between? check HF_ENDPOINT and the network"
    strange = (f"{place.endpoint} did not answer as a hub does", page_hint)
    words |= {"JSONDecodeError": strange, "AssertionError": strange}
    refused = (f"{repo_id}: the hub refuses ({status})", f"what you log in with is wrong or may not read this: {login}")
    limited = (f"{repo_id}: the hub limits requests (429)", "wait some minutes; with HF_TOKEN set the limit is higher")
    by_status = {401: refused, 403: refused, 429: limited}
    if kind in words or status in by_status:
        return NetworkError(*(words.get(kind) or by_status[status]), status)
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        free = f"need space and the right to write in {cache_folder()}, or set HF_HOME"
        return OrchestrateError(f"{repo_id} cannot be kept in the cache: {said}", free)
    what = f"it answered {status}" if status else said
    hint = "check the network, or set a mirror (HF_ENDPOINT)"
    return NetworkError(f"{repo_id} cannot be read from {place.endpoint}: {what}", hint, status)


def cache_folder() -> Path:
    """Where the hub's library keeps its models; shared with everything else on this machine."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named or Path(home) / "hub").expanduser()


def _repository(snapshot: Snapshot) -> Path:
    return cache_folder() / f"models--{snapshot.source.replace('/', '--')}"


def cached(snapshot: Snapshot, file: HubFile) -> Path:
    """Where a file of a snapshot lies, or would lie, in the hub's cache."""
    return _repository(snapshot) / "snapshots" / snapshot.commit / file.path


def missing(snapshot: Snapshot) -> tuple[HubFile, ...]:
    """The files of a snapshot that are not in the hub's cache."""
    return tuple(file for file in snapshot.files if not _whole(cached(snapshot, file), file))


def _whole(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def fetch(snapshot: Snapshot, settings: Settings, tell: Tell) -> Path:
    """Bring all files of a snapshot into the hub's cache, hash each, and answer their folder.

    Raises IntegrityError when a file is not what the hub's listing says even after a second download.
    """
    names = [file.path for file in snapshot.files]
    check_names(names, snapshot.source)
    total, done = sum(file.size for file in snapshot.files), dict.fromkeys(names, 0)
    folder, progress = _repository(snapshot) / "snapshots" / snapshot.commit, download.counted(tell)

    def count() -> None:
        progress(min(total, sum(done.values())), total)

    # The index comes first: what it misses is told before the weights are downloaded.
    for index in (True, False):
        group = [file for file in snapshot.files if (file.path == INDEX) is index]
        _fetch_group(lambda file, told: _fetch_file(snapshot, file, settings, told, tell), group, done, count)
        if INDEX in names and any(name.endswith(".safetensors") for name in names):
            check_index(folder, names)
    progress(total, total)
    return folder


def _fetch_group(
    fetch_one: Callable[[HubFile, Callable[[int], None]], None],
    group: list[HubFile],
    done: dict[str, int],
    report: Callable[[], None],
) -> None:
    failures: list[BaseException] = []

    def work(lane: list[HubFile]) -> None:
        try:
            for file in lane:
                fetch_one(file, functools.partial(_count, done, failures, file.path))
                done[file.path] = file.size
        except BaseException as error:
            failures.append(error)

    # Daemons: a download that hangs must not hold the driver back when a signal ends it.
    lanes = [group[number::AT_ONCE] for number in range(min(AT_ONCE, len(group)))]
    threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not failures:
        report()
        if download.STOP.wait(0.05):
            raise Stopped(signal.SIGINT)
    if failures:
        raise failures[0]


def _count(done: dict[str, int], failures: list[BaseException], path: str, count: int) -> None:
    done[path] += count
    if failures or download.STOP.is_set():
        raise Stopped(signal.SIGINT)


def _fetch_file(snapshot: Snapshot, file: HubFile, settings: Settings, count: Callable[[int], None], tell: Tell) -> None:
    def ask(endpoint: str) -> None:
        trusted = settings.trusts(endpoint, HUB)
        place = Place(endpoint=endpoint, repo_id=snapshot.source, revision=snapshot.commit, trusted=trusted)
        _fetch_checked(cached(snapshot, file), file, place, lambda: _download(snapshot, file, place, count))

    download.first_answer(settings.huggingface, ask, tell)


def _fetch_checked(path: Path, file: HubFile, place: Place, get: Callable[[], None]) -> None:
    expected, pointer, found = file.sha256 or file.oid, False, ""
    for _ in range(2):
        if not _whole(path, file):
            # A link into a cut blob: the library takes what is there for whole, so both must go.
            _forget(path)
            _asking(get, place)
        with path.open("rb") as opened:
            pointer = opened.read(len(LFS)) == LFS
        found = digest_of(path, file)
        if found == expected:
            # Whoever was killed while it downloaded this left a part behind that nobody will go on with.
            for part in (path.resolve().parent).glob(f"{expected}.*incomplete"):
                part.unlink(missing_ok=True)
            return
        _forget(path)
    what = "sent as a Git LFS pointer, not weights" if pointer else "not what the hub lists"
    raise IntegrityError(
        f"{file.path} of {place.repo_id} is {what}: expected {expected}, got {found} from {place.endpoint}",
        "the download was altered on its way; try again later, or without the mirror (HF_ENDPOINT)",
    )


def _forget(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _download(snapshot: Snapshot, file: HubFile, place: Place, count: Callable[[int], None]) -> None:
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub import hf_hub_download
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils.tqdm import tqdm

    where: dict[str, Any] = {"revision": snapshot.commit, "endpoint": place.endpoint}
    url = hf_hub_url(snapshot.source, file.path, **where)
    told = get_hf_file_metadata(url, token=place.token, timeout=LIMIT_SECONDS, endpoint=place.endpoint)
    # The library makes file names of both, as they come, slashes included.
    if not re.fullmatch(r"[\w-][\w.-]*", told.etag or "") or told.commit_hash != snapshot.commit:
        raise NetworkError(f"{place.endpoint} did not answer as a hub does about {file.path}", "check HF_ENDPOINT")
    bar = type("Bar", (tqdm,), {"update": lambda _, amount=1: count(int(amount)), "update_transfer": lambda _, amount=1: None})
    where |= {"token": place.token, "cache_dir": cache_folder(), "etag_timeout": LIMIT_SECONDS, "tqdm_class": bar}
    hf_hub_download(snapshot.source, file.path, **where)


def place(snapshot: Snapshot, file: HubFile, origin: Path) -> None:
    """Put a checked file into the hub's cache as the library would: a blob by its digest, and a link in the snapshot."""
    path, blob = cached(snapshot, file), _repository(snapshot) / "blobs" / (file.sha256 or file.oid)
    link(origin, blob)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        link(blob, path)  # no symbolic links on this disk, or not for this user


def probe(snapshot: Snapshot, file: HubFile, settings: Settings) -> str:
    """The host that sends the data of a file, by its first byte; NetworkError when none comes."""
    from huggingface_hub import get_token

    endpoint = settings.huggingface[0]
    url = f"{endpoint}/{snapshot.source}/resolve/{snapshot.commit}/{quote(file.path)}"
    return download.probe(url, token=get_token() if settings.trusts(endpoint, HUB) else None)


def digest_of(path: Path, file: HubFile) -> str:
    """The digest of a file in the kind that its record has: sha256, or the sha1 that git gives a blob."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            if download.STOP.is_set():
                raise Stopped(signal.SIGINT)
            digest.update(chunk)
    return digest.hexdigest()
