"""Sending files to a repository of the hub in one commit, which is looked at before it counts as made."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import hub_operations
from llamacpp_orchestrator.models import hub_session
from llamacpp_orchestrator.models.hub_operations import LocalFile
from llamacpp_orchestrator.models.hub_operations import content_file
from llamacpp_orchestrator.models.hub_session import Place
from llamacpp_orchestrator.models.hub_session import asking
from llamacpp_orchestrator.util.background import load
from llamacpp_orchestrator.util.cancel import wait
from llamacpp_orchestrator.util.hashing import file_digest
from llamacpp_orchestrator.util.units import size

Tell = Callable[[str], None]
CARD = "README.md"
ROUNDS = 4
LOOKS = (0.0, 1.0, 2.0, 4.0)  # seconds between looks for a commit whose answer was lost
LARGEST_BLOB = 50_000_000  # bytes; what is larger the hub keeps as a large file in any case
SPLIT = "split it: `args: [--split-max-size, 40G]`"
AGAIN = "run the same command again: what has arrived is not sent twice"
CARDLESS = "Invalid metadata in README.md"  # of the library, before it sends anything
# Of the hub's own refusals to keep more.
FULL = ("storage", "quota", "too large", "payment")


class Unanswered(Exception):
    """A commit of which nobody knows whether it was made; `reason` is what is said if it was not."""

    def __init__(self, reason: OrchestrateError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """What one repository is to hold: files, and a README made of the one that is there and of all paths there, or none.

    `create` makes the repository, or its branch, where there is none. To a `private` one nothing is sent that others may see.
    """

    place: Place
    files: tuple[LocalFile, ...]
    title: str
    card: Callable[[str, Collection[str]], str] | None = None
    create: bool = False
    private: bool = False


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """A branch as it is on the hub: its commit, and of each file the size and digest, of LFS or of git."""

    commit: str
    files: Mapping[str, tuple[int, str]]


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an upload: the commit in which all of it lies now, and the paths that were sent."""

    commit: str
    paths: tuple[str, ...]


def send(upload: Upload, tell: Tell) -> Sent:
    """Bring a branch to hold all files of an upload, by one commit; nothing is sent where it does already.

    Every round looks at the branch first, and a commit names the one that it follows. So an answer that was lost, a commit of
    another in between and a run that was killed come to the same: what is there counts, and it is committed once.
    Raises what a refusal means, and IntegrityError for a commit that holds something else.
    """
    tell("looking at the repository")
    remote = look(upload.place) or _create(upload)
    if upload.private:
        _check_private(upload.place)
    paths: tuple[str, ...] = ()
    lost: OrchestrateError | None = None
    for _ in range(ROUNDS):
        files = (*upload.files, *_card(upload, remote))
        left = differing(files, remote)
        if not left:
            return Sent(commit=remote.commit, paths=paths)
        paths = tuple(file.path for file in left)
        try:
            commit = _commit(upload, left, remote, tell)
        except Unanswered as error:
            lost = error.reason
            remote = _look_again(upload.place, remote)
            continue
        tell("comparing what was committed")
        remote = look(msgspec.structs.replace(upload.place, revision=commit)) or remote
        if wrong := differing(files, remote):
            hint = "does its .gitignore leave them out? Else run the same command again: what is there as it should be stays"
            names = ", ".join(file.path for file in wrong)
            raise IntegrityError(f"{upload.place.repo_id} does not hold what was sent, in commit {commit[:12]}: {names}", hint)
        return Sent(commit=commit, paths=paths)
    raise lost or AssertionError("a round ends by itself or is lost")


def look(place: Place) -> Remote | None:
    """What a branch holds now; None where there is no such repository, or no such branch."""
    load("huggingface_hub.hf_api")
    from huggingface_hub.errors import GatedRepoError
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError

    def ask() -> tuple[str, dict[str, Any]] | None:
        try:
            return hub.listing(place)
        except GatedRepoError:
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None

    answer = asking(ask, place)
    if answer is None:
        return None
    files = {path: (entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id) for path, entry in answer[1].items()}
    return Remote(commit=answer[0], files=files)


