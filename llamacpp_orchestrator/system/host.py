"""This machine, as far as it decides which programs run here: system, processor, C library, GPU driver."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

import msgspec

from llamacpp_orchestrator.system.settings import system as system
from llamacpp_orchestrator.util.background import load

ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
MUSL_LOADERS, CGROUP_LIMIT = "ld-musl*", Path("/sys/fs/cgroup/memory.max")
OWN_GROUP = Path("/proc/self/cgroup")
# Of a control group, in each of the two hierarchies: its limit, what it uses, and how memory.stat calls what can be dropped.
GROUP_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A machine; `cuda` is the newest CUDA version that its driver supports, None without a working GPU."""

    system: str
    arch: str
    libc: str = ""
    cuda: str | None = None
    capabilities: tuple[str, ...] = ()
    cores: int
    memory: int


def detect() -> Host:
    """Look at this machine; raises nothing, what cannot be found out stays empty."""
    here = system()
    cuda, capabilities = _gpus()
    cores, memory = resources()
    arch = ARCHITECTURES.get(platform.machine().lower(), "other")
    return Host(system=here, arch=arch, libc=_libc(here), cuda=cuda, capabilities=capabilities, cores=cores, memory=memory)


def resources() -> tuple[int, int]:
    """The cores that we may use and the bytes of memory, 0 where unknown."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    memory, limit = _memory("total"), _text(CGROUP_LIMIT).strip()
    # A container may be given less than the machine has.
    return cores, min(memory, int(limit)) if limit.isdigit() else memory


def available() -> int:
    """The bytes of memory that are free for us now, 0 where unknown."""
    return min((_memory("available"), *filter(None, map(_left, groups(_text(OWN_GROUP), CGROUP_LIMIT.parent)))))


def largest_child() -> int:
    """The bytes of memory that the largest of all child processes had that have ended; 0 where the system does not tell."""
    if system() == "windows":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return most if system() == "macos" else most * 1024  # getrusage(2): bytes on a Mac, kilobytes elsewhere


def _memory(what: str) -> int:
    load("psutil")
    import psutil

    try:
        return int(getattr(psutil.virtual_memory(), what))
    except OSError:  # a system that tells nobody
        return 0


def groups(text: str, root: Path) -> tuple[Path, ...]:
    """The folders of the control groups whose limits hold for a process, by its /proc/self/cgroup, the innermost first."""
    found = []
    for controllers, path in re.findall(r"^\d+:([^:]*):/?(.*)$", text, re.MULTILINE):
        if not controllers or "memory" in controllers.split(","):
            top = root / "memory" if controllers else root
            inner = top if ".." in path else top / path  # out of a namespace's sight: what holds there is not to be seen
            found += [folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents]
    return tuple(found)


def _left(group: Path) -> int | None:
    """What a group may still take: pages of files count as free, for they are dropped before anything is killed."""
    for limit, usage, names in GROUP_FILES:
        bound, used = (_text(group / name).strip() for name in (limit, usage))
        if bound.isdigit() and used.isdigit():
            stat = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
            return max(1, int(bound) - int(used) + sum(int(stat.get(name, 0)) for name in names))
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gpus() -> tuple[str | None, tuple[str, ...]]:
    """The newest CUDA version that the driver supports, None without a working GPU, and what the GPUs are capable of."""
    load("pynvml")
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
        version, count = pynvml.nvmlSystemGetCudaDriverVersion(), pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return None, ()
    capabilities = set()
    for number in range(count):
        with contextlib.suppress(pynvml.NVMLError):  # one that has failed, or that we may not ask
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            capabilities.add(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    cuda = f"{version // 1000}.{version % 1000 // 10}" if count else None
    return cuda, tuple(f"{major}.{minor}" for major, minor in sorted(capabilities))


def _libc(here: str, folder: Path = Path("/lib")) -> str:
    if here != "linux":
        return ""
    name, version = platform.libc_ver()
    if name == "glibc":
        return f"glibc {version}"
    return "musl" if name == "musl" or any(folder.glob(MUSL_LOADERS)) else ""
