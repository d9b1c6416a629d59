"""The stage as fixtures: servers on loopback with real content behind them, and the settings that point at them."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.system import host
from tests.support import TAG
from tests.support.stage.github import GitHub
from tests.support.stage.github import git
from tests.support.stage.hub import Hub
from tests.support.stage.uploads import UploadHub


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity of a plain machine, which the archive fits."""
    found = host.Host(
        system="linux" if host.system() == "linux" else "macos", arch="x64", libc="glibc 2.36", cores=2, memory=8 * 10**9
    )
    monkeypatch.setattr("llamacpp_orchestrator.lock.resolve.this_host", lambda: found)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Callable[[str], Path]:
    """The real tree of the tag as a repository like upstream's, of a time, with files besides that nobody should fetch."""
    root = tmp_path_factory.mktemp("git")

    def make(time: str) -> Path:
        place = root / "ggml-org" / "llama.cpp"
        if not place.exists():
            shutil.copytree(shared_cache / "source" / f"package-{TAG}", place)
            (place / "src").mkdir()
            (place / "src" / "llama.cpp").write_bytes(os.urandom(300_000))
            for words in (("init", "-q", "-b", "master"), ("add", "-A"), ("commit", "-q", "-m", "one"), ("tag", TAG)):
                git(*words, at=place, GIT_COMMITTER_DATE=time)
            git("config", "uploadpack.allowFilter", "true", at=place)
        return root

    return make


@pytest.fixture
def github(
    world: Path,
    repository: Callable[[str], Path],
    orchestrate: Callable[..., Any],
    job: Callable[..., Path],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[GitHub]:
    """A mirror of github.com and of its API, with the real tree behind it."""
    first = job(str(data / "tiny-llama"), name="first.yaml", binaries={"backend": "none"})
    assert orchestrate("setup", first).code == 0
    lock = lock_file.read(lock_file.path_for(first))
    assert lock
    # Of the same time as the package, the environment is that of the package: another takes half a minute.
    root = repository(lock.llama_cpp.time)
    # Some test before may have had it without.
    git("config", "uploadpack.allowFilter", "true", at=root / "ggml-org" / "llama.cpp")
    with GitHub(root) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        for name in ("ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_GITHUB_API_URL"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git")
        yield server
        server.shutdown()


@pytest.fixture
def hub(world: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that holds the small Llama as org/m, with what nobody should download beside it."""
    with Hub() as server:
        server.files = {path.name: path.read_bytes() for path in (data / "tiny-llama").iterdir()}
        server.files |= {
            "original/consolidated.00.pth": b"x" * 5000,
            "onnx/model.onnx": b"x" * 5000,
            "pytorch_model.bin": b"x" * 5000,
        }
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRET")
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture
def uploads(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """A hub that takes uploads, and may have the user's token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)  # which the driver changes, as it finds a hub
    with UploadHub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRET")
        monkeypatch.setenv("ORCHESTRATE_TOKEN_HOSTS", "127.0.0.1")
        yield server
        server.over.set()
        server.shutdown()
