"""The compilers that a build of llama.cpp would use, and the environment in which they run."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.host import Host

# Compilers in the order in which CMake looks for them.
PAIRS = {"windows": (("cl", "cl"), ("gcc", "g++"), ("clang", "clang++"))}
UNIX_PAIRS = (("cc", "c++"), ("gcc", "g++"), ("clang", "clang++"))
VSWHERE = "C:/Program Files (x86)/Microsoft Visual Studio/Installer/vswhere.exe"
MSVC_PART = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
NVCC = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
# What a compiler may know of our environment besides what every child may.
PASSED = frozenset(
    """
    INCLUDE LIB LIBPATH VSINSTALLDIR VCINSTALLDIR VCTOOLSINSTALLDIR WINDOWSSDKDIR WINDOWSSDKVERSION UCRTVERSION
    CUDA_PATH SDKROOT DEVELOPER_DIR MACOSX_DEPLOYMENT_TARGET CCACHE_DIR PROGRAMFILES(X86) ALLUSERSPROFILE
    """.split()  # noqa: SIM905 - as in system/command.py
)
INSTALL = {
    "windows": "install the Visual Studio Build Tools with `Desktop development with C++` (winget install "
    "Microsoft.VisualStudio.2022.BuildTools)",
    "macos": "install Apple's command line tools: xcode-select --install",
    "linux": "install one: apt install build-essential (Debian, Ubuntu), dnf install gcc gcc-c++ (Fedora)",
}


class Toolchain(msgspec.Struct, frozen=True, kw_only=True):
    """What compiles here: the commands for C and C++ (empty: Visual Studio, which CMake finds itself), and which versions."""

    cc: str
    cxx: str
    version: str
    machine: str = ""
    nvcc: str = ""
    nvcc_version: str = ""
    capabilities: tuple[str, ...] = ()

    def said(self) -> str:
        """The same for people."""
        gpu = f", CUDA for compute capability {', '.join(self.capabilities)} ({self.nvcc_version})" if self.nvcc else ""
        return f"{self.version}{gpu}"


def named(host: Host, environ: Mapping[str, str], which: Callable[[str], str | None]) -> tuple[str, str] | None:
    """The commands for C and C++ that are to be used: the user's CC and CXX, or the first pair on PATH."""
    if environ.get("CC") or environ.get("CXX"):
        return environ.get("CC") or "cc", environ.get("CXX") or "c++"
    return next((pair for pair in PAIRS.get(host.system, UNIX_PAIRS) if all(map(which, pair))), None)


def toolchain(host: Host) -> Toolchain:
    """The compilers of this machine; OrchestrateError says how to get one."""
    pair = named(host, os.environ, shutil.which)
    version = _asked(pair[1]) if pair else _visual_studio(host)
    if not version:
        what = f"`{pair[1]}` does not run" if pair else "no C++ compiler was found"
        raise OrchestrateError(f"`binaries: {{backend: source}}` builds llama.cpp, and {what}", INSTALL[host.system])
    nvcc = _nvcc() if host.cuda and host.capabilities else ""
    said = lines_of(nvcc, "--version") if nvcc else []
    release = next((line.strip() for line in said if "release" in line), "")
    here = " ".join(filter(None, (host.system, host.arch, host.libc.split(" ")[0])))
    found = Toolchain(cc=pair[0] if pair else "", cxx=pair[1] if pair else "", version=version, machine=here)
    return msgspec.structs.replace(found, nvcc=nvcc, nvcc_version=release, capabilities=host.capabilities) if release else found


def _asked(compiler: str) -> str:
    words = shlex.split(compiler, posix=os.name != "nt")
    # Microsoft's compiler knows no --version, and says it in its banner.
    silent = Path(words[-1]).stem.lower() == "cl"
    return next(iter(lines_of(*words, *(() if silent else ("--version",)))), "").strip()


def _visual_studio(host: Host) -> str:
    if host.system != "windows" or not Path(VSWHERE).is_file():
        return ""
    asked = ("-latest", "-products", "*", "-requires", MSVC_PART, "-property", "installationVersion")
    return next((f"Visual Studio {line.strip()}" for line in lines_of(VSWHERE, *asked) if line.strip()), "")


def _nvcc() -> str:
    return shutil.which("nvcc") or next((path for path in NVCC if Path(path).is_file()), "")


def lines_of(*argv: str) -> list[str]:
    """The lines of a short command, whichever stream they come on; none when it fails."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            process.stream(Command(argv, env=variables()), Path(scratch) / "log", lines.append)
        except CommandFailed:
            return []
    return lines


def variables(**extra: str) -> tuple[tuple[str, str], ...]:
    """The environment of CMake and the compilers: flags of the user's own would change what is made, and have no say."""
    passed = {name: value for name, value in os.environ.items() if name.upper() in PASSED}
    return clean_env(**passed, **extra)
