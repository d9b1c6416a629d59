"""The wheels that a locked set of packages comes to on a platform, and how they get here without being installed."""

from __future__ import annotations

import concurrent.futures
import platform as this
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import msgspec
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.tags import compatible_tags
from packaging.tags import cpython_tags
from packaging.utils import InvalidWheelFilename
from packaging.utils import canonicalize_name
from packaging.utils import parse_wheel_filename

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment.pin import Pin
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.host import ARCHITECTURES
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import system
from llamacpp_orchestrator.util import download

AT_ONCE = 4
HERE = "here"  # stands for whatever platform tags fit

# Platform → what its wheels say, and what its Python says of itself in markers.
PLATFORMS = {
    "linux-x64": (r"(many)?linux\w*_x86_64", ("linux", "Linux", "posix", "x86_64")),
    "linux-arm64": (r"(many)?linux\w*_aarch64", ("linux", "Linux", "posix", "aarch64")),
    "windows-x64": (r"win_amd64", ("win32", "Windows", "nt", "AMD64")),
    "windows-arm64": (r"win_arm64", ("win32", "Windows", "nt", "ARM64")),
    "macos-x64": (r"macosx_\w+_(x86_64|universal2|intel)", ("darwin", "Darwin", "posix", "x86_64")),
    "macos-arm64": (r"macosx_\w+_(arm64|universal2)", ("darwin", "Darwin", "posix", "arm64")),
}


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """One pinned package, with the sha256 of every file that may be installed."""

    name: str
    version: str
    hashes: frozenset[str]


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a package: its name, where it is (a URL or a path), and its sha256."""

    name: str
    place: str
    sha256: str


def here() -> str:
    """The platform of this machine; of one that has no name here, that of most machines, which is near enough to count by."""
    arch = ARCHITECTURES.get(this.machine().lower(), "")
    name = f"{system()}-{arch}"
    return name if name in PLATFORMS else "linux-x64"


def brings_cuda(requirements: str, platform: str, python: str) -> bool:
    """Tell whether a hashed set holds NVIDIA's libraries for a platform: some gigabytes."""
    return any(package.name.startswith("nvidia-") for package in packages(requirements, platform, python))


def packages(requirements: str, platform: str, python: str) -> tuple[Package, ...]:
    """The packages of a hashed set (as uv writes it) that a platform and a Python such as "3.11" need."""
    pinned = []
    for text in re.split(r"(?<!\\)\n", requirements):
        line, *options = re.split(r"\\\n|\s+(?=--hash)", text)
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement = Requirement(line.strip())
        if requirement.marker is None or requirement.marker.evaluate(_markers(platform, python)):
            hashes = frozenset(re.findall(r"sha256:([0-9a-f]{64})", " ".join(options)))
            version = str(requirement.specifier).removeprefix("==")
            pinned.append(Package(name=canonicalize_name(requirement.name), version=version, hashes=hashes))
    return tuple(pinned)


def _markers(platform: str, python: str) -> dict[str, str]:
    sys_platform, system, os_name, machine = PLATFORMS[platform][1]
    return {
        "sys_platform": sys_platform,
        "platform_system": system,
        "os_name": os_name,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


def fits(name: str, platform: str, python: str) -> bool:
    """Tell whether a file is a wheel for a platform; of Linux for every glibc, since whoever installs takes the best."""
    try:
        tags = parse_wheel_filename(name)[3]
    except InvalidWheelFilename:
        return False
    major, minor = map(int, python.split("."))
    ours = {*cpython_tags((major, minor), platforms=[HERE]), *compatible_tags((major, minor), f"cp{major}{minor}", [HERE])}
    return any(Tag(tag.interpreter, tag.abi, _there(tag.platform, platform)) in ours for tag in tags)


def _there(tag: str, platform: str) -> str:
    return HERE if re.fullmatch(PLATFORMS[platform][0], tag) else tag


def collect(
    pin: Pin,
    platform: str,
    index: Index,
    torch: str | None,
    dest: Path,
    sha256: Callable[[Path], str],
    tell: Callable[[str], None],
) -> None:
    """Bring every wheel that a locked set needs on a platform into a folder, each checked against the lock's hashes.

    OrchestrateError names the packages of which no index has a fitting wheel.
    """
    needed = packages(pin.requirements, platform, pin.python)
    near = indexes.find_links_paths(index.find_links)

    def look(package: Package) -> tuple[File, ...]:
        files = (*_near(package, near, sha256), *_listed(package, index, torch))
        good = (file for file in files if file.sha256 in package.hashes and fits(file.name, platform, pin.python))
        return tuple({file.name: file for file in good}.values())

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        by_package = dict(zip(needed, pool.map(look, needed), strict=True))
    if lacking := [f"{package.name} {package.version}" for package, files in by_package.items() if not files]:
        message = f"no index has a wheel for {platform} of {', '.join(lacking)}"
        raise OrchestrateError(
            message, "set an index that has it (PIP_INDEX_URL, ORCHESTRATE_TORCH_INDEX), or take another platform"
        )
    chosen = [file for files in by_package.values() for file in files]
    for number, file in enumerate(chosen, 1):
        tell(f"{number}/{len(chosen)} {file.name}")
        place = file.place if re.match(r"\w{2,}:", file.place) else Path(file.place).as_uri()
        download.fetch(place, dest / file.name, sha256=file.sha256)


def _near(package: Package, paths: Iterable[Path], sha256: Callable[[Path], str]) -> Iterator[File]:
    for path in paths:
        if canonicalize_name(path.name.split("-")[0]) == package.name and path.suffix == ".whl":
            yield File(name=path.name, place=str(path), sha256=sha256(path))


def _listed(package: Package, index: Index, torch: str | None) -> Iterator[File]:
    for url in (*index.index_urls, *index.extra_index_urls, *([torch] if torch else [])):
        if url.startswith("http"):
            for file in indexes.listed(url, package.name):
                yield File(name=file.filename, place=file.url, sha256=file.digests.get("sha256", ""))
