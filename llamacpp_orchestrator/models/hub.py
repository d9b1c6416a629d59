"""Models and adapters on the hub: the files of a revision, and their download into the cache, hashed on arrival."""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.models import hub_cache
from llamacpp_orchestrator.models import hub_session
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.models.hub_cache import Sha256
from llamacpp_orchestrator.models.hub_cache import cache_folder as cache_folder
from llamacpp_orchestrator.models.hub_cache import cached as cached
from llamacpp_orchestrator.models.hub_cache import digest_of as digest_of
from llamacpp_orchestrator.models.hub_cache import missing as missing
from llamacpp_orchestrator.models.hub_cache import place as place
from llamacpp_orchestrator.models.hub_cache import sound as sound
from llamacpp_orchestrator.models.hub_session import HUB
from llamacpp_orchestrator.models.hub_session import Place
from llamacpp_orchestrator.models.hub_session import asking
from llamacpp_orchestrator.models.selection import HubFile as HubFile
from llamacpp_orchestrator.models.selection import Snapshot as Snapshot
from llamacpp_orchestrator.models.selection import check_index
from llamacpp_orchestrator.models.selection import check_names
from llamacpp_orchestrator.models.selection import select_files
from llamacpp_orchestrator.models.weight_files import INDEXES
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.background import load
from llamacpp_orchestrator.util.cancel import STOP
from llamacpp_orchestrator.util.cancel import wait
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.pointers import LFS
from llamacpp_orchestrator.util.units import size

Tell = Callable[[str], None]
AT_ONCE = 4
LARGEST_BYTES = 50_000_000_000  # that the hub gives out by plain HTTP
ENDING_SECONDS = 1.0


def list_hub(
    repo_id: str, revision: str, settings: Settings, tell: Tell, *, kind: str, weights: bool, remote_code: bool
) -> Snapshot:
    """The files of a repository on the hub that conversion reads, at the commit that a revision means now."""

    def ask(endpoint: str) -> tuple[Place, str, dict[str, Any]]:
        place = Place(endpoint=endpoint, repo_id=repo_id, revision=revision, trusted=settings.trusts(endpoint, HUB))
        return place, *asking(lambda: listing(place), place)

    place, commit, by_path = first_answer(settings.huggingface, ask, tell)
    index: tuple[str, ...] = ()
    if weights and kind == "model" and (index_file := weight_files.index_name(by_path, remote_code)):
        # Small, and fetched in any case: it says which of the files are the weights.
        alone = Snapshot(source=repo_id, commit=commit, files=(_hub_file(by_path[index_file], place),))
        index = weight_files.indexed(fetch(alone, settings, tell) / index_file)
    how: dict[str, Any] = {"kind": kind, "weights": weights, "remote_code": remote_code, "index": index}
    chosen = select_files(by_path, source=repo_id, **how)
    files = tuple(_hub_file(by_path[name], place) for name in chosen)
    check_sizes(files, repo_id, settings)
    return Snapshot(source=repo_id, commit=commit, files=files, unread=weight_files.unread(by_path, chosen))


def barred(repo_id: str, revision: str, settings: Settings, tell: Tell) -> str:
    """What keeps others from a repository, "gated" or "private"; "" for nothing."""

    def ask(endpoint: str) -> str:
        from huggingface_hub import HfApi

        place = Place(endpoint=endpoint, repo_id=repo_id, revision=revision, trusted=settings.trusts(endpoint, HUB))
        about = asking(lambda: info(HfApi(endpoint=place.endpoint, token=place.token), place), place)
        return "private" if about.private else "gated" if about.gated else ""

    return first_answer(settings.huggingface, ask, tell)


