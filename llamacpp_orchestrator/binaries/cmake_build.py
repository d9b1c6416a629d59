"""The tag's programs made from its own source, for machines and commits that no release archive fits."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.binaries.toolchain import Toolchain
from llamacpp_orchestrator.binaries.toolchain import lines_of
from llamacpp_orchestrator.binaries.toolchain import variables
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.source.pin import SourcePin
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.host import Host
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.tag import Tag

# What is built: of each line the first that the tree has. Upstream's chat program needs its whole server, completion does not.
PROGRAMS = (
    ("llama-quantize", "quantize"),
    ("llama-completion", "llama-cli", "main"),
    ("llama-imatrix", "imatrix"),
    ("llama-perplexity", "perplexity"),
    ("llama-gguf-split", "gguf-split"),
)
# What a check uses where it is there: no part of a build's key, so that builds from before it go on to be used.
CHECKING = (("llama-tokenize", "tokenize"),)
# Not tuned to this processor, and one rounding for each operation: a type must come out the same on every machine.
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF",
    "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
)  # fmt: skip
ONE_ROUNDING = ("-DCMAKE_C_FLAGS=-ffp-contract=off", "-DCMAKE_CXX_FLAGS=-ffp-contract=off")
WHEELS = ("cmake>=3.18,<5", "ninja>=1.10")
BYTES_PER_JOB = 1_500_000_000


def options(pin: SourcePin, toolchain: Toolchain) -> tuple[str, ...]:
    """What CMake is told; older trees know some of it not, which does no harm."""
    # Said aloud, for upstream would ask git, and git might find a repository around the cache.
    named = (f"-DLLAMA_BUILD_NUMBER={Tag(pin.tag).build or 0}", f"-DLLAMA_BUILD_COMMIT={pin.commit[:9] or pin.tag}")
    rounding = () if _msvc(toolchain) else ONE_ROUNDING
    architectures = ";".join(sorted(each.replace(".", "") for each in toolchain.capabilities))
    cuda = ("-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}") if toolchain.nvcc else ()
    return (*OPTIONS, *named, *rounding, *cuda)


def _msvc(toolchain: Toolchain) -> bool:
    return not toolchain.cxx or Path(toolchain.cxx).stem.lower() == "cl"


def key(pin: SourcePin, toolchain: Toolchain) -> str:
    """The store key of a build: what the source is, what is built of it, how, and with which compiler."""
    made_with = [toolchain.machine, toolchain.version, toolchain.nvcc_version]
    parts = [pin.commit or pin.package, PROGRAMS, options(pin, toolchain), made_with]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]


def targets(there: frozenset[str]) -> tuple[str, ...]:
    """The names to build out of those that a tree defines."""
    found = (next((name for name in names if name in there), "") for names in (*PROGRAMS, *CHECKING))
    return tuple(filter(None, found))


def defined(tree: Path) -> frozenset[str]:
    """The programs that a tree's CMake files define; empty for a tree that holds none."""
    files = [path for folder in ("tools", "examples") for path in (tree / folder).glob("*/CMakeLists.txt")]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    return frozenset(re.findall(r"^\s*set\(TARGET\s+([\w-]+)\)", text, re.MULTILINE))


def needed_cmake(tree: Path) -> tuple[int, ...]:
    """The oldest CMake that a tree takes."""
    text = (tree / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"cmake_minimum_required\s*\(\s*VERSION\s+([\d.]*\d)", text, re.IGNORECASE)
    return _version(found[1]) if found else ()


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def makers(tree: Path) -> tuple[str, str]:
    """CMake and Ninja as they are on PATH, if CMake is new enough for the tree; "" for what is not."""
    cmake, ninja = shutil.which("cmake") or "", shutil.which("ninja") or ""
    have = _version(next(iter(lines_of(cmake, "--version") if cmake else []), ""))
    return cmake if have >= needed_cmake(tree) and have else "", ninja


def install_makers(dest: Path, settings: Settings, log: Path) -> None:
    """CMake and Ninja as wheels in a small virtual environment; CommandFailed with uv's words."""
    env = indexes.uv_env(settings.index, None)
    venv = dest / "venv"
    try:
        process.stream(
            Command((indexes.uv(), "venv", "--no-config", "--no-project", "--python", sys.executable, str(venv)), env=env),
            log,
        )
        python = str(python_in(venv))
        argv = (indexes.uv(), "pip", "install", "--no-config", "--no-build", "--python", python, *WHEELS)
        process.stream(Command(argv, env=env), log)
    except CommandFailed as error:
        hint = "install cmake and ninja with the system's package manager, or set an index that has them (PIP_INDEX_URL)"
        raise indexes.failed(error, "cmake and ninja could not be installed", hint, log) from error