def _look_again(place: Place, before: Remote) -> Remote:
    """What a branch holds after a commit without an answer, which may come late."""
    for seconds in LOOKS:
        wait(seconds)
        remote = look(place)
        if remote and remote.commit != before.commit:
            return remote
    return before


def differing(files: Iterable[LocalFile], remote: Remote) -> list[LocalFile]:
    """Those files that a branch does not hold as they are here."""
    return [file for file in files if remote.files.get(file.path) not in ((file.size, file.sha256), (file.size, _blob(file)))]


def _blob(file: LocalFile) -> str:
    """The id that git gives a file's content, by which the hub knows what it does not keep as a large file."""
    digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    if file.file:
        return file_digest(file.file, digest) if file.size <= LARGEST_BLOB else ""
    digest.update(file.content)
    return digest.hexdigest()


def _create(upload: Upload) -> Remote:
    """Make a repository, and its branch, where that is asked for; what it holds then."""
    place = upload.place
    if not upload.create:
        branch = "" if place.revision == "main" else f" with a branch {place.revision}"
        message = f"{place.shown} has no repository {place.repo_id}{branch}, or your token may not see it"
        raise OrchestrateError(message, "check its spelling; to have it made, run the same command with --create")

    def ask() -> None:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=place.endpoint, token=place.token)
        api.create_repo(place.repo_id, private=upload.private, exist_ok=True)
        if upload.private:
            _check_private(place)
        if place.revision != "main":
            api.create_branch(place.repo_id, branch=place.revision, exist_ok=True)

    asking(ask, place, explain=refusal)
    remote = look(place)
    if remote is None:
        raise hub_session.strange(place, f"about {place.repo_id}, which it has just made")
    return remote


def _check_private(place: Place) -> None:
    """Raise OrchestrateError for a repository that everybody may see, such as one that was there before."""

    def ask() -> bool:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=place.endpoint, token=place.token)
        return bool(api.model_info(place.repo_id, timeout=hub_session.LIMIT_SECONDS).private)

    if not asking(ask, place):
        way = f"make it private ({place.shown}/{place.repo_id}/settings), or take `private: true` out of the job"
        raise OrchestrateError(f"everybody may see {place.repo_id}, and the job says `private: true`", way)


def _card(upload: Upload, remote: Remote) -> tuple[LocalFile, ...]:
    """The README that belongs to what is there."""
    if upload.card is None:
        return ()
    return (content_file(CARD, upload.card(_readme(upload.place, remote), remote.files.keys()).encode()),)


def _readme(place: Place, remote: Remote) -> str:
    if CARD not in remote.files:
        return ""

    def ask() -> bytes:
        # Not by way of a cache, whose file may be damaged: what comes of this goes back there.
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(place.repo_id, CARD, revision=remote.commit, endpoint=place.endpoint)
        response = _get(place, url)
        hf_raise_for_status(response)
        return bytes(response.content)

    content = asking(ask, msgspec.structs.replace(place, file=CARD))
    if differing([content_file(CARD, content)], remote):
        raise IntegrityError(f"{place.shown} sent another {CARD} of {place.repo_id} than it lists", "run the same command again")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        message = f"{CARD} of {place.repo_id} is not UTF-8, and to add to it would spoil what it says"
        raise OrchestrateError(message, "save it as UTF-8 on the hub; or set `card: none`, which leaves it alone") from error


def _commit(upload: Upload, files: list[LocalFile], remote: Remote, tell: Tell) -> str:
    """Send files and commit them on top of what was looked at; the new commit. Raises Unanswered where nobody knows."""
    from huggingface_hub import HfApi

    place = upload.place
    api = HfApi(endpoint=place.endpoint, token=place.token)
    _choose_store(place, files)
    progress = hub_operations.progress_of(files, tell)
    operations = hub_operations.operations(files, progress, tell)
    how: dict[str, Any] = {"repo_id": place.repo_id, "revision": place.revision}

    def upload_large() -> None:
        with hub_operations.reporting(progress):
            api.preupload_lfs_files(additions=operations, free_memory=False, **how)

    asking(upload_large, place, explain=refusal)
    tell("committing")

    def commit() -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a README without front matter: the hub's page says so itself
            info = api.create_commit(operations=operations, commit_message=upload.title, parent_commit=remote.commit, **how)
        return str(info.oid)

    return asking(commit, place, 1, explain=_of_commit)


