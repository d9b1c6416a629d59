"""Fault 83, a signal in every step: the exit code says which, no child lives on, nothing is left, and the next run ends well."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.util.store import beside
from tests.support.answer import Answer
from tests.support.folders import remains
from tests.support.programs import SLOW
from tests.support.stage.github import GitHub
from tests.support.stage.github import release
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]

ELSEWHERE = {83: "jobs/run_test.py::test_a_signal_ends_everything_and_the_next_run_goes_on"}  # all three while it converts
POLL_SECONDS, DEADLINE_SECONDS = 0.02, 60.0
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
RELEASED = pytest.mark.skipif(platform.machine() != "x86_64", reason="the release has an archive for one kind of machine")


def running(part: str) -> list[str]:
    """The command lines of living processes that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(encoding="utf-8", errors="replace").replace("\0", " "))
    return [line for line in found if part in line]


def interrupt(number: signal.Signals, there: Callable[[], Any], world: Path, *argv: object) -> str:
    """Send a command a signal as soon as something is there; it ends as it must, and no child of it is left."""
    words = [sys.executable, "-m", "llamacpp_orchestrator", *map(str, argv)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not there() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    child.send_signal(number)
    said, _ = child.communicate(timeout=30)
    assert child.returncode == 128 + number, said
    assert "Traceback" not in said and said.endswith("stopped; run the same command again to go on\n"), said
    assert running(str(world)) == []
    return said


def hidden(world: Path) -> list[Path]:
    """What a command that was ended must not leave beside its outputs."""
    return remains(world, also=("dist/.*",))


@pytest.fixture
def ready(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> Path:
    """A job with its lock, for which tree and environment are in the session's cache."""
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"}, binaries={"backend": "none"})
    assert orchestrate("setup", file).code == 0
    return file


@pytest.fixture
def silent() -> Iterator[tuple[str, list[Any]]]:
    """A server that takes calls and never answers: its address, and the calls."""
    calls: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    calls.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
        for call in calls:
            call.close()


@pytest.mark.parametrize(
    ("number", "step", "names"),
    [
        (signal.SIGHUP, "source", ("ORCHESTRATE_GITHUB_URL",)),
        (signal.SIGTERM, "environment", ("UV_DEFAULT_INDEX",)),
        (signal.SIGINT, "binaries", ("ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_GITHUB_API_URL")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_83_while_a_server_is_silent(
    number: signal.Signals,
    step: str,
    names: tuple[str, ...],
    orchestrate: Orchestrate,
    job: Job,
    ready: Path,
    silent: tuple[str, list[Any]],
    data: Path,
    world: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = ready.with_name("job.lock.yaml")
    kept = lock.read_bytes()
    with monkeypatch.context() as cut:
        for name in names:
            cut.setenv(name, silent[0])
        cut.setenv("PIP_CONFIG_FILE", os.devnull)
        if step == "binaries":
            job(str(data / "tiny-llama"), binaries={"backend": "cpu"})
        else:
            cut.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git" if step == "source" else "pypi")
            lock.unlink()
        interrupt(number, lambda: silent[1], world, "setup", ready)
    assert not [path for path in (shared_cache / "source").iterdir() if path.is_dir() and not beside(path).exists()]
    assert lock.exists() == (step == "binaries") and hidden(world) == []
    job({"source": str(data / "tiny-llama"), "outtype": "f16"}, binaries={"backend": "none"})
    assert orchestrate("setup", ready).code == 0 and lock.read_bytes() == kept


@pytest.mark.slow
def test_83_while_the_environment_is_installed(
    orchestrate: Orchestrate, ready: Path, world: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = world / "cache"
    cache.mkdir()
    shutil.copy(shared_cache / "CACHEDIR.TAG", cache)
    (cache / "source").symlink_to(shared_cache / "source")
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(cache))
    interrupt(signal.SIGTERM, lambda: list(cache.glob("environments/*/venv/lib/*/site-packages/*")), world, "setup", ready)
    assert not list((cache / "environments").iterdir())
    assert orchestrate("setup", ready).code == 0 and len(list(cache.glob("environments/*.complete.json"))) == 1


def test_83_while_a_model_is_downloaded(orchestrate: Orchestrate, job: Job, ready: Path, hub: Hub, world: Path) -> None:
    file = job({"source": "org/m", "name": "m", "outtype": "f16"})
    hub.fault, hub.files["README.md"] = "stall", b"in no cache yet"
    interrupt(signal.SIGINT, lambda: [path for path in hub.seen if path.startswith("GET /store/")], world, "run", file)
    assert hidden(world) == [] and not list((world / "hf").rglob("*.incomplete"))
    hub.fault = ""
    assert orchestrate("run", file).code == 0


@pytest.mark.slow
@RELEASED
def test_83_while_a_program_of_the_release_runs(
    orchestrate: Orchestrate,
    job: Job,
    ready: Path,
    github: GitHub,
    data: Path,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "pypi")
    github.archive = release(SLOW.replace("{0}", str(world)))
    wait, outputs = world / "wait", world / "dist"
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16", "quantize": ["Q8_0"]}, binaries={"backend": "cpu"})

    def at(name: str) -> Callable[[], list[str]]:
        return lambda: [line for line in running(f"/{name} ") if str(world) in line and str(sandbox.LAYER) not in line]

    wait.touch()
    monkeypatch.setenv("ORCHESTRATE_LIMIT_MINUTES", "5")
    interrupt(signal.SIGHUP, at("llama-cli"), world, "run", file)
    assert hidden(world) == []
    wait.unlink()
    assert orchestrate("run", file).code == 0
    before = {path.name: path.read_bytes() for path in outputs.glob("*.gguf")}
    wait.touch()
    # Each signal ends the check of an output, which is no step of a run.
    for number in SIGNALS:
        interrupt(number, at("llama-cli"), world, "verify", "--level", "load", outputs / "tiny-llama-f16.gguf")
    # The unquantized file is current, so that the next thing to run is the quantizer.
    (outputs / "tiny-llama-Q8_0.gguf").unlink()
    interrupt(signal.SIGTERM, at("llama-quantize"), world, "run", file)
    assert hidden(world) == [] and not (outputs / "tiny-llama-Q8_0.gguf").exists()
    wait.unlink()
    assert orchestrate("run", file).code == 0
    assert {path.name: path.read_bytes() for path in outputs.glob("*.gguf")} == before
    assert orchestrate("verify", "--level", "load", outputs / "tiny-llama-f16.gguf").code == 0
