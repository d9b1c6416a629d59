"""Jobs whose outputs go to an address: made, stored, proven, brought back, and what becomes of failures and kills."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from llamacpp_orchestrator.remote_outputs import transfer
from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.util.hashing import file_sha256
from tests.support import ROOT
from tests.support import shelf
from tests.support.answer import Answer
from tests.support.folders import sums
from tests.support.shelf import Shelf
from tests.support.stage.uploads import UploadHub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
ADAPTER = "tiny-llama-lora-a-lora-f16.gguf"
RECEIPT = f"{ADAPTER}.receipt.json"
STORED = [f"team/{ADAPTER}", f"team/{RECEIPT}"]


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    Shelf.empty()
    yield
    Shelf.empty()


@pytest.fixture
def mirrors(shared_cache: Path) -> Iterator[Path]:
    """Where this machine keeps what it knows of addresses; nothing at first."""
    shutil.rmtree(shared_cache / "outputs", ignore_errors=True)
    yield shared_cache / "outputs"


@pytest.fixture
def adapter(job: Job, data: Path, mirrors: Path) -> Path:
    """A job that makes one small file, at an address."""
    model = {"source": str(data / "tiny-llama"), "outtype": "none", "loras": [str(data / "lora-a")]}
    return job(model, output="shelf://team", binaries={"backend": "none"})


def weights(mirrors: Path) -> list[str]:
    return [path.name for path in mirrors.rglob("*.gguf")]


def test_a_job_at_an_address_is_made_stored_and_current_on_every_machine(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, mirrors: Path
) -> None:
    loras = [str(data / "lora-a")]
    models = [{"source": str(data / "tiny-llama"), "outtype": ["f16"], "outfile": "sub/{name}-{type}.gguf", "loras": loras}]
    file = job(*models, output="shelf://team/llama", binaries={"backend": "none"})
    first = orchestrate("run", file, "--json")
    assert first.code == 0, first.err
    made = first.json()
    names = ["shelf://team/llama/sub/tiny-llama-f16.gguf", f"shelf://team/llama/{ADAPTER}"]
    assert [output["path"] for output in made["outputs"]] == names and str(mirrors) not in json.dumps(made["outputs"])
    assert Shelf.names() == sorted(name.removeprefix("shelf://") + end for name in names for end in ("", ".receipt.json"))
    receipt = json.loads(Shelf.content(f"team/llama/{RECEIPT}"))
    assert receipt["job"] == "" and str(world) not in json.dumps(receipt) and "shelf" not in json.dumps(receipt)
    assert not weights(mirrors)
    here = job(*models, output="dist", name="here.yaml", binaries={"backend": "none"})
    assert orchestrate("run", here).code == 0
    for name in names:
        plain = (world / "dist" / name.removeprefix("shelf://team/llama/")).read_bytes()
        assert Shelf.content(name.removeprefix("shelf://")) == plain
    shutil.rmtree(mirrors)
    Shelf.asked.clear()
    again = orchestrate("run", file, "--json")
    assert again.code == 0 and {output["status"] for output in again.json()["outputs"]} == {"current"}
    assert {call for call, _ in Shelf.asked} == {"ls", "cat"} and not weights(mirrors)


def test_a_second_look_reads_no_receipt_again(orchestrate: Orchestrate, adapter: Path) -> None:
    assert orchestrate("run", adapter).code == 0
    Shelf.asked.clear()
    assert orchestrate("run", adapter).code == 0
    assert {call for call, _ in Shelf.asked} == {"ls"}


@pytest.mark.parametrize("gone", [ADAPTER, RECEIPT])
def test_what_is_gone_there_is_stored_again(orchestrate: Orchestrate, adapter: Path, gone: str) -> None:
    assert orchestrate("run", adapter).code == 0
    before = Shelf.content(f"team/{ADAPTER}")
    del Shelf.store[f"/team/{gone}"]
    answer = orchestrate("run", adapter)
    assert answer.code == 0 and f"done    store {ADAPTER}" in answer.err
    assert Shelf.names() == STORED and Shelf.content(f"team/{ADAPTER}") == before
    assert ("done    convert" in answer.err) == (gone == ADAPTER)


@pytest.mark.parametrize("content", [b"mine", b""])
def test_a_file_that_we_did_not_write_stays(orchestrate: Orchestrate, adapter: Path, content: bytes) -> None:
    fsspec.filesystem("shelf").pipe(f"/team/{ADAPTER}", content)
    answer = orchestrate("run", adapter)
    assert answer.code == 2 and f"shelf://team/{ADAPTER} exists already" in answer.err and "--force" in answer.err
    assert Shelf.names() == STORED[:1] and Shelf.content(STORED[0]) == content
    assert orchestrate("run", adapter, "--force").code == 0 and Shelf.names() == STORED


def test_a_file_that_was_changed_there_stays(orchestrate: Orchestrate, adapter: Path) -> None:
    assert orchestrate("run", adapter).code == 0
    fsspec.filesystem("shelf").pipe(f"/team/{ADAPTER}", b"mine")
    answer = orchestrate("run", adapter)
    assert answer.code == 2 and "was changed after orchestrate made it" in answer.err
    assert Shelf.content(STORED[0]) == b"mine"


FAULTS = {
    "full": ("put", shelf.full, 1, "is full"),
    "read-only": ("put", shelf.read_only, 1, "refused: Access Denied"),
    "nobody": ("ls", shelf.unknown, 1, "asks who you are"),
    "away": ("ls", shelf.away, 1, "could not be reached"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_written_to_is_told_before_anything_is_made(orchestrate: Orchestrate, adapter: Path, name: str) -> None:
    call, fault, code, words = FAULTS[name]
    Shelf.faults[call] = fault
    answer = orchestrate("run", adapter)
    assert answer.code == code and words in answer.err and "hint: " in answer.err and "convert" not in answer.err
    assert "Traceback" not in answer.err and Shelf.names() == []
    Shelf.faults.clear()
    assert orchestrate("run", adapter).code == 0 and Shelf.names() == STORED


@pytest.mark.parametrize("call", ["put", "after put", "mv"])
def test_what_fails_once_is_tried_again(orchestrate: Orchestrate, adapter: Path, call: str) -> None:
    left = [shelf.away]

    def fault(path: str) -> None:
        # Not the first small file, which only shows that something can be written.
        if len([one for one in Shelf.asked if one[0] == "rm"]) and ".part" in path and left and len(Shelf.asked) > 12:
            left.pop()(path)

    Shelf.faults[call] = fault
    assert orchestrate("run", adapter).code == 0 and Shelf.names() == STORED


def test_other_bytes_are_found_by_reading_back_and_no_receipt_vouches_for_them(orchestrate: Orchestrate, adapter: Path) -> None:
    Shelf.flipped.add(f"team/{ADAPTER}")
    answer = orchestrate("run", adapter)
    assert answer.code == 1 and "with sha256" in answer.err and "was sent" in answer.err
    assert f"team/{RECEIPT}" not in Shelf.names()
    Shelf.flipped.clear()
    healed = orchestrate("run", adapter)
    assert healed.code == 0 and "done    convert" not in healed.err and Shelf.names() == STORED


# Before it comes to the output, the run has sent a small file, to see that it may, and what says that an output is coming.
KILLS = ["put 2", "mv 2", "before put 3", "put 3", "before mv 3", "mv 3", "cat 2", "put 4", "before mv 4", "mv 4", "rm 2"]


@pytest.fixture
def killed(orchestrate: Orchestrate, job: Job, data: Path, world: Path, mirrors: Path) -> Callable[[str], Answer]:
    """Run a job in a process of its own, which dies in the middle of a call; what it makes is made, and not stored yet."""
    model = {"source": str(data / "tiny-llama"), "outtype": "none", "loras": [str(data / "lora-a")]}
    file = job(model, output=f"file://{world.as_posix()}/store", binaries={"backend": "none"})
    (world / "store").mkdir()
    assert orchestrate("run", file).code == 0
    file.write_text(file.read_text().replace("file://", "deadly://"))
    names = [f"{scheme}://{world.as_posix()}/store" for scheme in ("file", "deadly")]
    former, mirror = (mirrors / storage_address.key(name) for name in names)
    mirror.mkdir()
    record = json.loads((former / RECEIPT).read_text())["files"][0]
    shutil.move(world / "store" / ADAPTER, mirror / ADAPTER)
    os.utime(mirror / ADAPTER, ns=(record["mtime_ns"], record["mtime_ns"]))
    shutil.copy(former / RECEIPT, mirror)
    shutil.rmtree(world / "store")
    (world / "store").mkdir()

    def run(death: str) -> Answer:
        argv = [sys.executable, "-m", "tests.support.deadly", "run", str(file), "--no-progress"]
        env = {**os.environ, "TEST_DEATH": death, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.mark.parametrize("death", KILLS)
def test_the_next_run_heals_a_kill(killed: Callable[[str], Answer], world: Path, mirrors: Path, death: str) -> None:
    assert killed(death).code == 137
    if (world / "store" / RECEIPT).exists():  # then all is there
        record = json.loads((world / "store" / RECEIPT).read_text())["files"][0]
        assert file_sha256(world / "store" / ADAPTER) == record["sha256"]
    healed = killed("")
    assert healed.code == 0 and "done    convert" not in healed.err, healed.err
    record = json.loads((world / "store" / RECEIPT).read_text())["files"][0]
    assert file_sha256(world / "store" / ADAPTER) == record["sha256"]
    assert [name for name in sorted(sums(world / "store", "*")) if not name.endswith(".part")] == [ADAPTER, RECEIPT]
    again = killed("")
    assert again.code == 0 and "current convert" in again.err and not weights(mirrors)


def test_a_kill_before_the_receipt_is_healed_without_what_was_made(
    killed: Callable[[str], Answer], world: Path, mirrors: Path
) -> None:
    assert killed("before put 4").code == 137 and not (world / "store" / RECEIPT).exists()
    shutil.rmtree(mirrors)
    healed = killed("")
    assert healed.code == 0 and f"done    store {ADAPTER}" in healed.err and "done    convert" not in healed.err
    assert sorted(sums(world / "store", "*")) == [ADAPTER, RECEIPT]


def test_what_lies_at_an_address_alone_is_published_and_reported(
    orchestrate: Orchestrate, job: Job, data: Path, uploads: UploadHub, mirrors: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "none", "loras": [str(data / "lora-a")]}
    file = job(model, output="shelf://team", publish="tester/{name}-GGUF", binaries={"backend": "none"})
    assert orchestrate("run", file).code == 0
    shutil.rmtree(mirrors)
    answer = orchestrate("publish", file, "--create", "--yes", "--json")
    assert answer.code == 0, answer.err
    sent = uploads.head(answer.json()["publish"][0]["repo"]).files
    assert (sent[ADAPTER], sent[RECEIPT]) == (Shelf.content(STORED[0]), Shelf.content(STORED[1])) and not weights(mirrors)
    assert orchestrate("report", file).code == 0
    page = (world / "job-report.html").read_text(encoding="utf-8")
    assert ADAPTER in page and "current" in page and str(mirrors) not in page
    assert f"current convert {ADAPTER}" in orchestrate("plan", file).out
    assert orchestrate("verify", file).out == f"ok      shelf://team/{ADAPTER}\n"


def test_offline_nothing_is_asked(orchestrate: Orchestrate, adapter: Path) -> None:
    assert orchestrate("run", adapter).code == 0
    Shelf.asked.clear()
    answer = orchestrate("run", adapter, "--offline")
    assert answer.code == 1 and "--offline: what lies at shelf://team is not on this machine" in answer.err
    assert not Shelf.asked


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://KEY:se/cret@bucket/x", "holds a credential"),
        ("odd://x", "nothing here knows the protocol odd://"),
        ("https://x/y", "nothing can"),
    ],
)
def test_an_address_that_is_none_is_told_first(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, mirrors: Path, address: str, words: str
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"}, output=address, binaries={"backend": "none"})
    answer = orchestrate("run", file)
    assert answer.code == 2 and words in answer.err and "cret" not in answer.err.replace("credential", "")
    assert not file.with_suffix(".lock.yaml").exists() and not mirrors.exists()


def test_a_folder_behind_an_address(orchestrate: Orchestrate, job: Job, data: Path, world: Path, mirrors: Path) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "none", "loras": [str(data / "lora-a")]}
    file = job(model, output=f"file://{world.as_posix()}/store", binaries={"backend": "none"})
    assert orchestrate("run", file).code == 0
    assert sorted(sums(world / "store", "*")) == [ADAPTER, RECEIPT]