def listing(place: Place) -> tuple[str, dict[str, Any]]:
    """The commit that a revision is at, and the files there by path, as the library has them; raises what that raises."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=place.endpoint, token=place.token)
    commit = _commit(api, place)
    hub_session.check_commit(place, commit)
    entries = list(api.list_repo_tree(place.repo_id, revision=commit, recursive=True))
    return commit, {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _commit(api: Any, place: Place) -> str:
    return str(info(api, place).sha)


def info(api: Any, place: Place) -> Any:
    """What the hub says of a repository at a revision, as the library has it; raises what that raises."""
    return api.model_info(place.repo_id, revision=place.revision, timeout=hub_session.LIMIT_SECONDS)


def _hub_file(entry: Any, place: Place) -> HubFile:
    sha256, oid, count = (entry.lfs.sha256, "", entry.lfs.size) if entry.lfs else ("", entry.blob_id, entry.size)
    # Names of files are made of the digests.
    if not re.fullmatch("[0-9a-f]{64}" if entry.lfs else "[0-9a-f]{40}", str(sha256 or oid)) or not isinstance(count, int):
        raise hub_session.strange(place, f"about {quoted(entry.path)}")
    return HubFile(path=entry.path, size=count, sha256=sha256, oid=oid)


def moved(snapshot: Snapshot, revision: str, settings: Settings) -> str:
    """A note that a branch or tag is at another commit by now than the snapshot's; "" also where the hub does not answer."""
    load("huggingface_hub.hf_api")
    from huggingface_hub import HfApi

    endpoint, now = settings.huggingface[0], ""
    place = Place(endpoint=endpoint, repo_id=snapshot.source, revision=revision, trusted=settings.trusts(endpoint, HUB))
    if revision != snapshot.commit:
        with contextlib.suppress(OrchestrateError):  # who may not know is told so where it matters
            now = asking(lambda: _commit(HfApi(endpoint=endpoint, token=place.token), place), place, tries=1)
    return said_moved(snapshot, revision, now) if re.fullmatch(r"[0-9a-f]{40}", now) else ""


def said_moved(snapshot: Snapshot, revision: str, now: str) -> str:
    """A note that a revision is at another commit than the snapshot's; "" where it is not."""
    return (
        f"{snapshot.source}@{revision} has moved since it was locked: {snapshot.commit} → {now}" if now != snapshot.commit else ""
    )


class TransferProgress(msgspec.Struct):
    """One download: bytes of each file, the last sign of life (monotonic seconds) of those on their way, failures."""

    done: dict[str, int]
    heard: dict[str, float] = {}
    failures: list[BaseException] = []

    def count(self, path: str, amount: int) -> None:
        """Add bytes to a file, 0 for a sign of life; ends the download of this file when it is of no use any more."""
        self.done[path] += amount
        self.heard[path] = time.monotonic()
        if self.failures or STOP.is_set():
            raise Stopped(signal.SIGINT)


def check_sizes(files: Iterable[HubFile], source: str, settings: Settings) -> None:
    """Raise NetworkError for a file that is too large for plain HTTP, where no endpoint may be asked by the hub's newer store.

    The limit is the hub's own (`MAX_HTTP_DOWNLOAD_SIZE` of huggingface_hub); a mirror gets no token, and without one no Xet.
    """
    switched_off = os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
    if not switched_off and any(settings.trusts(endpoint, HUB) for endpoint in settings.huggingface):
        return
    for file in files:
        if file.size > LARGEST_BYTES:
            way = "unset HF_HUB_DISABLE_XET" if switched_off else "ask the hub itself (unset HF_ENDPOINT)"
            message = (
                f"{source}: {file.path} has {size(file.size)}; over {size(LARGEST_BYTES)} comes by the hub's Xet store alone"
            )
            raise NetworkError(message, f"{way}, or get the model in another way and name its folder: `source: ./FOLDER`")


def fetch(snapshot: Snapshot, settings: Settings, tell: Tell, sha256: Sha256 = file_sha256) -> Path:
    """Bring all files of a snapshot into the hub's cache, see that each is what was listed, and answer their folder.

    `sha256` may know files that are there already. Raises IntegrityError for a file that is wrong after a second download.
    """
    names = [file.path for file in snapshot.files]
    check_names(names, snapshot.source)
    total, transfer = sum(file.size for file in snapshot.files), TransferProgress(done=dict.fromkeys(names, 0))
    folder, progress = hub_cache.repository(snapshot) / "snapshots" / snapshot.commit, download.counted(tell)

    def count() -> None:
        progress(min(total, sum(transfer.done.values())), total)

    def fetch_one(file: HubFile) -> None:
        if hub_cache.whole(hub_cache.cached(snapshot, file), file):
            if hub_cache.sound(hub_cache.cached(snapshot, file), file, sha256):
                return hub_cache.sweep(snapshot, file)
            tell(f"note: {file.path} of {snapshot.source} was damaged in the cache, and is downloaded again")
        _fetch_file(snapshot, file, settings, transfer, tell)

    # The index comes first: what it misses is told before the weights are downloaded.
    for index in (True, False):
        _fetch_group(fetch_one, [file for file in snapshot.files if (file.path in INDEXES) is index], transfer, count)
        if any(name.endswith((".safetensors", ".bin")) for name in names):
            check_index(folder, names)
    progress(total, total)
    return folder