def _of_commit(error: BaseException, status: int, place: Place) -> OrchestrateError:
    """What the refusal of a commit means; raises Unanswered for what may be none."""
    reason = refusal(error, status, place)
    if status in (409, 412):  # another commit is on its way, or has been made since
        reason = NetworkError(f"{place.repo_id} changes faster than it can be published: others commit to it", AGAIN, status)
    before = isinstance(error, OSError) and not isinstance(error, ConnectionError) or CARDLESS in str(error)
    # Any other error without a status may come of the answer: the library cannot read the address of a commit that it was told.
    if status in (408, 409, 412, 429) or status >= 500 or not (status or before):
        raise Unanswered(reason) from error
    return reason


def refusal(error: BaseException, status: int, place: Place) -> OrchestrateError:
    """What the hub's refusal to take something means, and what to do."""
    words = str(getattr(error, "server_message", "") or "").strip() or next(iter(str(error).strip().splitlines()), "")
    words = anonymous(words)[:300]
    if status in (402, 403, 413) and any(word in words.lower() for word in FULL):
        hint = f"see {place.shown}/settings/billing; private repositories have less room than public ones"
        return NetworkError(f"{place.repo_id}: the hub keeps no more of it: {words}", hint, status)
    if status in (401, 403):
        hint = f"it takes a token with the right to write there: {place.shown}/settings/tokens, then `hf auth login` or HF_TOKEN"
        return NetworkError(f"{place.repo_id}: your token may not write there ({status}): {words}", hint, status)
    if status == 404:
        hint = "is HF_ENDPOINT a mirror that only gives out files? then unset it"
        return NetworkError(f"{place.shown} takes no files for {place.repo_id} (404)", hint, status)
    strange = type(error).__name__ in hub_session.STRANGE  # a page in place of JSON is a ValueError, too
    if isinstance(error, ValueError) and not (status or strange or "LFS" in words):
        message = f"the hub does not take the model card of {place.repo_id}: {' '.join(str(error).split())[:300]}"
        return OrchestrateError(message, "is the front matter of its README right, where it has one of its own?")
    if status in (400, 409, 422) or isinstance(error, ValueError) and not strange:
        return NetworkError(f"{place.shown} does not take what was sent to {place.repo_id}: {words}", AGAIN, status)
    reason = hub_session.refusal(error, status, place)
    if strange or status == 429 or not isinstance(reason, NetworkError):
        return reason
    return NetworkError(reason.message.replace("cannot be read from", "cannot be sent to"), AGAIN, status)


def _choose_store(place: Place, files: Iterable[LocalFile]) -> None:
    """Leave the hub's newer store alone where an endpoint has none: the library would end, and not fall back.

    OrchestrateError for a file that is too large for what is left.
    """
    from huggingface_hub import constants

    if not (constants.HF_HUB_DISABLE_XET or _has_xet(place)):
        constants.HF_HUB_DISABLE_XET = True
    large = [file for file in files if file.size > hub.LARGEST_BYTES]
    if large and constants.HF_HUB_DISABLE_XET:
        message = f"{large[0].path} has {size(large[0].size)}; without the hub's newer store (Xet) one file has at most 50 GB"
        raise OrchestrateError(f"{message}, and that of {place.shown} cannot be used just now", f"{AGAIN}; or {SPLIT}")


def _get(place: Place, url: str) -> Any:
    """What the hub answers to a question that the library has no words for."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return get_session().get(url, headers=build_hf_headers(token=place.token))


def _has_xet(place: Place) -> bool:
    url = f"{place.endpoint}/api/models/{place.repo_id}/xet-write-token/{quote(place.revision, safe='')}"

    def ask() -> bool:
        response = _get(place, url)
        return response.is_success and "X-Xet-Access-Token" in response.headers

    return asking(ask, place, explain=refusal)
