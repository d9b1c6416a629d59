"""A job whose outputs go to S3: the real client against moto, with faults between."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs  # type: ignore[import-untyped]

from llamacpp_orchestrator.remote_outputs import transfer
from llamacpp_orchestrator.storage import remote
from llamacpp_orchestrator.system.command import clean_env
from tests.support.answer import Answer
from tests.support.stage import s3

Orchestrate = Callable[..., Answer]
ADAPTER = "tiny-llama-lora-a-lora-f16.gguf"
STORED = [f"models/team/{ADAPTER}", f"models/team/{ADAPTER}.receipt.json"]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, s3.Faulty]]:
    """The client of an empty store, and what stands before that."""
    with s3.serving() as (url, faulty):
        for name, value in {**s3.KEYS, "AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "2"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(transfer, "PAUSE", 0.0)
        remote.place.cache_clear()
        client = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        client.mkdir("models")
        yield client, faulty
        remote.place.cache_clear()


@pytest.fixture
def adapter(job: Callable[..., Path], data: Path, tmp_path: Path) -> Path:
    """A job that makes one small file."""
    model = {"source": str(data / "tiny-llama"), "outtype": "none", "loras": [str(data / "lora-a")]}
    return job(model, output="s3://models/team", binaries={"backend": "none"})


@pytest.fixture(autouse=True)
def mirrors(shared_cache: Path) -> None:
    """This machine knows of no address."""
    import shutil

    shutil.rmtree(shared_cache / "outputs", ignore_errors=True)


def test_what_is_stored_is_proven_and_current(orchestrate: Orchestrate, adapter: Path, served: tuple[Any, s3.Faulty]) -> None:
    first = orchestrate("run", adapter, "--json")
    assert first.code == 0, first.err
    assert [output["path"] for output in first.json()["outputs"]] == [f"s3://models/team/{ADAPTER}"]
    assert served[0].find("models") == STORED
    assert "stage" not in json.dumps(served[0].cat_file(STORED[1]).decode())
    assert "current convert" in orchestrate("run", adapter).err
    for what in (adapter, "s3://models/team", f"s3://models/team/{ADAPTER}", f"s3://models/team/{ADAPTER}.receipt.json"):
        answer = orchestrate("verify", what)
        assert answer.code == 0 and answer.out == f"ok      s3://models/team/{ADAPTER}\n", answer.err
    served[0].pipe(STORED[0], served[0].cat_file(STORED[0])[:-1] + b"x")
    spoiled = orchestrate("verify", adapter)
    assert spoiled.code == 1 and "has sha256" in spoiled.out
    served[0].rm(STORED[1])
    assert orchestrate("verify", adapter).code == 2


@pytest.mark.parametrize(
    ("method", "fault"), [("PUT", "after"), ("PUT", "cut"), ("GET", "cut"), ("GET", "flip"), ("HEAD", "after")]
)
def test_a_fault_that_passes_is_survived(
    orchestrate: Orchestrate, adapter: Path, served: tuple[Any, s3.Faulty], method: str, fault: str
) -> None:
    served[1].faults[method] = fault, 1
    answer = orchestrate("run", adapter)
    assert answer.code == 0, answer.err
    assert served[0].find("models") == STORED and orchestrate("verify", adapter).code == 0


@pytest.mark.parametrize(
    ("method", "fault", "words"),
    [
        ("PUT", "denied", "refused: Access Denied"),
        ("PUT", "full", f"s3://models/team/{ADAPTER} "),
        ("GET", "flip", "other bytes"),
    ],
)
def test_a_fault_that_stays_is_told_and_healed(
    orchestrate: Orchestrate, adapter: Path, served: tuple[Any, s3.Faulty], method: str, fault: str, words: str
) -> None:
    served[1].faults[method] = fault, 1000
    answer = orchestrate("run", adapter)
    assert answer.code == 1 and words in answer.err and "hint: " in answer.err and "Traceback" not in answer.err, answer.err
    assert STORED[1] not in served[0].find("models")
    served[1].faults.clear()
    healed = orchestrate("run", adapter)
    assert healed.code == 0 and "done    convert" not in healed.err and served[0].find("models") == STORED


def test_nobody_is_told_how_to_log_in(
    orchestrate: Orchestrate, adapter: Path, served: tuple[Any, s3.Faulty], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in s3.KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    answer = orchestrate("run", adapter)
    assert answer.code == 1 and "asks who you are" in answer.err and "AWS_PROFILE" in answer.err, answer.err
    assert "convert" not in answer.err


def test_no_server_and_no_bucket(
    orchestrate: Orchestrate, adapter: Path, served: tuple[Any, s3.Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    served[0].rmdir("models")
    answer = orchestrate("run", adapter)
    assert answer.code == 1 and "s3://models/team is not there" in answer.err and "convert" not in answer.err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote.place.cache_clear()
    answer = orchestrate("run", adapter)
    assert answer.code == 1 and "could not be reached" in answer.err and "convert" not in answer.err


def test_converters_see_no_key(served: tuple[Any, s3.Faulty]) -> None:
    assert "AWS_SECRET_ACCESS_KEY" in os.environ
    assert not [name for name, _ in clean_env() if name.startswith(("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_"))]
