"""Asking the hub: again where that heals, the user's token to trusted endpoints alone, and a refusal in words that help."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.meanings import hint_for
from llamacpp_orchestrator.models.hub_cache import cache_folder
from llamacpp_orchestrator.util import cancel
from llamacpp_orchestrator.util.background import load
from llamacpp_orchestrator.util.cancel import put_off
from llamacpp_orchestrator.util.cancel import too_long
from llamacpp_orchestrator.util.cancel import until

T = TypeVar("T")
HUB = "https://huggingface.co"
TRIES = 3
WAIT_SECONDS = 0.5
LIMIT_SECONDS = 30.0
XET_SECONDS = 30.0  # without a byte
# What the library raises when it was answered, but not by a hub; and when it was asked for something that cannot be.
STRANGE = ("JSONDecodeError", "UnicodeDecodeError", "AssertionError", "AttributeError", "TypeError", "KeyError", "IndexError")
FINAL = (*STRANGE, "HFValidationError", "OfflineModeIsEnabled")

MIRROR = "unset HF_ENDPOINT, or name the mirror's host in ORCHESTRATE_TOKEN_HOSTS"
BETWEEN = "a login page or a proxy may stand between: open it in a browser, check HF_ENDPOINT, then run the same command again"
UNLOCKED = "`orchestrate lock JOB --upgrade models`"

_trusted: set[str] = set()  # of the endpoints asked so far
_guarding, _guarded = threading.Lock(), threading.Event()


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One repository at one revision on one endpoint, which may be `trusted` with the user's token, or one `file` of it."""

    endpoint: str
    repo_id: str
    revision: str
    trusted: bool
    file: str = ""

    @property
    def shown(self) -> str:
        """The endpoint for messages: without a login."""
        return anonymous(self.endpoint)

    @property
    def token(self) -> bool | None:
        """What the library is told: None lets it find the user's token, False forbids it."""
        return None if self.trusted else False


Explain = Callable[[BaseException, int, Place], OrchestrateError]


def asking(ask: Callable[[], T], place: Place, tries: int = TRIES, explain: Explain | None = None) -> T:
    """Ask the hub, again where that can heal; every refusal in its own words, those of reading unless others are given."""
    load("huggingface_hub.hf_api")
    import huggingface_hub
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.set_verbosity(40)  # errors; ours say more than its warnings
    left = cancel.longest
    for turn in range(tries):
        # A mirror passes on word of the hub's newer store, which may not be reachable from here; a second try avoids it too.
        if turn > 0 or not place.trusted or not _can_leave_xet():
            huggingface_hub.constants.HF_HUB_DISABLE_XET = True
        try:
            guard(place.endpoint if place.trusted else "")
            return ask()
        except OrchestrateError:
            raise
        except Exception as error:
            cause = _cause(error)
            response = getattr(cause, "response", None)
            status, headers = int(getattr(response, "status_code", 0) or 0), getattr(response, "headers", {})
            local = isinstance(cause, OSError) and cause.errno and not isinstance(cause, ConnectionError)
            final = local or type(cause).__name__ in FINAL or not (status in (0, 408, 429) or status >= 500)
            if final or turn == tries - 1 or too_long(headers, left):
                raise (explain or refusal)(cause, status, place) from error
            left = put_off(headers, WAIT_SECONDS * 4**turn, left, place.shown)
    raise AssertionError("unreachable")


def _cause(error: BaseException) -> BaseException:
    # The library says "not in the cache" of whatever kept it from asking, and RuntimeError of whatever kept it from sending.
    outer = type(error).__name__ in ("LocalEntryNotFoundError", "RuntimeError")
    return _cause(error.__cause__) if outer and error.__cause__ else error


