"""The files of a release: what upstream published for a tag, by GitHub's API or by the names that archives have."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from llamacpp_orchestrator.binaries.selection import NEWEST
from llamacpp_orchestrator.binaries.selection import Asset as Asset
from llamacpp_orchestrator.binaries.selection import Choice as Choice
from llamacpp_orchestrator.binaries.selection import build_number
from llamacpp_orchestrator.binaries.selection import choose as choose
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.tag import LATEST
from llamacpp_orchestrator.util.tag import Tag

GITHUB, GITHUB_API = "https://github.com", "https://api.github.com"
Tell = Callable[[str], None]
NONSENSE = 200  # a good status, and yet no answer
PAGES = (30, 100)  # an answer of exactly so many assets may be one page of more
MIRROR_HINT = "set mirrors (ORCHESTRATE_GITHUB_API_URL, ORCHESTRATE_GITHUB_URL); conversions alone need no programs"
TOKEN_HINT = "set GITHUB_TOKEN (any account, no rights needed) for 5,000 requests an hour instead of 60"

# Names that releases used, to ask for files one by one when the API does not answer; one too many costs a question.
CUDA_NAMES = (
    (1, 2532, "win-cublas-cu{}-x64", "win-cu{}-x64", "11.7.1 12.1.0 12.2.0"),
    (2533, 5309, "win-cuda-cu{}-x64", "win-cu{}-x64", "11.7.1 12.2.0 11.7 12.4"),
    (5310, 5317, "win--cu{}-x64", "win-cu{}-x64", "11.7 12.4"),
    (5318, 5449, "win-cuda{}-x64", "win-cuda{}-x64", "11.7 12.4"),
    (5450, NEWEST, "win-cuda-{}-x64", "win-cuda-{}-x64", "11.7 12.4 13.1 13.3 13.4"),
    (10345, NEWEST, "win-cuda-{}-arm64", "win-cuda-{}-arm64", "13.4"),
    (10951, NEWEST, "ubuntu-cuda-{}-x64", "ubuntu-cuda-{}-x64", "12.8 13.3 13.4"),
    (10951, NEWEST, "ubuntu-cuda-{}-arm64", "ubuntu-cuda-{}-arm64", "13.3 13.4"),
)
NAMES = (
    (1, 5309, "win-avx2-x64 win-arm64-x64 win-llvm-arm64"),
    (2037, NEWEST, "win-vulkan-x64 win-sycl-x64 ubuntu-x64 ubuntu-arm64 ubuntu-vulkan-x64 macos-arm64 macos-x64"),
    (5276, NEWEST, "win-cpu-x64 win-cpu-arm64 win-hip-radeon-x64"),
    (8127, NEWEST, "ubuntu-vulkan-arm64 ubuntu-sycl-fp32-x64 ubuntu-rocm-7.2-x64 ubuntu-rocm-7.14-x64 ubuntu-rocm-10.0-x64"),
    (10356, NEWEST, "win-vulkan-arm64 win-rocm-7.14-x64 win-rocm-10.0-x64"),
)

NO_ARCHIVE = "no-such-archive.zip"


def fetch_assets(tag: str, repo: str, settings: Settings, tell: Tell) -> tuple[Asset, ...]:
    """All files of a release, by the API or, where that is out of reach, by asking for known names; NetworkError without any."""
    owner_name = _owner_name(repo)
    try:
        return first_answer(settings.github_api, lambda api: listed(api, tag, repo, settings)[1], tell)
    except NetworkError as error:
        if error.status == 404:
            hint = "give a tag bNNNN with a release, or wait if it was made just now; `backend: none` needs none"
            raise NetworkError(f"{owner_name} has no release {tag}, or it is still being filled", hint, 404) from error
        if error.status not in (NONSENSE, 401) and (assets := _probe_names(tag, owner_name, settings)):
            tell(f"note: {error.message.splitlines()[0]}; asked for the archives by their names, which tells no digest")
            return assets
        if not error.status:
            raise NetworkError(error.message, MIRROR_HINT) from error
        raise


def listed(api: str, tag: str, repo: str, settings: Settings) -> tuple[str, tuple[Asset, ...]]:
    """The tag and all files of a release (`latest`: the newest that is none in advance) by one API; NetworkError."""
    base = f"{api}/repos/{_owner_name(repo)}/releases"
    known = os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN") or None
    token = known if settings.trusts(api, GITHUB_API) else None
    try:
        where = tag if tag == LATEST else f"tags/{quote(tag, safe='')}"
        release = download.get_json(f"{base}/{where}", token=token, settings_hint=TOKEN_HINT)
        name = str(release["tag_name"]) if tag == LATEST else tag
        found = list(release["assets"])
        if len(found) in PAGES:
            found = _all_pages(f"{base}/{release['id']}/assets", token)
        there = (each for each in found if each.get("state", "uploaded") == "uploaded")
        return name, tuple(_asset(each, repo, name, settings) for each in there)
    except (KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
        hint = "see what ORCHESTRATE_GITHUB_API_URL names"
        raise NetworkError(f"{base} gave an answer that is not a release", hint, NONSENSE) from error


def candidates(tag: str) -> tuple[str, ...]:
    """The names that the archives of a tag may have, by upstream's conventions over time."""
    build, names = build_number(tag), []
    for first, last, body, runtime, versions in CUDA_NAMES:
        ending, tagged = (".zip", "") if body.startswith("win") else (".tar.gz", f"{tag}-")
        for version in versions.split() if first <= build <= last else ():
            names.append(f"llama-{tag}-bin-{body.format(version)}{ending}")
            names.append(f"cudart-llama-{tagged}bin-{runtime.format(version)}{ending}")
    for first, last, bodies in NAMES:
        for body in bodies.split() if first <= build <= last else ():
            names.append(f"llama-{tag}-bin-{body}" + (".zip" if body.startswith("win") or build < 7224 else ".tar.gz"))
    return tuple(names) if Tag(tag).build or Tag(tag).is_dated else ()