def _fetch_group(get: Callable[[HubFile], None], group: list[HubFile], state: TransferProgress, show: Callable[[], None]) -> None:
    def work(lane: list[HubFile]) -> None:
        try:
            for file in lane:
                get(file)
                state.done[file.path] = file.size
        except BaseException as error:
            state.failures.append(error)

    # Daemons: a download that hangs must not hold the driver back when a signal ends it.
    lanes = [group[number::AT_ONCE] for number in range(min(AT_ONCE, len(group)))]
    # With the context of this thread: what a lane waits for is told by the same step.
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, lane), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and not state.failures:
            show()
            if time.monotonic() - max(tuple(state.heard.values()), default=math.inf) > hub_session.XET_SECONDS:
                hub_session.leave_xet()
            wait(0.05)
    finally:
        late = time.monotonic() + ENDING_SECONDS
        for thread in threads:  # the others end at their next bytes, and the library takes their parts away
            thread.join(max(0.0, late - time.monotonic()))
    if state.failures:
        raise state.failures[0]


def _fetch_file(snapshot: Snapshot, file: HubFile, settings: Settings, transfer: TransferProgress, tell: Tell) -> None:
    def ask(endpoint: str) -> None:
        trusted = settings.trusts(endpoint, HUB)
        where: dict[str, Any] = {"endpoint": endpoint, "repo_id": snapshot.source, "revision": snapshot.commit}
        place = Place(**where, trusted=trusted, file=file.path)
        _fetch_checked(snapshot, file, place, lambda: _download(snapshot, file, place, transfer))

    first_answer(settings.huggingface, ask, tell)


def _fetch_checked(snapshot: Snapshot, file: HubFile, place: Place, get: Callable[[], None]) -> None:
    path, expected, digest = hub_cache.cached(snapshot, file), file.sha256 or file.oid, ""

    def anew() -> None:
        hub_cache.forget(snapshot, file)
        get()

    for _ in range(2):
        asking(anew, place)
        digest = hub_cache.digest_of(path, file)
        if digest == expected:
            return hub_cache.sweep(snapshot, file)
    with path.open("rb") as opened:
        begins = opened.read(200)
    hub_cache.forget(snapshot, file)
    raise IntegrityError(
        f"{file.path} of {place.repo_id} is {_sent(begins)}: expected {expected}, got {digest} from {place.shown}",
        "the download was altered on its way; try again later, or without the mirror (HF_ENDPOINT)",
    )


def _sent(begins: bytes) -> str:
    if begins.startswith(LFS):
        return "sent as a Git LFS pointer, not weights"
    if begins.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "sent as a web page, of a login or a proxy that stands between"
    return "not what the hub lists"


def _download(snapshot: Snapshot, file: HubFile, place: Place, transfer: TransferProgress) -> None:
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub import hf_hub_download
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils.tqdm import tqdm

    where: dict[str, Any] = {"revision": snapshot.commit, "endpoint": place.endpoint}
    url = hf_hub_url(snapshot.source, file.path, **where)
    metadata = get_hf_file_metadata(url, token=place.token, timeout=hub_session.LIMIT_SECONDS, endpoint=place.endpoint)
    # The library makes file names of both, as they come, slashes included.
    hub_session.check_commit(place, metadata.commit_hash)
    if not re.fullmatch(r"[\w-][\w.-]*", metadata.etag or ""):
        raise hub_session.strange(place, f"about {file.path}")
    if metadata.xet_file_data:
        hub_session.check_xet(metadata.xet_file_data.refresh_route)
    life = {
        "update": lambda _, amount=1: transfer.count(file.path, int(amount)),
        "update_transfer": lambda *_: transfer.count(file.path, 0),
    }
    where |= {"token": place.token, "cache_dir": hub_cache.cache_folder(), "etag_timeout": hub_session.LIMIT_SECONDS}
    transfer.count(file.path, 0)
    try:
        hf_hub_download(snapshot.source, file.path, tqdm_class=type("Bar", (tqdm,), life), **where)
    finally:
        transfer.heard.pop(file.path, None)


def probe(snapshot: Snapshot, file: HubFile, settings: Settings) -> str:
    """The host that sends the data of a file, by its first byte; NetworkError when none comes."""
    load("huggingface_hub.hf_api")
    from huggingface_hub import get_token

    endpoint = settings.huggingface[0]
    url = f"{endpoint}/{snapshot.source}/resolve/{snapshot.commit}/{quote(file.path)}"
    return download.probe(url, token=get_token() if settings.trusts(endpoint, HUB) else None)
