"""Models and adapters on the hub: what a revision holds, and its files in the cache, hashed on arrival."""

from __future__ import annotations

import functools
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llamacpp_orchestrator import download
from llamacpp_orchestrator import hubcache
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.hubcache import cache_folder as cache_folder
from llamacpp_orchestrator.hubcache import cached as cached
from llamacpp_orchestrator.hubcache import digest_of as digest_of
from llamacpp_orchestrator.hubcache import missing as missing
from llamacpp_orchestrator.hubcache import place as place
from llamacpp_orchestrator.hubsession import HUB
from llamacpp_orchestrator.hubsession import LIMIT_SECONDS
from llamacpp_orchestrator.hubsession import Place
from llamacpp_orchestrator.hubsession import asking
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

Tell = Callable[[str], None]
AT_ONCE = 4


def list_hub(
    repo_id: str, revision: str, settings: Settings, tell: Tell, *, kind: str, weights: bool, remote_code: bool
) -> Snapshot:
    """The files of a repository on the hub that conversion reads, at the commit that a revision means now."""

    def ask(endpoint: str) -> tuple[str, dict[str, Any]]:
        place = Place(endpoint=endpoint, repo_id=repo_id, revision=revision, trusted=settings.trusts(endpoint, HUB))
        return asking(lambda: _list(place), place)

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


def fetch(snapshot: Snapshot, settings: Settings, tell: Tell) -> Path:
    """Bring all files of a snapshot into the hub's cache, hash each, and answer their folder.

    Raises IntegrityError when a file is not what the hub's listing says even after a second download.
    """
    names = [file.path for file in snapshot.files]
    check_names(names, snapshot.source)
    total, done = sum(file.size for file in snapshot.files), dict.fromkeys(names, 0)
    folder, progress = hubcache.repository(snapshot) / "snapshots" / snapshot.commit, download.counted(tell)

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
        _fetch_checked(hubcache.cached(snapshot, file), file, place, lambda: _download(snapshot, file, place, count))

    download.first_answer(settings.huggingface, ask, tell)


def _fetch_checked(path: Path, file: HubFile, place: Place, get: Callable[[], None]) -> None:
    expected, pointer, found = file.sha256 or file.oid, False, ""
    for _ in range(2):
        if not hubcache.whole(path, file):
            # A link into a cut blob: the library takes what is there for whole, so both must go.
            hubcache.forget(path)
            asking(get, place)
        with path.open("rb") as opened:
            pointer = opened.read(len(LFS)) == LFS
        found = hubcache.digest_of(path, file)
        if found == expected:
            # Whoever was killed while it downloaded this left a part behind that nobody will go on with.
            for part in (path.resolve().parent).glob(f"{expected}.*incomplete"):
                part.unlink(missing_ok=True)
            return
        hubcache.forget(path)
    what = "sent as a Git LFS pointer, not weights" if pointer else "not what the hub lists"
    raise IntegrityError(
        f"{file.path} of {place.repo_id} is {what}: expected {expected}, got {found} from {place.endpoint}",
        "the download was altered on its way; try again later, or without the mirror (HF_ENDPOINT)",
    )


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
    where |= {"token": place.token, "cache_dir": hubcache.cache_folder(), "etag_timeout": LIMIT_SECONDS, "tqdm_class": bar}
    hf_hub_download(snapshot.source, file.path, **where)


def probe(snapshot: Snapshot, file: HubFile, settings: Settings) -> str:
    """The host that sends the data of a file, by its first byte; NetworkError when none comes."""
    from huggingface_hub import get_token

    endpoint = settings.huggingface[0]
    url = f"{endpoint}/{snapshot.source}/resolve/{snapshot.commit}/{quote(file.path)}"
    return download.probe(url, token=get_token() if settings.trusts(endpoint, HUB) else None)
