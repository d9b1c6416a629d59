"""Package indexes: which of them answers, what they hold, and how uv is told of them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote
from urllib.parse import urlsplit

import msgspec

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.meanings import hint_for
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.mirrors import first_answer

if TYPE_CHECKING:
    from pypi_simple import DistributionPackage

LONGEST = 600
# The user's words on how uv goes about the network, its cache and interpreters; none on what an environment is made of, or how
# it is laid out: links into a cache that may be pruned, other versions, another target.
KEPT = re.compile(
    "UV_(CACHE_DIR|NO_CACHE|CREDENTIALS_DIR|EXCLUDE_NEWER|OFFLINE|INSECURE_HOST|KEYRING_PROVIDER|NATIVE_TLS|SYSTEM_CERTS"
    r"|HTTP_\w+|REQUEST_TIMEOUT|CONCURRENT_\w+|INDEX_\w+_(USERNAME|PASSWORD)|PYTHON_\w+|PYPY_\w+|(NO_)?MANAGED_PYTHON)"
)
REFUSED = re.compile(r"An index(?: URL)? \((\S+)\) [^.]*?(40[13])|status client error \((40[13])[^)]*\) for url \((\S+)\)")


def find_links_paths(locations: Iterable[str]) -> list[Path]:
    """The files in the find-links folders; pages are left to uv."""
    found: list[Path] = []
    for location in locations:
        parts = urlsplit(location)
        folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(location)
        if folder.is_dir():
            found += folder.iterdir()
    return found


def pages(index: Index) -> tuple[str, ...]:
    """The indexes that are servers."""
    return tuple(url for url in (*index.index_urls, *index.extra_index_urls) if url.startswith("http"))


def listed(url: str, project: str) -> list[DistributionPackage]:
    """The files that an index has of a project; none when it cannot be read."""
    try:
        return pypi.files(url, project, attempts=1)
    except NetworkError:  # that is left to uv, which asks the same index again and explains
        return []


def places(torch: str, settings: Settings, tell: Callable[[str], None]) -> tuple[Index, str | None]:
    """Where packages come from: of several indexes the first that answers, and PyTorch's own for a build (cpu, cu128, ...).

    PyTorch's is None for `upstream`, which means the configured indexes, and where it cannot be reached, which is told.
    """
    index, own = settings.index, torch_indexes(torch, settings)
    if settings.offline:
        return index, own[0] if own else None
    if len(index.index_urls) > 1:
        first = _reachable(index.index_urls, "numpy", tell) or index.index_urls[0]
        index = msgspec.structs.replace(index, index_urls=(first,))
    extra = _reachable(own, "torch", tell)
    if own and extra is None:
        way = "set ORCHESTRATE_TORCH_INDEX to a mirror of it"
        tell(f"note: PyTorch's index cannot be reached: {way}; torch comes from the package index, on Linux with CUDA (some GB)")
    return index, extra


def torch_indexes(torch: str, settings: Settings) -> tuple[str, ...]:
    """PyTorch's own index for one build of it, on each of the places that are set; none for `upstream`."""
    return () if torch == "upstream" else tuple(f"{url}/{torch}" for url in settings.torch_index)


def _reachable(urls: tuple[str, ...], project: str, tell: Callable[[str], None]) -> str | None:
    """The first index that has a page for a project within a few seconds."""

    def ask(url: str) -> str:
        if url.startswith("http") and (status := download.status(f"{url}/{project}/")) >= 400:
            raise NetworkError(f"{anonymous(url)} answers {status}")
        return url

    with contextlib.suppress(NetworkError):
        return first_answer(urls, ask, tell) if urls else None
    return None


def uv() -> str:
    """The uv program that was installed with us; OrchestrateError when that installation is damaged."""
    from uv import find_uv_bin

    try:
        return find_uv_bin()
    except FileNotFoundError as error:
        message = "the program uv, which came with orchestrate, is gone from its installation"
        raise OrchestrateError(message, "install it again: python -m pip install --force-reinstall uv") from error


def failed(error: CommandFailed, what: str, hint: str, log: Path | None = None) -> CommandFailed:
    """The failure of a call of uv: what could not be done, in uv's own words or by how it ended, and what to do."""
    cause, remedy = diagnose.machine(error.code, f"{error.message}\n{error.tail}")
    if error.code < 0:
        again = "run the same command again, with more memory free"
        message, hint = f"{what}: {error.message.splitlines()[0]}", remedy or again
    elif cause:
        message = f"{what}: {cause}; uv says:\n{words(error.tail or error.message)}"
        hint = f"{remedy}, or uv's own (UV_CACHE_DIR)"
    elif found := re.search(r"(?s)Hash mismatch for `(.+?)`.*?Expected:\s+(\S+).*?Computed:\s+(\S+)", error.tail):
        message = f"{what}: {found[1]} is not the file that was locked: expected {found[2]}, received {found[3]}"
        hint = "restore the lock if it was edited; else the index has another file by now: name one that has this (PIP_INDEX_URL)"
    elif refusal := REFUSED.search(" ".join(error.tail.split())):
        place, status = refusal[1] or refusal[4], refusal[2] or refusal[3]
        message = f"{what}: {anonymous(place)} refuses uv ({status})"
        means = "it wants a login: write one into its address, or set UV_KEYRING_PROVIDER"
        means = means if status == "401" else "is the address right, and may this machine and the program uv read it?"
        hint = f"{means} or name another index (PIP_INDEX_URL)"
    else:
        hint = hint_for(error.tail, hint)
        message = f"{what}; uv says:\n{words(error.tail or error.message)}"
    return error.retold(message, hint, log)


def words(said: str) -> str:
    """What uv said as one line, without the drawing around it, and without what it did before it failed."""
    lines = said.splitlines()
    begin = max((number for number, line in enumerate(lines) if re.match(r"\s*(?:error:|×)", line)), default=0)
    said = "\n".join(line for line in lines[begin:] if not line.startswith("$ "))
    line = " ".join(re.sub(r"[×╰│├─▶]|^\s*(?:error|hint|cause):", " ", said, flags=re.MULTILINE).split())
    # The platform for which it found no solution is a page of markers.
    line = re.sub(r" when resolving dependencies for split \(markers: .*?\)(?: cause:)? Because ", ": because ", line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def uv_env(index: Index, torch: str | None, offline: bool = False) -> tuple[tuple[str, str], ...]:
    """The whole environment of a call of uv."""
    return clean_env(**index_variables(index, torch, os.environ), **({"UV_OFFLINE": "1"} if offline else {}))


def index_variables(index: Index, torch: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """What uv is told in its environment, never in arguments: an index URL may carry a password."""
    kept = {name: value for name, value in environ.items() if KEPT.fullmatch(name) or name.lower().endswith("_proxy")}
    # The main index comes first, too: of equal versions uv takes the first index's files, and the others, PyTorch's own before
    # all, have wheels for a few platforms only. A lock is for all of them.
    first = index.index_urls[:1]
    more = (*first, *([torch] if torch else []), *index.extra_index_urls)
    set_here = {
        "UV_DEFAULT_INDEX": "".join(first),
        "UV_INDEX": " ".join(more) if len(more) > len(first) else "",
        "UV_FIND_LINKS": ",".join(index.find_links),
    }
    # pip takes the best version from all of its indexes; uv by default stops at the first index that knows the name.
    return {**kept, "UV_INDEX_STRATEGY": "unsafe-best-match", **{name: value for name, value in set_here.items() if value}}
