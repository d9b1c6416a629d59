"""A URL becomes a verified file, resumed where it was cut; a server that answers badly becomes a clear error."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.meanings import hint_for
from llamacpp_orchestrator.util import cancel
from llamacpp_orchestrator.util.archive import CHUNK
from llamacpp_orchestrator.util.background import load
from llamacpp_orchestrator.util.cancel import look_for_stop
from llamacpp_orchestrator.util.cancel import put_off
from llamacpp_orchestrator.util.cancel import too_long
from llamacpp_orchestrator.util.cancel import until
from llamacpp_orchestrator.util.cancel import wait
from llamacpp_orchestrator.util.disk import NO_ROOM
from llamacpp_orchestrator.util.disk import full
from llamacpp_orchestrator.util.disk import need_room
from llamacpp_orchestrator.util.hashing import file_sha256

if TYPE_CHECKING:
    import requests

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0: unknown)

ATTEMPTS = 3  # in a row without a single byte of progress
BACKOFF_SECONDS = 0.5
TIMEOUT, GREETING = (10.0, 30.0), (5.0, 10.0)  # seconds to connect, and for each answer
# A drip of bytes never times out by itself: less than this in so many seconds counts as a cut.
SLOWEST_BYTES = 60_000
SLOWEST_SECONDS = 60.0
MAGIC = {".zip": b"PK", ".whl": b"PK", ".tar.gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b"}
PORTAL_HINT = "a proxy or a login page may stand in between: log in to this network, then run the same command again"
CHANGED_HINT = (
    "run the same command again; if it stays so, something alters downloads on the way, or the file was replaced: "
    "`orchestrate lock JOB --upgrade llama_cpp` accepts the new one"
)
NETWORK_HINT = "see that the address can be reached from here (HTTPS_PROXY, or a mirror), then run the same command again"


def get_json(url: str, *, token: str | None = None, settings_hint: str = "") -> Any:
    """The JSON document at a URL; NetworkError as `get` raises it, or with what came instead."""
    return _json(get(url, token=token, hint=settings_hint), settings_hint or NETWORK_HINT)


def get(
    url: str, *, token: str | None = None, accept: str = "application/json", hint: str = "", attempts: int = ATTEMPTS
) -> requests.Response:
    """The whole answer of a URL; NetworkError with the HTTP status and, where a limit was hit, when it ends."""
    left = cancel.longest
    for attempt in range(1, attempts + 1):
        try:
            with _request("GET", url, token, {"Accept": accept}) as response:
                if attempt < attempts and _passing(response) and not too_long(response.headers, left):
                    left = put_off(response.headers, BACKOFF_SECONDS * attempt, left, _host(response.url))
                    continue
                _refuse(response, hint or NETWORK_HINT)
                response.content  # noqa: B018 - read while a cut can be mended
                return response
        except _cut() as error:
            if attempt == attempts:
                why = _why(error)
                raise NetworkError(f"{anonymous(url)} cannot be read: {why}", hint_for(why, hint or NETWORK_HINT)) from error
            wait(BACKOFF_SECONDS * attempt)
    raise AssertionError("unreachable")


def status(url: str) -> int:
    """The HTTP status with which a URL answers within seconds; NetworkError when nothing does."""
    try:
        with _request("GET", url, None, {}, timeout=GREETING) as response:
            return response.status_code
    except _cut() as error:
        raise _unreachable(url, error) from error


def _json(response: requests.Response, hint: str) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        what = "sent a web page instead of JSON" if _is_page(response.content) else "sent something that is not JSON"
        raise NetworkError(f"{anonymous(response.url)} {what}; a login page of this network?", hint) from error


def _is_page(content: bytes) -> bool:
    return content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head"))


def head(url: str, *, token: str | None = None) -> int | None:
    """The size of what lies at a URL (0: not told), None where nothing does; NetworkError when the server gives no answer."""
    try:
        with _request("HEAD", url, token, {}, allow_redirects=True) as response:
            if _passing(response):
                _refuse(response, NETWORK_HINT)
            # A signed address of a file store may refuse HEAD; that we were sent there shows that the file exists.
            there = response.ok or (bool(response.history) and response.status_code in (403, 405))
            return _number(response.headers.get("Content-Length", "")) if there else None
    except _cut() as error:
        raise _unreachable(url, error) from error


def probe(url: str, *, token: str | None = None) -> str:
    """The host from which the first byte of what lies at a URL comes, redirects followed; NetworkError when none comes."""
    try:
        with _request("GET", url, token, {"Range": "bytes=0-0", "Accept-Encoding": "identity"}) as response:
            _refuse(response, NETWORK_HINT)
            if not response.raw.read(1, decode_content=False):
                raise NetworkError(f"{anonymous(url)} sends nothing", NETWORK_HINT)
            return _host(response.url)
    except _cut() as error:
        raise _unreachable(url, error) from error


def fetch(
    url: str, dest: Path, *, sha256: str | None, size: int = 0, token: str | None = None, progress: Progress | None = None
) -> str:
    """Bring a URL to `dest`, resumed from `dest.part`, checked, then renamed; the sha256. NetworkError, IntegrityError."""
    if sha256 and dest.is_file() and file_sha256(dest) == sha256.lower():
        return sha256.lower()
    part = dest.with_name(dest.name + ".part")
    dest.parent.mkdir(parents=True, exist_ok=True)
    if not sha256 and not size:
        # Nothing could tell that the first half of an older attempt belongs to the second half of today.
        part.unlink(missing_ok=True)
    resumed = _length(part)
    need_room(dest.parent, size - resumed, f"to download {dest.name}")
    try:
        _receive(url, part, size, token, progress or (lambda done, total: None))
        digest = _check(url, part, dest.name, sha256, size)
    except NetworkError:
        if not _length(part):
            part.unlink(missing_ok=True)
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        part.unlink(missing_ok=True)
        raise full(dest.parent, f"while {dest.name} was downloaded") from error
    except IntegrityError:
        part.unlink(missing_ok=True)
        if not resumed:
            raise
        return fetch(url, dest, sha256=sha256, size=size, token=token, progress=progress)
    os.replace(part, dest)
    return digest


def _unreachable(url: str, error: BaseException) -> NetworkError:
    why = _why(error)
    return NetworkError(f"{anonymous(url)} cannot be reached: {why}", hint_for(why, NETWORK_HINT))


def counted(tell: Callable[[str], None]) -> Progress:
    """How far a download is, told in bytes."""
    return lambda done, total: tell(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB")


def _request(method: str, url: str, token: str | None, headers: dict[str, str], **how: Any) -> requests.Response:
    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    load("requests")
    # A callable as `auth` also keeps ~/.netrc out, while proxies and certificates of the environment stay honoured.
    from requests.exceptions import InvalidURL

    session = _session(token)
    how = {"auth": authorize if token else None, "timeout": TIMEOUT, "stream": True} | how
    try:
        return session.request(method, url, headers={"User-Agent": "llamacpp-orchestrator", **headers}, **how)
    except ValueError as error:  # also where a redirect leads to no address at all
        raise error if isinstance(error, OSError) else InvalidURL(f"leads to what is no address: {error}") from error


def _session(token: str | None) -> requests.Session:
    import requests

    class Session(requests.Session):
        """Follows redirects without asking ~/.netrc, which would put its own login in the place of a given token."""

        def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
            before, after = str(response.request.url), str(prepared_request.url)
            if "Authorization" in prepared_request.headers and self.should_strip_auth(before, after):  # type: ignore[no-untyped-call]
                del prepared_request.headers["Authorization"]

    return Session() if token else requests.Session()


def _cut() -> tuple[type[Exception], ...]:
    """What a connection that breaks raises; a function, for only who has asked a server should pay for the library."""
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    return (RequestException, HTTPError, ConnectionError, TimeoutError)


def _passing(response: requests.Response) -> bool:
    """Whether asking again later may help."""
    status = response.status_code
    # With a time to wait, 403 is a limit too: GitHub's second one.
    return status in (408, 429) or status >= 500 or (status == 403 and "Retry-After" in response.headers)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _refuse(response: requests.Response, hint: str) -> None:
    status, url = response.status_code, anonymous(response.url)
    if response.ok:
        return
    spent = response.headers.get("X-RateLimit-Remaining") == "0" or "Retry-After" in response.headers
    if status == 429 or (status == 403 and spent):
        raise NetworkError(f"{url}: the rate limit is used up (HTTP {status}){until(response.headers)}", hint, status)
    meaning = {401: "the token is missing or not accepted", 403: "access is refused", 404: "there is no such thing"}
    later = until(response.headers) if _passing(response) else ""
    raise NetworkError(f"{url}: {meaning.get(status, response.reason or 'refused')} (HTTP {status}){later}", hint, status)


def _number(text: str) -> int:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else 0


def _why(error: BaseException) -> str:
    # The library wraps what happened twice, with all that it had tried; what happened stands in the middle.
    cause = getattr(error.args[0], "reason", None) if error.args else None
    text = re.sub(r"^<?\w+\(host=[^)]*\)( object at \w+>)?: ", "", str(cause or error))
    kind = type(cause or error).__name__
    if not text or kind == "ConnectionError":  # that is our own, and says it all
        return text or kind
    return f"{kind}: {text.splitlines()[0][:200]}"


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive(url: str, part: Path, size: int, token: str | None, progress: Progress) -> None:
    """Fill `part` until it is whole, as far as sizes tell; each attempt that got further starts the count anew."""
    failures, best, seen, left = 0, _length(part), dict[str, str](), cancel.longest
    while not (size and _length(part) == size):
        try:
            return _receive_once(url, part, size, seen, token, progress)
        except _cut() as error:
            failures = 1 if _length(part) > best else failures + 1
            best = max(best, _length(part))
            response = getattr(error, "response", None)
            headers = getattr(response, "headers", {})
            if failures >= ATTEMPTS or too_long(headers, left):
                status = getattr(response, "status_code", 0)
                kept = f"; {_length(part)} bytes are kept" if _length(part) else ""
                why = _why(error)
                message = f"{anonymous(url)} could not be downloaded: {why}{kept}"
                raise NetworkError(message, hint_for(why, NETWORK_HINT), status) from error
        left = put_off(headers, BACKOFF_SECONDS * failures, left, _host(url))


def _receive_once(url: str, part: Path, size: int, seen: dict[str, str], token: str | None, progress: Progress) -> None:
    if urlsplit(url).scheme == "file":
        return _copy(url, part, size, progress)
    start = _length(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} | seen if start else {})
    with _request("GET", url, token, headers) as response:
        # Some servers call a part 200; that it is one, its range tells.
        status, goes_on = response.status_code, response.status_code == 206 or "Content-Range" in response.headers
        if status == 416 or (goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-")):
            part.unlink(missing_ok=True)
            raise ConnectionError("what was kept of an earlier attempt does not fit")
        if _passing(response):
            from requests import HTTPError

            raise HTTPError(f"HTTP {status}{until(response.headers)}", response=response)
        _refuse(response, NETWORK_HINT)
        etag = response.headers.get("ETag", "")
        seen.update({"If-Range": etag} if etag.startswith('"') else {})
        length = response.headers.get("Content-Length", "")
        start, told = start if goes_on else 0, _number(length)
        whole = start + told if length else size
        need_room(part.parent, 0 if size else told, f"to download {part.name.removesuffix('.part')}")
        # Undecoded: the digest is over the file as published, whatever the server calls its encoding.
        read = getattr(response.raw, "read1", response.raw.read)
        _append(lambda amount: read(amount, decode_content=False), part, "ab" if goes_on else "wb", size or whole, progress)
        if _length(part) < whole:
            _refuse_page(url, part)
            raise ConnectionError("the connection ended early")


def _copy(url: str, part: Path, size: int, progress: Progress) -> None:
    path = Path(url2pathname(urlsplit(url).path))
    if not path.is_file():
        raise NetworkError(f"{path}: there is no such file", "see that the address is right and its disk is there", 404)
    need_room(part.parent, 0 if size else _length(path), f"to copy {path.name}")
    with path.open("rb") as file:
        _append(file.read, part, "wb", size or _length(path), progress)


def _append(read: Callable[[int], bytes], part: Path, mode: str, total: int, progress: Progress) -> None:
    since, mark = time.monotonic(), 0
    with part.open(mode) as sink:
        done = sink.seek(0, os.SEEK_END)
        while chunk := read(CHUNK):
            look_for_stop()
            sink.write(chunk)
            done, mark = done + len(chunk), mark + len(chunk)
            progress(done, total)
            if time.monotonic() - since > SLOWEST_SECONDS:
                if mark < SLOWEST_BYTES:
                    raise ConnectionError("the server sends too slowly")
                since, mark = time.monotonic(), 0


def _beginning(part: Path) -> bytes:
    with part.open("rb") as file:
        return file.read(512)


def _refuse_page(url: str, part: Path) -> None:
    name = part.name.removesuffix(".part")
    if _is_page(_beginning(part)) and not name.endswith((".html", ".htm")):
        raise IntegrityError(f"{anonymous(url)} sent a web page instead of {name}", PORTAL_HINT)


def _check(url: str, part: Path, name: str, sha256: str | None, size: int) -> str:
    begins = _beginning(part)
    _refuse_page(url, part)
    magic = next((magic for ending, magic in MAGIC.items() if name.endswith(ending)), b"")
    if not begins or not begins.startswith(magic):
        what = "something else" if begins else "0 bytes"
        raise IntegrityError(f"{anonymous(url)} sent {what} instead of {name}", PORTAL_HINT)
    digest = file_sha256(part)
    if sha256 and digest != sha256.lower():
        raise IntegrityError(f"{anonymous(url)} has sha256 {digest}, expected {sha256.lower()}", CHANGED_HINT)
    if size and _length(part) != size:
        raise IntegrityError(f"{anonymous(url)} has {_length(part)} bytes, expected {size}", CHANGED_HINT)
    return digest
