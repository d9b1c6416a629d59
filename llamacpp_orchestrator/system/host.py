"""This machine, as far as it decides which programs run here: system, processor, C library, GPU driver."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.settings import system as system

ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
# Where drivers put it when they do not put it on PATH: Windows (now and before 2020), and Linux under Windows.
OLD_NVIDIA_SMI = "C:/Program Files/NVIDIA Corporation/NVSMI/nvidia-smi.exe"
NVIDIA_SMI = ("C:/Windows/System32/nvidia-smi.exe", OLD_NVIDIA_SMI, "/usr/lib/wsl/lib/nvidia-smi")
CUDA_LIBRARY = {"windows": "nvcuda.dll", "linux": "libcuda.so.1"}
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, cuda.h
MUSL_LOADERS, CGROUP_LIMIT = "ld-musl*", Path("/sys/fs/cgroup/memory.max")
MEMINFO, OWN_GROUP = Path("/proc/meminfo"), Path("/proc/self/cgroup")
# Of a control group, in each of the two hierarchies: its limit, what it uses, and how memory.stat calls what can be dropped.
GROUP_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One NVIDIA GPU; its compute capability where the driver tells it, such as "8.9"."""

    capability: str | None
    name: str = ""


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
    cuda, gpus = _gpus(here)
    cores, memory = resources()
    capabilities = tuple(sorted({gpu.capability for gpu in gpus if gpu.capability}, key=float))
    arch = ARCHITECTURES.get(platform.machine().lower(), "other")
    return Host(system=here, arch=arch, libc=_libc(here), cuda=cuda, capabilities=capabilities, cores=cores, memory=memory)


def resources() -> tuple[int, int]:
    """The cores that we may use and the bytes of memory, 0 where unknown."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return cores, _memory(system())


def available() -> int:
    """The bytes of memory that are free for us now; where the system does not say, those of the machine, 0 where unknown."""
    here = system()
    if here == "windows":
        return _windows_memory(2)
    if here != "linux":
        return _memory(here)
    free = parse_available(_text(MEMINFO)) or _memory(here)
    return min((free, *filter(None, map(_left, groups(_text(OWN_GROUP), CGROUP_LIMIT.parent)))))


def parse_available(text: str) -> int:
    """What /proc/meminfo holds to be available, in bytes; 0 when it does not say."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


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


def parse_nvidia_smi(text: str) -> str | None:
    """The CUDA version in nvidia-smi's banner; drivers from 610 on spell its label differently."""
    found = re.search(r"CUDA (?:UMD )?Version:\s*(\d+\.\d+)", text)
    return found[1] if found else None


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The GPUs in the answer to `--query-gpu=compute_cap,name --format=csv,noheader`."""
    rows = [line.split(",", 1) for line in text.splitlines() if "," in line]
    known = re.compile(r"\s*\d+\.\d+\s*").fullmatch
    return tuple(Gpu(capability=cap.strip() if known(cap) else None, name=name.strip()) for cap, name in rows)


def _gpus(here: str) -> tuple[str | None, tuple[Gpu, ...]]:
    """The driver's CUDA version with its GPUs: nvidia-smi prints its banner without any GPU too, so both are asked for."""
    cuda = parse_nvidia_smi(_nvidia_smi())
    gpus = parse_gpus(_nvidia_smi("--query-gpu=compute_cap,name", "--format=csv,noheader")) if cuda else ()
    if not gpus:
        # No nvidia-smi, or one from before 2021 that does not know the question: the driver library knows.
        version, gpus = _libcuda(CUDA_LIBRARY.get(here, ""))
        cuda = cuda or version
    return (cuda, gpus) if gpus else (None, ())


def _nvidia_smi(*arguments: str) -> str:
    program = shutil.which("nvidia-smi") or next((path for path in NVIDIA_SMI if Path(path).is_file()), None)
    return _said(program, *arguments) if program else ""


def _said(*argv: str) -> str:
    try:
        return process.capture(Command(argv, env=clean_env()), timeout=20.0)
    except OrchestrateError:
        return ""


def _libcuda(name: str) -> tuple[str | None, tuple[Gpu, ...]]:
    number = ctypes.c_int()
    try:
        library = ctypes.CDLL(name) if name else None
        if library is None or library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(number)):
            return None, ()
        version = f"{number.value // 1000}.{number.value % 1000 // 10}"
        library.cuDeviceGetCount(ctypes.byref(number))
        return version, tuple(Gpu(capability=_capability(library, index)) for index in range(number.value))
    except (OSError, AttributeError):
        return None, ()


def _capability(library: Any, index: int) -> str:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
    return f"{major.value}.{minor.value}"


def _libc(here: str, folder: Path = Path("/lib")) -> str:
    if here != "linux":
        return ""
    name, version = platform.libc_ver()
    if name == "glibc":
        return f"glibc {version}"
    return "musl" if name == "musl" or any(folder.glob(MUSL_LOADERS)) else ""


def _memory(here: str) -> int:
    if here == "macos":
        said = _said("sysctl", "-n", "hw.memsize").strip()
        return int(said) if said.isdigit() else 0
    if sys.platform == "win32":
        return _windows_memory()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A container may be given less than the machine has.
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else ""
    return min(physical, int(limit)) if limit.isdigit() else physical


def _windows_memory(number: int = 1) -> int:
    # MEMORYSTATUSEX: its own length, the load in percent, then seven 64-bit numbers, of which the first are the bytes of memory
    # and those that are free.
    record = (ctypes.c_uint64 * 8)(64)
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - known on Windows only
    return int(record[number]) if kernel.GlobalMemoryStatusEx(ctypes.byref(record)) else 0
