"""Which archive of a release fits a machine: pure decisions over the names that upstream published."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.tag import Tag

if TYPE_CHECKING:
    from llamacpp_orchestrator.system.host import Host

Version = tuple[int, ...]
NEWEST = 10**9
LONGEST_NAME = 255  # no release has had one of half that
OTHERS = ("vulkan", "rocm", "metal", "cpu")  # what an error names as the ways out
WITHOUT_LIBRARIES = ((3236, 3255), (4408, 4544))  # Linux and macOS archives that lack libllama
LINUX_CUDA_FROM, LINUX_CUDA_GLIBC = 10970, (2, 38)
SYSTEM_WORD = {"win": "windows", "ubuntu": "linux", "macos": "macos"}

# What an archive's name says, by backend; where several would do, the first spelling listed is taken.
SPELLINGS = (
    ("cuda", r"(win|ubuntu)-(?:cublas-cu|cuda-cu|-cu|cuda-?)(?P<version>\d+(?:\.\d+)+)-(?P<arch>x64|arm64)"),
    ("vulkan", r"(win|ubuntu)-vulkan-(?P<arch>x64|arm64)"),
    ("rocm", r"(win|ubuntu)-rocm-(?P<version>\d+(?:\.\d+)+)-(?P<arch>x64)"),
    ("rocm", r"(win)-hip-radeon-(?P<arch>x64)"),
    ("rocm", r"(win)-hip-(?P<gpu>gfx\d+)-(?P<arch>x64)"),
    ("rocm", r"(win)-hip-(?P<arch>x64)-(?P<gpu>gfx\d+)"),
    ("sycl", r"(win|ubuntu)-sycl(?:-fp32)?-(?P<arch>x64)"),
    ("sycl", r"(ubuntu)-sycl-fp16-(?P<arch>x64)"),
    ("openvino", r"(win|ubuntu)-openvino-(?P<version>\d+(?:\.\d+)+)-(?P<arch>x64)"),
    ("cpu", r"(win)-(?:cpu|llvm)-(?P<arch>x64|arm64)"),
    ("cpu", r"(win)-msvc-(?P<arch>arm64)"),
    ("cpu", r"(win)-(?P<arch>arm64)-x64"),
    ("cpu", r"(win)-avx2-(?P<arch>x64)"),
    ("cpu", r"(win|ubuntu|macos)-(?P<arch>x64|arm64)"),
)
RUNTIME = r"cudart-llama-(?:{tag}-)?bin-(win|ubuntu)-(?:cu|cuda-?)(?P<version>\d+(?:\.\d+)+)-(?P<arch>x64|arm64)\.(?:zip|tar\.gz)"

# Compute capabilities with machine code in the CUDA files, by first build; a file newer than the driver needs one of these,
# since a driver compiles PTX of toolkits up to its own only.
MACHINE_CODE = ((5298, "8.6 8.9"), (4717, "5.0 6.1 7.0 7.5 8.0"), (3216, "5.2 6.1 7.0 7.5"), (0, "5.2 6.1 7.0"))
NATIVE_BLACKWELL_FROM = 7567


class Asset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of a release; releases before June 2025 publish no sha256."""

    name: str
    url: str
    size: int = 0
    sha256: str | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The archive that fits a machine, the CUDA runtime that goes with it, and why."""

    archive: Asset
    runtime: Asset | None
    reason: str
    backend: str
    minor_compat: bool = False


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """What the name of an asset says; `rank` orders spellings that would do equally, lower first."""

    asset: Asset
    system: str
    arch: str
    backend: str
    version: Version = ()
    gpu: str = ""
    rank: tuple[int, ...] = ()


def build_number(tag: str) -> int:
    """The build behind a tag: N of bN, 1 for the tags before those, a very large one for names that do not tell."""
    number = Tag(tag).build
    return number if number is not None else 1 if Tag(tag).is_dated else NEWEST


def choose(tag: str, assets: tuple[Asset, ...], host: Host, backend: str, cuda: str = "auto") -> Choice:
    """The archive for a machine; OrchestrateError names what the release has and what would work."""
    if backend in ("none", "source"):
        raise JobError(f"binaries.backend is {backend}: no release archive is used", "set `backend: cpu` to have the programs")
    archives = _here(tag, assets, host)
    _refuse_broken(tag, archives, host)
    if backend == "cuda":
        return _cuda(tag, assets, archives, host, cuda)
    if backend != "auto":
        return _best(tag, assets, archives, host, backend, f"{backend}, as asked")
    if host.system == "macos":
        metal = any(archive.backend == "metal" for archive in archives)
        return _best(tag, assets, archives, host, "metal" if metal else "cpu", "the archive for this Mac")
    if host.cuda is None:
        return _best(tag, assets, archives, host, "cpu", "CPU: no NVIDIA driver with a GPU was found")
    try:
        choice = _cuda(tag, assets, archives, host, cuda)
        obstacle = _obstacle(tag, choice, host)
    except OrchestrateError as error:
        obstacle = error.message.split(";")[0]
    return _best(tag, assets, archives, host, "cpu", f"CPU: {obstacle}") if obstacle else choice


def _here(tag: str, assets: tuple[Asset, ...], host: Host) -> list[Archive]:
    archives = []
    for asset in assets:
        if len(asset.name) > LONGEST_NAME:
            continue
        body = re.fullmatch(rf"llama-(?:{re.escape(tag)}-)?bin-(.+)\.(zip|tar\.gz)", asset.name)
        for rank, (backend, pattern) in enumerate(SPELLINGS if body else ()):
            if body and (said := re.fullmatch(pattern, body[1])):
                version = _version(said.groupdict().get("version") or "")
                order = (rank, *(-part for part in version), int(body[2] == "zip"))
                system, gpu = SYSTEM_WORD[said[1]], said.groupdict().get("gpu") or ""
                archive = Archive(
                    asset=asset, system=system, arch=said["arch"], backend=backend, version=version, gpu=gpu, rank=order
                )
                archives.append(archive)
                if archive.system == "macos" and (archive.arch == "arm64" or build_number(tag) < 2655):
                    archives.append(msgspec.structs.replace(archive, backend="metal"))
                break
    return sorted((each for each in archives if (each.system, each.arch) == (host.system, host.arch)), key=lambda each: each.rank)


def _version(text: str) -> Version:
    return tuple(int(part) for part in text.split(".") if part)


def _shown(versions: Iterable[Version]) -> str:
    return ", ".join(f"{version[0]}.{version[1]}" for version in sorted(versions))


def _refusal(tag: str, assets: tuple[Asset, ...], archives: list[Archive], host: Host, asked: str, what: str) -> OrchestrateError:
    others = [each for each in OTHERS if each != asked and any(archive.backend == each for archive in archives)]
    ending = f"archives that exist here: {', '.join(others)}" if others else "no archive for this platform at all"
    ways = [f"set binaries.backend to {' or '.join([*others, 'source'])}"]
    if asked == "cuda" and host.system == "linux" and build_number(tag) < LINUX_CUDA_FROM:
        ways.append(f"Linux has CUDA archives from b{LINUX_CUDA_FROM} on")
    names = [archive.asset.name for archive in archives] or [asset.name for asset in assets if asset.name.startswith("llama-")]
    ways += ["conversions need no GPU", f"the release has {', '.join(dict.fromkeys(names)) or 'no archives'}"]
    return OrchestrateError(f"{what}; {ending}", "; ".join(ways))


def _refuse_broken(tag: str, archives: list[Archive], host: Host) -> None:
    build = build_number(tag)
    if archives and host.libc == "musl":
        message = f"the archives of {tag} are made for glibc, this system has musl"
        raise OrchestrateError(message, "set binaries.backend to source, or to none: conversions need no program")
    for first, last in WITHOUT_LIBRARIES if archives and host.system != "windows" else ():
        if first <= build <= last:
            message = f"the {host.system} archives of {tag} lack llama.cpp's own libraries and cannot run (b{first} to b{last})"
            raise OrchestrateError(message, f"take a tag from b{last + 1} on; conversions alone need no program")


def _best(tag: str, assets: tuple[Asset, ...], archives: list[Archive], host: Host, backend: str, reason: str) -> Choice:
    fitting = [archive for archive in archives if archive.backend == backend]
    if not fitting:
        raise _refusal(tag, assets, archives, host, backend, f"{tag} has no {backend} archive for {host.system} {host.arch}")
    if fitting[0].gpu:
        each = ", ".join(archive.asset.name for archive in fitting)
        raise _refusal(tag, assets, archives, host, backend, f"{tag} has {backend} archives for single GPU models only ({each})")
    return Choice(archive=fitting[0].asset, runtime=None, reason=reason, backend=backend)


def _cuda(tag: str, assets: tuple[Asset, ...], archives: list[Archive], host: Host, wanted: str) -> Choice:
    published = {archive.version: archive for archive in reversed(archives) if archive.backend == "cuda"}
    asked = _version(wanted) if wanted != "auto" else ()
    files = {version: archive for version, archive in published.items() if version[: len(asked)] == asked}
    if not files:
        named, has = (f"CUDA {wanted}", f" (it has {_shown(published)})") if published else ("CUDA", "")
        raise _refusal(tag, assets, archives, host, "cuda", f"{tag} has no {named} archive for {host.system} {host.arch}{has}")
    if host.cuda is None and not asked:
        what = f"CUDA asked for but the driver's CUDA version is unknown (archives: {_shown(files)})"
        raise _refusal(tag, assets, archives, host, "cuda", what)
    driver = _version(host.cuda) if host.cuda else max(files)
    version = _pick(tag, list(files), driver, host)
    if version is None:
        what = f"driver supports CUDA {host.cuda}, archives of {tag} need {_shown(files)}"
        raise _refusal(tag, assets, archives, host, "cuda", what)
    compat, text = version[:2] > driver[:2], _shown([version])
    reason = f"CUDA {text}, " + (f"newest for a driver with CUDA {host.cuda}" if host.cuda else "as asked; the driver is unknown")
    if compat:
        reason = f"CUDA {text}, above the driver's {host.cuda}: runs by minor version compatibility"
        reason += "" if _native(tag, version, host) else " if the GPU has machine code in it, which is not certain here"
    runtime = _runtime(tag, assets, files[version])
    return Choice(archive=files[version].asset, runtime=runtime, reason=reason, backend="cuda", minor_compat=compat)


def _pick(tag: str, files: list[Version], driver: Version, host: Host) -> Version | None:
    """The highest version not above the driver, else the lowest of the same major (NVIDIA's minor version compatibility)."""
    fitting = max((version for version in files if version[:2] <= driver[:2]), default=None)
    above = min((version for version in files if version[0] == driver[0] and version[:2] > driver[:2]), default=None)
    # Blackwell: code made for it beats an older file that the driver must compile first.
    blackwell = bool(host.capabilities) and all(each.startswith("12.") for each in host.capabilities)
    better = blackwell and fitting and above and not _native(tag, fitting, host) and _native(tag, above, host)
    return above if better else fitting or above


def _native(tag: str, version: Version, host: Host) -> bool:
    """Whether a file holds machine code for every GPU here; code runs on later minors of its major, Blackwell's does not."""
    build = build_number(tag)
    code = next(capabilities for first, capabilities in MACHINE_CODE if build >= first).split()
    code = [each for each in code if each != "8.9" or version >= (11, 8)]
    new = build >= NATIVE_BLACKWELL_FROM
    blackwell = (["12.0"] if new and version >= (12, 8) else []) + (["12.1"] if new and version >= (12, 9) else [])

    def runs(capability: Version) -> bool:
        older = any(made[0] == capability[0] and made <= capability for made in map(_version, code))
        return older or capability in map(_version, blackwell)

    return bool(host.capabilities) and all(runs(_version(each)) for each in host.capabilities)


def _obstacle(tag: str, choice: Choice, host: Host) -> str:
    glibc = re.fullmatch(r"glibc ([\d.]+)", host.libc)
    if host.system == "linux" and glibc and _version(glibc[1]) < LINUX_CUDA_GLIBC:
        return f"the CUDA archives for Linux need glibc 2.38, here is {glibc[1]}"
    version = _version(re.findall(r"[\d.]+(?=-(?:x64|arm64))", choice.archive.name)[-1])
    if choice.minor_compat and host.capabilities and not _native(tag, version, host):
        gpus = ", ".join(host.capabilities)
        return f"CUDA {_shown([version])} with compute capability {gpus} needs a newer driver than one for CUDA {host.cuda}"
    return ""


def _runtime(tag: str, assets: tuple[Asset, ...], archive: Archive) -> Asset:
    for asset in assets:
        said = re.fullmatch(RUNTIME.format(tag=re.escape(tag)), asset.name)
        wanted = (archive.system, archive.arch, archive.version)
        if said and (SYSTEM_WORD[said[1]], said["arch"], _version(said["version"])) == wanted:
            return asset
    message = f"{tag} has {archive.asset.name} but not the CUDA runtime archive that goes with it"
    raise OrchestrateError(message, "the release may still be being filled: wait, take another tag, or set `backend: cpu`")
