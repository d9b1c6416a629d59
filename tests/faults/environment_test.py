"""Faults of the Python environment, 66 to 72: no wheels for it, an interrupted install, an index that is not there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.util.store import beside
from tests.support import NOWHERE
from tests.support import TAG
from tests.support.answer import Answer
from tests.support.stage.github import git

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Told = Callable[..., str]
Tree = Callable[..., str]

ELSEWHERE = {
    69: "jobs/run_test.py::test_a_finished_job_needs_neither_cache_nor_network",  # everything cached
    72: "binaries/cmake_build_test.py::test_cmake_and_ninja_come_as_wheels_where_the_system_has_none",  # no uv on PATH
}


@pytest.fixture
def ready(orchestrate: Orchestrate, job: Job, data: Path) -> Path:
    """A job with its lock, for which tree and environment are in the session's cache."""
    file = job(str(data / "tiny-llama"), binaries={"backend": "none"})
    assert orchestrate("setup", file).code == 0
    return file


@pytest.fixture
def bare(ready: Path, world: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own that has the tree, and no environment."""
    cache = world / "cache"
    entry = Path("source", f"package-{TAG}")
    shutil.copytree(shared_cache / entry, cache / entry)
    shutil.copy(beside(shared_cache / entry), beside(cache / entry))
    shutil.copy(shared_cache / "CACHEDIR.TAG", cache)
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(cache))
    return cache


@pytest.fixture
def tree(ready: Path, world: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A repository with a tree of one's own making as a tag, and its address."""

    def make(tag: str, **files: str | None) -> str:
        place = world / "llama.cpp"
        if not place.exists():
            shutil.copytree(shared_cache / "source" / f"package-{TAG}", place)
            git("init", "-q", "-b", "master", at=place)
        for name, text in files.items():
            path = place / "requirements" / f"requirements-{name}.txt"
            path.unlink() if text is None else path.write_text(text, encoding="utf-8")
        for words in (("add", "-A"), ("commit", "-q", "-m", "one"), ("tag", tag)):
            git(*words, at=place)
        monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git")
        return place.as_uri()

    return make


def complete(cache: Path) -> list[Path]:
    return list((cache / "environments").glob("*.complete.json"))


@pytest.mark.slow
def test_66_a_python_without_wheels_and_one_that_has_them(orchestrate: Orchestrate, job: Job, data: Path, told: Told) -> None:
    asked = {"python": "3.13", "overrides": ["torch==2.13.0", "numpy==1.26.4"]}
    file = job(str(data / "tiny-llama"), environment=asked)
    answer = orchestrate("lock", file)
    told("66 no wheel for this Python", answer, code=2)
    assert not file.with_name("job.lock.yaml").exists()
    named = re.findall(r"3\.\d+", answer.err.rpartition("works with")[2])
    assert "3.12" in named and "3.13" not in named
    job(str(data / "tiny-llama"), environment=asked | {"python": "3.12"})
    assert orchestrate("lock", file).code == 0


def test_66_pins_that_contradict_each_other(orchestrate: Orchestrate, job: Job, data: Path, told: Told) -> None:
    file = job(str(data / "tiny-llama"), environment={"overrides": ["torch==2.13.0", "tqdm==99.0"]})
    told("66 no version at all", orchestrate("lock", file))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_67_a_kill_in_the_middle_of_the_installation(orchestrate: Orchestrate, ready: Path, bare: Path) -> None:
    child = subprocess.Popen([sys.executable, "-m", "llamacpp_orchestrator", "setup", str(ready)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(bare.glob("environments/*/venv/lib/*/site-packages/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL and not complete(bare)
    assert orchestrate("setup", ready).code == 0 and len(complete(bare)) == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a venv of Windows has a program there, no link")
def test_68_the_base_interpreter_is_gone(orchestrate: Orchestrate, ready: Path, bare: Path, world: Path) -> None:
    assert orchestrate("setup", ready).code == 0
    (python,) = bare.glob("environments/*/venv/bin/python")
    python.unlink()
    python.symlink_to(world / "gone" / "python3")
    assert not python.exists()
    assert orchestrate("setup", ready).code == 0 and len(complete(bare)) == 1
    assert subprocess.run([python, "-c", "import numpy"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["resolving", "installing"])
def test_69_an_index_that_is_not_there(
    part: str, orchestrate: Orchestrate, ready: Path, bare: Path, world: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = ready.with_name("job.lock.yaml")
    kept = lock.read_bytes()
    with monkeypatch.context() as cut:
        for name, value in (("UV_DEFAULT_INDEX", f"{NOWHERE}/simple"), ("UV_HTTP_RETRIES", "0"), ("PIP_FIND_LINKS", "")):
            cut.setenv(name, value)
        cut.setenv("PIP_CONFIG_FILE", os.devnull)
        cut.setenv("UV_CACHE_DIR", str(world / "uv"))
        if part == "resolving":
            lock.unlink()
        told(f"69 no index while {part}", orchestrate("setup", ready))
        assert not complete(bare) and lock.exists() == (part == "installing")
    lock.write_bytes(kept)
    assert orchestrate("setup", ready).code == 0 and complete(bare)


@pytest.mark.slow
def test_70_a_wheel_that_is_not_the_locked_one(orchestrate: Orchestrate, ready: Path, bare: Path, told: Told) -> None:
    lock = ready.with_name("job.lock.yaml")
    kept = lock.read_text(encoding="utf-8")
    found = re.search(r" *tqdm==[^\n]*\n(?: *--hash=[^\n]*\n?)+", kept)
    assert found
    lock.write_text(kept.replace(found[0], re.sub(r"sha256:\w{64}", f"sha256:{'0' * 64}", found[0])), encoding="utf-8")
    said = told("70 another hash", orchestrate("setup", ready))
    assert "network" not in said and not list((bare / "environments").iterdir())
    lock.write_text(kept, encoding="utf-8")
    assert orchestrate("setup", ready).code == 0


@pytest.mark.parametrize(
    ("fault", "files"),
    [
        ("71 a file is missing", {"convert_lora_to_gguf": None}),
        ("71 a nested file is missing", {"convert_lora_to_gguf": "-r ./gone.txt\n"}),
        ("71 a nested file outside", {"convert_lora_to_gguf": "-r ../../beside.txt\n"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_71_requirements_that_the_tag_lacks(
    fault: str, files: dict[str, str | None], orchestrate: Orchestrate, job: Job, data: Path, tree: Tree, told: Told, bare: Path
) -> None:
    file = job(str(data / "tiny-llama"), name="other.yaml", llama_cpp={"tag": "b7", "repo": tree("b7", **files)})
    assert "b7" in told(fault, orchestrate("lock", file)) and not file.with_name("other.lock.yaml").exists()


@pytest.mark.slow
def test_72_no_uv_on_path_is_no_fault(orchestrate: Orchestrate, ready: Path, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join(path for path in os.get_exec_path() if not shutil.which("uv", path=path)))
    assert orchestrate("setup", ready).code == 0


@pytest.mark.slow
def test_72_the_uv_that_came_with_us_is_gone(
    orchestrate: Orchestrate, ready: Path, bare: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> str:
        raise FileNotFoundError("/gone/bin/uv")

    with monkeypatch.context() as damaged:
        damaged.setattr("uv.find_uv_bin", gone)
        told("72 no uv at all", orchestrate("setup", ready))
        looked = orchestrate("doctor")
        assert looked.code == 0 and re.search(r"^problem +uv ", looked.out, re.MULTILINE)
    assert orchestrate("setup", ready).code == 0