def refusal(error: BaseException, status: int, place: Place) -> OrchestrateError:
    """What the hub's refusal to be read means, and what to do: gated, private, missing and misspelt are told apart."""
    from huggingface_hub import get_token

    repo_id, revision, kind, page = place.repo_id, place.revision, type(error).__name__, f"{place.shown}/{place.repo_id}"
    login = "`hf auth login` or set HF_TOKEN" if place.trusted else f"no token is sent to a mirror: {MIRROR}"
    said = next(iter(str(error).strip().splitlines()), kind)[:200]
    if kind == "GatedRepoError" and place.trusted and get_token():
        return NetworkError(f"{repo_id} is gated, and your token's account may not read it", f"ask for access at {page}", status)
    spelling = "check the spelling" if "/" in repo_id else f"write org/name: nearly all models have one, `{repo_id}` does not"
    words = {
        "GatedRepoError": (f"{repo_id} is gated", f"accept its licence at {page}{', then' if place.trusted else ';'} {login}"),
        "RevisionNotFoundError": _no_revision(place, page),
        "RemoteEntryNotFoundError": (
            f"{place.file or 'a file'} of {repo_id} is no longer at {revision}",
            f"{UNLOCKED} takes what is there now",
        ),
        "RepositoryNotFoundError": (f"{repo_id} is not on the hub, or it is private", f"{spelling}; if it is private: {login}"),
        "HFValidationError": (f"`{repo_id}` cannot be the name of a repository", "write org/name, or ./folder for a folder"),
        "OfflineModeIsEnabled": (f"{repo_id} is not complete in the cache, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
    }
    refused = (
        f"{repo_id}: the hub refuses ({status})",
        f"your token is wrong, too old, or may not read this: {login}; a public model needs none: unset it"
        if place.trusted
        else login,
    )
    later = until(getattr(getattr(error, "response", None), "headers", {}))
    limited = (f"{repo_id}: the hub limits requests (429){later}", "wait some minutes; with HF_TOKEN set the limit is higher")
    absent = f"{place.shown} has no {place.file and f'{place.file} of '}{repo_id}@{revision} (404)"
    unknown = absent, "is HF_ENDPOINT a mirror of the hub? it may have neither this repository nor this commit: unset it"
    by_status = {401: refused, 403: refused, 404: unknown, 429: limited}
    if kind in words or status in by_status:
        return NetworkError(*(words.get(kind) or by_status[status]), status)
    if kind in (*STRANGE, "FileMetadataError"):
        return strange(place, f"about {repo_id}: {'no JSON' if 'Decode' in kind else f'{kind}, {said}'}")
    if found := re.match(r"Consistency check failed: file should be of size (\d+) but has size (\d+)", said):
        return NetworkError(f"{place.shown} sent {found[2]} bytes of a file of {repo_id} that has {found[1]}", BETWEEN)
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        free = f"it takes space and the right to write in {cache_folder()}; or set HF_HOME to another folder"
        return OrchestrateError(f"{repo_id} cannot be kept in the cache: {said}", free)
    what = f"it answered {status}{later}" if status else said
    check = "wait some minutes" if status >= 500 else "check the network"
    hint = hint_for(said, f"{check}, then run the same command again; or set a mirror (HF_ENDPOINT)")
    return NetworkError(f"{repo_id} cannot be read from {place.shown}: {what}", hint, status)


def _no_revision(place: Place, page: str) -> tuple[str, str]:
    if re.fullmatch("[0-9a-f]{40}", place.revision):
        gone = f"{place.repo_id} has no commit {place.revision}: its history was rewritten, or it is misspelt"
        return gone, f"{UNLOCKED} takes what its branch holds now; {page}/commits/main has those that there are"
    return f"{place.repo_id} has no revision {place.revision}", f"see {page}/tree/main for its branches and commits"


def check_commit(place: Place, commit: object) -> None:
    """Raise NetworkError for an answer about another commit than the one that was asked for, or about none."""
    if not re.fullmatch("[0-9a-f]{40}", str(commit)):
        raise strange(
            place, f"about {place.file}" if place.file else f"when asked which commit {place.repo_id}@{place.revision} is"
        )
    if re.fullmatch("[0-9a-f]{40}", place.revision) and commit != place.revision:
        message = f"{place.shown} answers with commit {commit} of {place.repo_id}, when it is asked for {place.revision}"
        hint = f"a mirror may lack that commit: unset HF_ENDPOINT, or take the one that it has (`revision`, or {UNLOCKED})"
        raise NetworkError(message, hint)


def strange(place: Place, asked: str = "") -> NetworkError:
    """What is said of an answer that no hub would give."""
    return NetworkError(f"{place.shown} did not answer as a hub does{asked and ' '}{asked}", BETWEEN)


def check_xet(route: str) -> None:
    """Leave the hub's newer store alone where keys for it come from a place that is not trusted: it would get the token."""
    from huggingface_hub import constants

    if _origin(route) not in _trusted:
        constants.HF_HUB_DISABLE_XET = True


def leave_xet() -> None:
    """End all downloads from the hub's newer store, to be made by plain HTTP; by themselves they try for many minutes."""
    from huggingface_hub import constants

    if not constants.HF_HUB_DISABLE_XET:
        from huggingface_hub.utils._xet import abort_xet_session

        constants.HF_HUB_DISABLE_XET = True
        abort_xet_session()  # type: ignore[no-untyped-call]


def _can_leave_xet() -> bool:
    from huggingface_hub.utils import _xet

    return hasattr(_xet, "abort_xet_session")


def guard(endpoint: str) -> None:
    """Let the library send a token to an endpoint, "" for none, and to no other place than such; and leave all waiting to us."""
    import huggingface_hub

    _trusted.update([_origin(endpoint)] if endpoint else [])
    # Once, before any thread has a session: to set how they are made closes the one that there is.
    with _guarding:
        if _guarded.is_set():
            return
        session = huggingface_hub.get_session()
        hooks = session.event_hooks
        # Not this session alone: the library makes a new one wherever it cannot connect.
        ours = {"request": [*hooks["request"], _strip], "response": [*hooks["response"], _refuse]}
        # It asks without a time limit: a server that says nothing would hold us for ever.
        how: dict[str, Any] = {"event_hooks": ours, "follow_redirects": True, "timeout": LIMIT_SECONDS}
        huggingface_hub.set_client_factory(lambda: type(session)(**how))
        _guarded.set()


def _refuse(response: Any) -> None:
    # The library would sleep for as long as a server asks, be it a day, and neither say so nor end when we must.
    if response.status_code in (408, 429) or response.status_code >= 500:
        response.raise_for_status()


def _strip(request: Any) -> None:
    # The library follows the address of a listing's next page with all that it sent to the first.
    if _origin(str(request.url)) not in _trusted:
        request.headers.pop("Authorization", None)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()
