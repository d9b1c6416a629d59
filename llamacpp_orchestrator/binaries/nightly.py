"""Which build a release of llama.cpp stands for: releases (vX.Y.Z) have no programs, but name the build that has them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.binaries import release
from llamacpp_orchestrator.binaries.selection import Asset
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.tag import LATEST
from llamacpp_orchestrator.util.tag import Tag

Tell = Callable[[str], None]
FILE = "nightly-tag.txt"  # the one asset of a release (.github/workflows/release.yml)
BUILD = "name a build (bNNNN) as `llama_cpp.tag`"


def build_of(tag: str, repo: str, route: str, settings: Settings, tell: Tell) -> str:
    """The build (bNNNN) that a release, or `latest`, stands for on one route; errors as in `named`.

    By packages (`pypi`) `latest` is the newest build up to the named one that there is a package of; where the release
    cannot be asked, the newest of all. Both are told.
    """
    if route != "pypi" or tag != LATEST:
        return named(tag, repo, settings, tell)
    try:
        build = named(tag, repo, settings, tell)
    except NetworkError as error:
        newest = pypi.newest(settings)
        tell(f"note: {error.message.splitlines()[0]}; the newest package is taken: {newest}")
        return newest
    newest = pypi.newest(settings, Tag(build).build)
    if newest != build:
        tell(f"note: {LATEST} is {build}, of which there is no package; the newest before it is taken: {newest}")
    return newest


def named(tag: str, repo: str, settings: Settings, tell: Tell) -> str:
    """The build that a release names, by the API or, where that is out of reach, by the address of its asset.

    OrchestrateError when the release is not there or names no build, NetworkError when nobody answers.
    """
    try:
        return first_answer(settings.github_api, lambda api: _by_api(api, tag, repo, settings), tell)
    except NetworkError as error:
        if error.status == 404:
            raise _nameless(tag, repo) from error
        refusal = error
    try:
        return _read(Asset(name=FILE, url=release.address(repo, tag, FILE)), tag, settings)
    except NetworkError as error:
        if error.status == 404:
            raise _nameless(tag, repo) from error
        message = f"which build {tag} of {anonymous(repo)} is cannot be asked: {refusal.message.splitlines()[0]}"
        raise NetworkError(message, f"{BUILD}, or set mirrors (ORCHESTRATE_GITHUB_API_URL, ORCHESTRATE_GITHUB_URL)") from error


def _by_api(api: str, tag: str, repo: str, settings: Settings) -> str:
    name, assets = release.listed(api, tag, repo, settings)
    if Tag(name).build is not None:  # the newest release of a copy that has no others than builds
        return name
    asset = next((asset for asset in assets if asset.name == FILE), None)
    if asset is None:
        raise _nameless(name, repo)
    return _read(asset, name, settings)


def _read(asset: Asset, tag: str, settings: Settings) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / FILE

        def ask(url: str) -> str:
            download.fetch(url, file, sha256=asset.sha256, size=asset.size)
            text = file.read_text(encoding="utf-8-sig", errors="replace").strip()
            if Tag(text).build is None:
                hint = f"{BUILD}; or does a login page of this network answer?"
                raise OrchestrateError(f"{FILE} of release {tag} names no build: {quoted(text, 40)}", hint)
            return text

        return first_answer(install.addresses(asset, settings), ask, lambda text: None)


def _nameless(tag: str, repo: str) -> OrchestrateError:
    return OrchestrateError(
        f"{anonymous(repo)} has no release {tag} that names a build in its {FILE}", f"{BUILD}: {anonymous(repo)}/releases"
    )
