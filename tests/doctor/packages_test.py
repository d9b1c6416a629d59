"""uv asked as a job asks it: what an index refuses, and where an interpreter would come from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator.doctor import causes
from llamacpp_orchestrator.doctor import packages
from llamacpp_orchestrator.doctor import servers
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from tests.support import NOWHERE
from tests.support import server
from tests.support.answer import Answer
from tests.support.archives import zipped

HERE = Settings(cache=Path("unused"), index=Index())


@pytest.fixture
def index() -> Iterator[server.Server]:
    """A package index that answers as a test says."""
    with server.Server() as found:
        yield found


@pytest.fixture(autouse=True)
def none_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_OFFLINE", "UV_PYTHON_DOWNLOADS", "UV_PYTHON_INSTALL_MIRROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("status", "cause"), [(401, "login"), (403, "forbidden"), (404, ""), (500, "")])
def test_an_index_that_refuses_uv(status: int, cause: str, index: server.Server) -> None:
    index.otherwise = server.answer(status)
    with pytest.raises(CommandFailed) as caught:
        packages.resolved(index.url.replace("//", "//me:secret@"), HERE)
    assert (
        causes.of(caught.value) == cause
        and ("refuses uv" if cause else "uv says:") in caught.value.message
        and "secret" not in caught.value.message
    )
    assert any(headers.get("user-agent", "").startswith("uv/") for _, _, headers in index.seen)


def test_an_index_that_refuses_only_uv(index: server.Server) -> None:
    """As some mirrors do: everything of ours reads it, and every run fails."""

    def by_agent(request: server.Asked) -> None:
        refused = request.headers.get("User-Agent", "").startswith("uv/")
        server.answer(403 if refused else 200, b"<a href='numpy-1.0.tar.gz'>numpy-1.0.tar.gz</a>")(request)

    index.otherwise = by_agent
    assert "numpy, data from" in packages.listed(index.url, "numpy")
    with pytest.raises(CommandFailed, match="403"):
        packages.resolved(index.url, HERE)


def test_an_index_that_is_not_there() -> None:
    with pytest.raises(CommandFailed) as caught:
        packages.resolved(NOWHERE, HERE)
    assert causes.of(caught.value) == "refused"


def test_an_index_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "index.html").write_text("")
    assert packages.listed(tmp_path.as_uri(), "numpy").endswith("is a folder")
    with pytest.raises(CommandFailed):
        packages.resolved(tmp_path.as_uri(), HERE)


def test_an_index_of_no_file(index: server.Server) -> None:
    index.otherwise = server.answer(200, b"<html></html>")
    with pytest.raises(NetworkError, match="lists no file of torch"):
        packages.listed(index.url, "torch")


def test_the_python_that_is_here() -> None:
    assert f"Python {packages.RUNNING} of this machine: " in packages.interpreter(packages.RUNNING, HERE)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Python on this machine but ours, and none that uv has fetched."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("UV_PYTHON_PREFERENCE", "only-managed")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", "/nowhere/pythons")


OTHER = "3.14" if packages.RUNNING != "3.14" else "3.13"


def test_a_python_that_uv_would_fetch(absent: None, index: server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", index.url)
    with pytest.raises(NetworkError, match="uv cannot fetch it") as caught:
        packages.interpreter(OTHER, HERE)
    assert "UV_PYTHON_INSTALL_MIRROR" in caught.value.hint and f"install Python {OTHER}" in caught.value.hint
    assert causes.of(caught.value) == "missing"
    index.otherwise = server.answer(200, b"archive")
    assert f"Python {OTHER} is not on this machine; uv fetches it from 127.0.0.1" in packages.interpreter(OTHER, HERE)


@pytest.mark.parametrize("variable", ["UV_PYTHON_DOWNLOADS", "UV_OFFLINE"])
def test_a_python_that_uv_may_not_fetch(variable: str, absent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "never" if variable == "UV_PYTHON_DOWNLOADS" else "1")
    with pytest.raises(OrchestrateError, match="keeps uv from fetching it"):
        packages.interpreter(OTHER, HERE)


def test_a_python_that_nobody_has(absent: None) -> None:
    with pytest.raises(OrchestrateError, match="uv has none"):
        packages.interpreter("3.99", HERE)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_a_python_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = tmp_path / f"python{OTHER}"
    shim.write_text("#!/bin/sh\necho this is a shim of nothing >&2\nexit 127\n")
    shim.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", "/nowhere/pythons")
    with pytest.raises(CommandFailed, match="shim of nothing") as caught:
        packages.interpreter(OTHER, HERE)
    assert "environment.python" in caught.value.hint


def test_an_environment_of_the_users_own_lacks_what_a_run_says_it_lacks(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, world: Path
) -> None:
    process.capture(Command((sys.executable, "-m", "venv", "--without-pip", str(world / "mine"))))
    with pytest.raises(JobError) as caught:
        packages.own(world / "mine", world / "job.yaml")
    assert "lacks numpy, sentencepiece, torch" in caught.value.message
    looked = orchestrate("doctor", job(str(data / "tiny-llama"), environment={"path": "mine"}))
    assert looked.code == 1 and "lacks numpy, sentencepiece, torch" in looked.out and "environment" in looked.err


@pytest.mark.parametrize(
    ("wanted", "needs", "has"),
    [
        ("torch", "", True),
        ("torch==2.0", "\nRequires-Dist: nvidia-cublas; sys_platform == 'plan9'", True),
        ("torch", "\nRequires-Dist: nvidia-cublas", False),
        ("torch==2.0+cpu", "", False),  # as a lock has it that was made with PyTorch's index
    ],
)
def test_pytorchs_index_is_needed_where_the_other_has_only_gigabytes(wanted: str, needs: str, has: bool, tmp_path: Path) -> None:
    for name, more in (("torch", needs), ("nvidia_cublas", "")):
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0{more}\n".encode()
        kind = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        files = {"METADATA": metadata, "WHEEL": kind, "RECORD": b""}
        members = [(f"{name}-2.0.dist-info/{file}", content, 0o644, "") for file, content in files.items()]
        page = tmp_path / name.replace("_", "-") / "index.html"
        page.parent.mkdir()
        wheel = zipped(page.with_name(f"{name}-2.0-py3-none-any.whl"), *members)
        page.write_text(f"<a href='{wheel.name}'>{wheel.name}</a>")
    here = msgspec.structs.replace(HERE, index=Index(index_urls=(tmp_path.as_uri(),)))
    if has:
        assert "has torch without CUDA" in packages.torch(NOWHERE, wanted, packages.AT_HAND, here)
    else:
        with pytest.raises(NetworkError, match="refused"):
            packages.torch(NOWHERE, wanted, packages.AT_HAND, here)


@pytest.mark.parametrize(
    ("overrides", "locked", "line"),
    [
        ((), "", "torch"),
        (("numpy==2.0", "torch == 2.13.0"), "", "torch == 2.13.0"),
        (("torchvision==1.0",), "", "torch"),
        ((), "torch==2.13.0 ; sys_platform == 'plan9'\ntorch==2.13.0+cpu ; sys_platform != 'plan9'\n", "torch==2.13.0+cpu"),
        (("torch==2.13.0",), "numpy==2.0\n", "torch"),
    ],
)
def test_which_torch_is_asked_for(overrides: tuple[str, ...], locked: str, line: str) -> None:
    pin = EnvironmentPin(upstream="0" * 64, torch="cpu", python="3.11", requirements=locked) if locked else None
    assert servers.wanted_torch(overrides, pin) == line