def installed_makers(venv: Path) -> tuple[str, str]:
    """CMake and Ninja out of such an environment."""
    folder, ending = python_in(venv).parent, ".exe" if os.name == "nt" else ""
    return str(folder / f"cmake{ending}"), str(folder / f"ninja{ending}")


class Tools(msgspec.Struct, frozen=True):
    """What a build is done with: the paths of CMake and Ninja, the compilers, and what CMake is told."""

    cmake: str
    ninja: str
    toolchain: Toolchain
    options: tuple[str, ...]


def configure_command(tools: Tools, tree: Path, out: Path) -> Command:
    """The call that configures a build. Visual Studio has a generator of its own, which needs no prepared environment."""
    toolchain = tools.toolchain
    how = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={Path(tools.ninja).as_posix()}") if toolchain.cxx else ()
    compilers = {"CC": toolchain.cc, "CXX": toolchain.cxx} if toolchain.cxx else {}
    compilers |= {"CUDACXX": toolchain.nvcc} if toolchain.nvcc else {}
    # Trees before May 2025 have the programs among the examples, later ones among the tools.
    examples = "OFF" if (tree / "tools" / "quantize").is_dir() else "ON"
    argv = (tools.cmake, "-S", str(tree), "-B", str(out), *how, *tools.options, f"-DLLAMA_BUILD_EXAMPLES={examples}")
    return Command(argv, env=variables(**compilers, GIT_CEILING_DIRECTORIES=str(tree.parent)))


def build_command(cmake: str, out: Path, wanted: tuple[str, ...], jobs: int) -> Command:
    """The call that compiles some programs, with so many compilers at a time."""
    argv = (cmake, "--build", str(out), "--config", "Release", "--parallel", str(jobs), "--target", *wanted)
    return Command(argv, env=variables(NINJA_STATUS="[%f/%t] ", GIT_CEILING_DIRECTORIES=str(out.parent)))


def jobs(asked: int, host: Host) -> int:
    """How many compilers run at a time: as many as were asked for, or as cores and memory allow."""
    return asked or max(1, min(host.cores, host.memory // BYTES_PER_JOB))


def progress_of(line: str) -> str:
    """What a line of Ninja's says about how far it is: "12/345", or nothing."""
    found = re.match(r"\[\s*(\d+)/(\d+)\]", line)
    return f"{found[1]}/{found[2]}" if found else ""


def explain(tail: str, code: int = 1) -> tuple[str, str]:
    """The likely cause and the remedy for the end of a build and its last lines; two empty texts when nobody knows."""
    cause, remedy = diagnose.machine(code, tail)
    known = matched(tail, table("binaries", "compile"))
    return (cause, f"{remedy}; what is compiled already is kept") if remedy else known


def build(tools: Tools, tree: Path, out: Path, dest: Path, parallel: int, log: Path, tell: Callable[[str], None]) -> None:
    """Configure, compile and put the programs into `dest`; what was compiled stays in `out` for another try after a failure."""
    programs = targets(defined(tree))
    if not programs:
        raise OrchestrateError("this llama.cpp has no programs that could be built", "choose a tag from b3878 on")
    tell(f"configuring with {tools.toolchain.said()}")
    try:
        process.stream(configure_command(tools, tree, out), log)
    except CommandFailed as error:
        remove(out)  # a cache of CMake's remembers what it did not find
        raise _failed(error, "CMake cannot configure llama.cpp here") from error
    try:
        process.stream(build_command(tools.cmake, out, programs, parallel), log, lambda line: _tell_progress(line, tell))
    except CommandFailed as error:
        raise _failed(error, "llama.cpp does not compile here") from error
    _collect(out / "bin", dest, programs)


def _tell_progress(line: str, tell: Callable[[str], None]) -> None:
    if now := progress_of(line):
        tell(now)


def _failed(error: CommandFailed, what: str) -> CommandFailed:
    cause, remedy = explain(f"{error.message}\n{error.tail}", error.code)
    if error.code < 0:
        return error.retold(f"{what}: {error.message}", remedy or "run it again with --jobs 1, or free some memory")
    # The first thing that a compiler minds is the point; what follows from it comes later.
    told = re.search(r"(?m)^.*\berror: .*$|^CMake Error.*\n\s*.*$", error.tail)
    words = " ".join(told[0].split()) if told else error.tail
    message = diagnose.pointed(f"{what} ({cause})" if cause else what, words)
    hint = remedy or "the log holds the whole output; another tag or compiler may do"
    return error.retold(message, hint)


def _collect(folder: Path, dest: Path, wanted: tuple[str, ...]) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    made = {path.stem if path.suffix == ".exe" else path.name: path for path in folder.rglob("*") if path.is_file()}
    if lacking := [name for name in wanted if name not in made]:
        raise OrchestrateError(f"the build ended well, but made no {', '.join(lacking)}", "the log holds its output")
    for name in wanted:
        shutil.copy2(made[name], dest / made[name].name)