def _owner_name(repo: str) -> str:
    found = re.fullmatch(r"(?:(?:https?|ssh|git)://[^/]+/|git@[^:]+:)(?:.*/)?([\w.-]+/[\w.-]+?)(?:\.git)?/?", repo)
    if not found:
        message = f"llama_cpp.repo {anonymous(repo)} names no GitHub repository, so it has no release archives"
        raise JobError(message, "set `backend: none`")
    return found[1]


def _all_pages(url: str, token: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for page in range(1, 11):
        more = download.get_json(f"{url}?per_page=100&page={page}", token=token, settings_hint=TOKEN_HINT)
        found += more
        if len(more) < 100:
            break
    return found


def _asset(each: dict[str, Any], repo: str, tag: str, settings: Settings) -> Asset:
    digest = str(each.get("digest") or "")
    sha256 = digest.removeprefix("sha256:").lower() if digest.startswith("sha256:") else None
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise TypeError(f"no digest: {digest[:80]}")
    # Where a mirror stands for github.com, its API may name itself: the lock holds the address that everybody has.
    mirrored = "github.com" in repo and settings.github != (GITHUB,)
    url = _download_url(_owner_name(repo), tag, each["name"]) if mirrored else each["browser_download_url"]
    return msgspec.convert({"name": each["name"], "url": url, "size": each["size"], "sha256": sha256}, Asset)


def address(repo: str, tag: str, name: str) -> str:
    """Where everybody finds a file of a release, without the API; JobError for a repository that GitHub does not have."""
    return _download_url(_owner_name(repo), tag, name)


def _download_url(owner_name: str, tag: str, name: str) -> str:
    place = "latest/download" if tag == LATEST else f"download/{quote(tag, safe='')}"
    return f"{GITHUB}/{owner_name}/releases/{place}/{quote(name)}"


def _probe_names(tag: str, owner_name: str, settings: Settings) -> tuple[Asset, ...]:
    """Ask for each candidate by itself, which is no API call; nothing when no server answers that can be believed."""
    names = (NO_ARCHIVE, *candidates(tag))
    asked = [Asset(name=name, url=_download_url(owner_name, tag, name)) for name in names]
    for github in settings.github:
        urls = [github + asset.url.removeprefix(GITHUB) for asset in asked]
        with concurrent.futures.ThreadPoolExecutor(8) as pool, contextlib.suppress(NetworkError):
            try:
                sizes = list(pool.map(download.head, urls))
            finally:
                pool.shutdown(cancel_futures=True)
            found = [(asset, size) for asset, size in zip(asked, sizes, strict=True) if size is not None]
            # The login page of a network is there under every name.
            if found and found[0][0].name != NO_ARCHIVE:
                return tuple(msgspec.structs.replace(asset, size=size) for asset, size in found)
    return ()
