"""The release binaries of a tag: what upstream published, which archive fits this machine, and how it gets here."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote
from urllib.parse import urlsplit

import msgspec

from llamacpp_orchestrator import download
from llamacpp_orchestrator import process
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.host import Host
from llamacpp_orchestrator.process import Command
from llamacpp_orchestrator.settings import Settings

GITHUB = "https://github.com"
NEWEST = 10**9
PAGES = (30, 100)  # an answer of exactly so many assets may be one page of more
TOKEN_HINT = "set GITHUB_TOKEN (any account, no rights needed) for 5,000 requests an hour instead of 60"
OTHERS = ("vulkan", "rocm", "metal", "cpu")  # what an error names as the ways out
WITHOUT_LIBRARIES = ((3236, 3255), (4408, 4544))  # Linux and macOS archives that lack libllama
LINUX_CUDA_FROM, LINUX_CUDA_GLIBC = 10970, (2, 38)
SYSTEM_WORD = {"win": "windows", "ubuntu": "linux", "macos": "macos"}

# What an archive's name says, by backend; where several would do, the first spelling listed is taken.
SPELLINGS = (
    ("cuda", r"(win|ubuntu)-(?:cublas-cu|cuda-cu|-cu|cuda-?)(?P<version>[\d.]+)-(?P<arch>x64|arm64)"),
    ("vulkan", r"(win|ubuntu)-vulkan-(?P<arch>x64|arm64)"),
    ("rocm", r"(win|ubuntu)-rocm-(?P<version>[\d.]+)-(?P<arch>x64)"),
    ("rocm", r"(win)-hip-radeon-(?P<arch>x64)"),
    ("rocm", r"(win)-hip-(?P<gpu>gfx\d+)-(?P<arch>x64)"),
    ("rocm", r"(win)-hip-(?P<arch>x64)-(?P<gpu>gfx\d+)"),
    ("sycl", r"(win|ubuntu)-sycl(?:-fp32)?-(?P<arch>x64)"),
    ("sycl", r"(ubuntu)-sycl-fp16-(?P<arch>x64)"),
    ("openvino", r"(win|ubuntu)-openvino-(?P<version>[\d.]+)-(?P<arch>x64)"),
    ("cpu", r"(win)-(?:cpu|llvm)-(?P<arch>x64|arm64)"),
    ("cpu", r"(win)-msvc-(?P<arch>arm64)"),
    ("cpu", r"(win)-(?P<arch>arm64)-x64"),
    ("cpu", r"(win)-avx2-(?P<arch>x64)"),
    ("cpu", r"(win|ubuntu|macos)-(?P<arch>x64|arm64)"),
)
RUNTIME = r"cudart-llama-(?:{tag}-)?bin-(win|ubuntu)-(?:cu|cuda-?)(?P<version>[\d.]+)-(?P<arch>x64|arm64)\.(?:zip|tar\.gz)"

# Names that releases used, with the first and last build: only to ask for files one by one when the API does not answer.
CUDA_ERAS = (
    (1, 2532, "win-cublas-cu{}-x64", "win-cu{}-x64", "11.7.1 12.1.0 12.2.0"),
    (2533, 4199, "win-cuda-cu{}-x64", "win-cu{}-x64", "11.7.1 12.2.0"),
    (4200, 5309, "win-cuda-cu{}-x64", "win-cu{}-x64", "11.7 12.4"),
    (5310, 5317, "win--cu{}-x64", "win-cu{}-x64", "11.7 12.4"),
    (5318, 5449, "win-cuda{}-x64", "win-cuda{}-x64", "11.7 12.4"),
    (5450, 7312, "win-cuda-{}-x64", "win-cuda-{}-x64", "11.7 12.4"),
    (7313, NEWEST, "win-cuda-{}-x64", "win-cuda-{}-x64", "12.4 13.1 13.3 13.4"),
    (10345, NEWEST, "win-cuda-{}-arm64", "win-cuda-{}-arm64", "13.4"),
    (10951, NEWEST, "ubuntu-cuda-{}-x64", "ubuntu-cuda-{}-x64", "12.8 13.3 13.4"),
    (10951, NEWEST, "ubuntu-cuda-{}-arm64", "ubuntu-cuda-{}-arm64", "13.3 13.4"),
)
ERAS = (
    (1, 5275, "win-avx2-x64"),
    (5276, NEWEST, "win-cpu-x64"),
    (2399, 2895, "win-arm64-x64"),
    (2896, 5309, "win-llvm-arm64"),
    (5310, NEWEST, "win-cpu-arm64"),
    (2037, NEWEST, "win-vulkan-x64"),
    (11393, NEWEST, "win-vulkan-arm64"),
    (5460, 10355, "win-hip-radeon-x64"),
    (10356, NEWEST, "win-rocm-7.14-x64 win-rocm-10.0-x64"),
    (2517, NEWEST, "win-sycl-x64"),
    (2699, NEWEST, "ubuntu-x64"),
    (4759, NEWEST, "ubuntu-arm64"),
    (4713, NEWEST, "ubuntu-vulkan-x64"),
    (8599, NEWEST, "ubuntu-vulkan-arm64 ubuntu-sycl-fp32-x64"),
    (8127, NEWEST, "ubuntu-rocm-7.2-x64 ubuntu-rocm-7.14-x64 ubuntu-rocm-10.0-x64"),
    (2483, NEWEST, "macos-arm64 macos-x64"),
)

# Compute capabilities with machine code in the CUDA files, by first build; a file newer than the driver needs one of these,
# since a driver compiles PTX of toolkits up to its own only.
MACHINE_CODE = ((5298, "8.6 8.9"), (4717, "5.0 6.1 7.0 7.5 8.0"), (3216, "5.2 6.1 7.0 7.5"), (0, "5.2 6.1 7.0"))
NATIVE_BLACKWELL_FROM = 7567

# Names that a program had over time; the one before or after a rename does the same work.
ALIASES = {
    "llama-cli": ("main", "llama"),
    "main": ("llama-cli", "llama"),
    "llama-completion": ("llama-cli", "main"),
    "rpc-server": ("ggml-rpc-server",),
}
PROBED = ("llama-cli", "llama-completion", "llama-server", "llama-quantize")
PROGRAM_MAGIC = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"#!")
CANNOT_START = (
    (r"(GLIBC(?:XX)?_[\d.]+)'? not found", "it needs {0}, newer than this system's C library ({libc})", "take `backend: cpu` or a newer system"),
    (r"loading shared libraries: (\S+?):", "the library {0} is missing", "install it; if it is part of llama.cpp the archive is incomplete"),
    (r"Library not loaded: (\S+)", "the library {0} is missing", "the archive is incomplete: take another tag"),
    (r"0xC0000135|3221225781", "a DLL is missing", "install the Microsoft Visual C++ 2015-2022 runtime (vc_redist)"),
    (r"Exec format error|Bad CPU type|WinError 193|not a valid Win32", "it is made for another processor than this ({arch})", "see `backend`"),
    (r"could not be started: No such file", "its loader is missing: made for another C library than this ({libc})", "use a glibc system"),
    (r"signal 4\b|3221225501", "this processor lacks instructions that it uses", "take a tag from b5276 on, which adapts to the processor"),
)


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
    version: str
    gpu: str
    rank: tuple[int, ...]


Version = tuple[int, ...]
