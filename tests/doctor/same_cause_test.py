"""Each thing that can be broken on a machine: doctor names it, and a job that meets it names the same."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from llamacpp_orchestrator.system import disk_trial
from tests.support import NOWHERE
from tests.support import ROOT
from tests.support import disks
from tests.support import server
from tests.support.answer import Answer

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
root = pytest.mark.skipif(not disks.possible(), reason="only root can make a disk")
OWN_SITE = {"binaries": {"backend": "none"}}


def problems(answer: Answer) -> dict[str, dict[str, Any]]:
    """What doctor --json calls a problem, by name."""
    return {line["name"]: line for line in answer.json() if not line["ok"]}


@root
@pytest.mark.parametrize(
    ("options", "cause", "word"),
    [
        (("noexec",), "noexec", "noexec"),
        (("ro",), "read-only", "read-only file system"),
        ((), "space", "free some space|no space left|cannot hold"),
    ],
)
def test_a_disk_that_cannot_be_the_cache(
    options: tuple[str, ...], cause: str, word: str, orchestrate: Orchestrate, job: Job, data: Path, world: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = job(str(data / "tiny-llama"), **OWN_SITE)
    assert orchestrate("lock", file).code == 0
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "disk" / "cache"))
    with disks.mounted(world / "disk", 3000 if options else 1, *options):
        line = problems(orchestrate("doctor", file, "--json"))["cache"]
        assert line["cause"] == cause and "ORCHESTRATE_CACHE_DIR" in line["remedy"] and line["needed"]
        failed = orchestrate("setup", file)
        assert not list((world / "disk").glob(f"{disk_trial.PREFIX}*"))
    assert failed.code == 1 and re.search(word, failed.err), failed.err
    assert "ORCHESTRATE_CACHE_DIR" in failed.err


@pytest.mark.parametrize(("status", "cause"), [(401, "login"), (403, "forbidden")])
def test_an_index_that_refuses(
    status: int, cause: str, orchestrate: Orchestrate, job: Job, data: Path, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the package of the tree for us, and nothing for uv."""
    file = job(str(data / "tiny-llama"), **OWN_SITE)
    assert orchestrate("lock", file).code == 0
    with server.Server() as index:
        index.otherwise = server.answer(status)
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        for name in ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
            monkeypatch.setenv(name, index.url)
        line = problems(orchestrate("doctor", file, "--json"))["packages"]
        assert line["cause"] == cause and str(status) in line["said"]
        failed = orchestrate("lock", file, "--upgrade", "environment")
    assert failed.code == 1 and str(status) in failed.err, failed.err


def test_a_certificate_that_nobody_trusts(
    orchestrate: Orchestrate, job: Job, data: Path, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job(str(data / "tiny-llama"), **OWN_SITE)
    assert orchestrate("lock", file).code == 0
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with server.Server() as index:
        index.socket = context.wrap_socket(index.socket, server_side=True)
        address = f"https://localhost:{index.server_port}"
        for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
            monkeypatch.setenv(name, address)
        line = problems(orchestrate("doctor", file, "--json"))["packages"]
        failed = orchestrate("lock", file, "--upgrade", "environment")
    assert line["cause"] == "certificate" and "SSL_CERT_FILE" in line["remedy"]
    assert failed.code == 1 and "SSL_CERT_FILE" in failed.err, failed.err


def test_a_proxy_that_is_gone(
    orchestrate: Orchestrate, job: Job, data: Path, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://me:secret@127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    file = job({"source": "org/m"}, binaries={"backend": "cpu"})
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    answer = orchestrate("doctor", file)
    shown = [line for line in answer.out.splitlines() if line.startswith("problem")]
    assert answer.code == 1 and "secret" not in answer.out
    assert [line.split()[1] for line in shown] == ["proxy"], shown
    assert re.search("(?i)proxy", orchestrate("lock", file).err)


def test_no_host_answers(orchestrate: Orchestrate, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.2:9")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("ORCHESTRATE_TORCH_INDEX", "http://127.0.0.3:9")
    file = job({"source": "org/m"}, binaries={"backend": "cpu"})
    answer = orchestrate("doctor", file)
    shown = [line.split()[1] for line in answer.out.splitlines() if line.startswith("problem")]
    assert answer.code == 1 and shown == ["network"] and "there seems to be no network" in answer.out
    assert set(problems(orchestrate("doctor", file, "--json"))) >= {"network", "llama.cpp", "org/m", "packages"}
    assert "refused" in orchestrate("lock", file).err or NOWHERE in orchestrate("lock", file).err


def test_the_document_can_be_pasted(orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRET")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:SECRETSECRET@127.0.0.1:9/simple")
    answer = orchestrate("doctor", "--json")
    lines = answer.json()
    assert {*lines[0]} == {"name", "ok", "said", "needed", "cause", "remedy", "place", "within"}
    names = {line["name"]: line["said"] for line in lines}
    assert {"orchestrate", "settings", "variables", "proxy", "certificates", "clock", "interpreter", "uv's cache"} <= {*names}
    assert "SECRET" not in answer.out and "Python" in names["orchestrate"] and "HF_TOKEN (set)" in names["variables"]
    assert all(line["cause"] and line["remedy"] for line in lines if not line["ok"] and not line["within"]), lines


def test_nothing_is_imported_by_two_threads() -> None:
    """Threads that import one library by different doors lock each other out."""
    script = """
import os, sys, threading
from llamacpp_orchestrator.commands import doctor
from llamacpp_orchestrator.system import settings
class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            late.append(name)
late = []
sys.meta_path.insert(0, Watch())
doctor.examine(None, settings.load(os.environ))
print(*late)
"""
    places = ("HF_ENDPOINT", "ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_GITHUB_API_URL", "PIP_INDEX_URL", "ORCHESTRATE_TORCH_INDEX")
    env = {**dict(os.environ), **dict.fromkeys(places, NOWHERE), "PYTHONPATH": str(ROOT), "ORCHESTRATE_CONFIG": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == []
