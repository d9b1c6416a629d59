"""Jobs on a real scheduler and real workers: the same bytes, and what is left when one of them goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llamacpp_orchestrator
from llamacpp_orchestrator.cluster import driver
from llamacpp_orchestrator.util.store import remove
from tests.support import NOWHERE
from tests.support import ROOT
from tests.support import disks
from tests.support.answer import Answer
from tests.support.cluster import Cluster
from tests.support.cluster import can_hide
from tests.support.folders import sums
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
QUICK = {"binaries": {"backend": "none"}}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")]


@pytest.fixture
def cluster(world: Path, tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    started = Cluster(folder)
    yield started
    started.close()


def model(data: Path, **keys: Any) -> dict[str, Any]:
    return {"source": str(data / "tiny-llama"), "outtype": ["f16", "q8_0"], **keys}


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    late = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < late, "it does not come"
        time.sleep(0.05)
    return value


def start(cluster: Cluster, file: Path) -> subprocess.Popen[bytes]:
    """The driver as a process of its own."""
    argv = [sys.executable, "-m", "llamacpp_orchestrator", "run", str(file), "--scheduler", str(cluster.place), "--json"]
    return subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def at_work(cluster: Cluster, orchestrate: Orchestrate, file: Path, name: str) -> tuple[subprocess.Popen[bytes], list[Any]]:
    """A driver whose one worker has begun with a job, and the programs that this one runs."""
    assert orchestrate("lock", file).code == 0
    cluster.join(name)
    run = start(cluster, file)
    return run, wait_for(lambda: cluster.children(name))


def test_the_same_bytes_and_receipts_as_on_one_machine(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    loras = [str(data / "lora-a"), str(data / "lora-b")]
    file = job(model(data, loras=loras), {"source": str(data / "all-MiniLM-L6-v2"), "outtype": "f16"}, **QUICK)
    assert orchestrate("run", file).code == 0
    here = {path: digest for path, digest in sums(world / "dist").items() if not str(path).endswith(".receipt.json")}
    receipts = {path.name: json.loads(path.read_text()) for path in (world / "dist").glob("*.receipt.json")}
    for path in (world / "dist").iterdir():
        path.unlink()
    for name in ("one", "two"):
        cluster.join(name, OMP_NUM_THREADS="1")
    logs = [cluster.folder / f"{name}.log" for name in ("one", "two")]
    wait_for(lambda: all("Registered to" in log.read_text() for log in logs))
    answer = orchestrate("run", file, "--scheduler", cluster.place, "--json")
    assert answer.code == 0, answer.err
    document = json.loads(answer.out)
    assert {output["status"] for output in document["outputs"]} == {"built"} and len(document["outputs"]) == 5
    assert {path: digest for path, digest in sums(world / "dist").items() if not str(path).endswith(".receipt.json")} == here
    for path in (world / "dist").glob("*.receipt.json"):
        again = json.loads(path.read_text())
        for receipt in (again, receipts[path.name]):
            for entry in receipt["files"]:
                entry["mtime_ns"] = 0
        assert again == receipts[path.name]
    names = {step["name"] for step in document["steps"]}
    assert "convert tiny-llama-f16.gguf" in names
    assert all(any(name.endswith(end) for name in names) for end in (" on one", " on two")), "both have work"
    assert not list((world / "dist").glob(".orchestrate-*"))
    assert not cluster.children("one") and not cluster.children("two"), "their run is over"
    idle = orchestrate("run", file, "--scheduler", cluster.place, "--json")
    assert {output["status"] for output in json.loads(idle.out)["outputs"]} == {"current"}


def made(folder: Path) -> dict[str, Any]:
    """What lies in an output folder: digests, and the receipts but for the times that they know files by."""
    found: dict[str, Any] = {}
    for path, digest in sums(folder).items():
        found[str(path)] = digest
        if str(path).endswith(".receipt.json"):
            found[str(path)] = receipt = json.loads((folder / path).read_text())
            for entry in receipt["files"]:
                entry["mtime_ns"] = 0
    return found


@pytest.mark.skipif(not can_hide(), reason="folders can be hidden from a program by root alone")
def test_a_worker_that_sees_nothing_but_the_output_folder_is_sent_what_it_lacks_once(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    (world / "card.json").write_text('{"general.author": "somebody"}')
    kept = model(data, outtype="f16", loras=[str(data / "lora-a"), str(data / "lora-b")], args=["--metadata", "./card.json"])
    file = job(kept, **QUICK)
    assert orchestrate("run", file).code == 0
    here = made(world / "dist")
    remove(world / "dist")
    lock = file.with_name("job.lock.yaml").read_bytes()
    (world / "dist").mkdir()
    cluster.join("far", hidden=[data, file, file.with_name("job.lock.yaml"), world / "card.json"])
    answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 0, answer.err
    assert made(world / "dist") == here and file.with_name("job.lock.yaml").read_bytes() == lock
    sent = [line.split(" on ")[0] for line in answer.err.splitlines() if "send " in line]
    assert len(sent) == len(set(sent)) == 4, answer.err
    again = orchestrate("run", file, "--scheduler", cluster.place, "--force")
    assert again.code == 0 and "send " not in again.err, again.err
    assert made(world / "dist") == here


@pytest.mark.skipif(not can_hide(), reason="folders can be hidden from a program by root alone")
def test_outputs_that_go_to_an_address_need_no_folder_that_all_see(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path, world: Path, tmp_path: Path, shared_cache: Path
) -> None:
    store, mirrors = tmp_path / "store", shared_cache / "outputs"
    kept, address = model(data, outtype="f16", loras=[str(data / "lora-a")]), store.as_uri() + "/team"
    assert orchestrate("run", job(kept, **QUICK)).code == 0
    here = {name: digest for name, digest in made(world / "dist").items() if name.endswith(".gguf")}
    mirrors.mkdir(exist_ok=True)
    for name in ("one", "two"):
        cluster.join(name, hidden=[data, world, mirrors])
    file = job(kept, name="there.yaml", output=address, **QUICK)
    answer = orchestrate("run", file, "--scheduler", cluster.place, "--json")
    assert answer.code == 0, answer.err
    assert {name: digest for name, digest in made(store / "team").items() if name.endswith(".gguf")} == here
    outputs = answer.json()["outputs"]
    assert {output["path"] for output in outputs} == {f"{address}/{name}" for name in here}
    assert not list(mirrors.rglob("*.gguf"))
    idle = orchestrate("run", file, "--json")
    assert {output["status"] for output in idle.json()["outputs"]} == {"current"}, idle.err


def test_a_worker_that_is_lost_is_replaced_and_its_children_end_with_it(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    file = job(model(data), **QUICK)
    run, children = at_work(cluster, orchestrate, file, "first")
    wait_for(lambda: list((world / "dist").glob(".*.stage")))  # it converts
    cluster.join("second")
    cluster.kill("first")
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err.decode()
    assert b"a worker was lost; second takes over" in err, err.decode()
    wait_for(lambda: not any(child.is_running() for child in children), 10)
    assert orchestrate("verify", world / "dist").code == 0


@pytest.mark.parametrize("how", ["signal", "kill"])
def test_when_the_driver_goes_the_workers_children_end(
    how: str, cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path
) -> None:
    file = job(model(data), **QUICK)
    run, children = at_work(cluster, orchestrate, file, "one")
    run.send_signal(signal.SIGINT if how == "signal" else signal.SIGKILL)
    run.communicate(timeout=30)
    assert run.returncode == (130 if how == "signal" else -signal.SIGKILL)
    wait_for(lambda: not any(child.is_running() for child in children), 60)
    answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 0, answer.err


def test_when_the_scheduler_goes_it_is_told_and_the_next_run_goes_on(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path
) -> None:
    file = job(model(data), **QUICK)
    run, _ = at_work(cluster, orchestrate, file, "one")
    cluster.scheduler.kill()
    out, err = run.communicate(timeout=90)
    assert run.returncode == 1 and b"the scheduler of the cluster has gone" in err and b"run the same command again" in err
    assert b"Traceback" not in err, err.decode()
    assert orchestrate("run", file).code == 0


def test_what_fails_on_a_worker_is_told_as_on_one_machine(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path, copy: Callable[..., Path]
) -> None:
    broken = copy("tiny-llama", "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["NobodyForCausalLM"]}))
    file = job(model(data), {"source": str(broken), "outtype": "f16"}, **QUICK)
    cluster.join("one")
    answer = orchestrate("run", file, "--scheduler", cluster.place, "--keep-going", "--json")
    here = orchestrate("run", file, "--keep-going", "--json")
    assert answer.code == here.code == 1
    message = json.loads(here.out)["error"][0]
    assert message in answer.err and "NobodyForCausalLM" in answer.err
    assert [output["path"] for output in json.loads(answer.out)["outputs"]] == [
        output["path"] for output in json.loads(here.out)["outputs"]
    ]


def test_workers_that_cannot_do_it_are_told_before_anything_is_sent(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job(model(data), **QUICK)
    cluster.join("one")
    with monkeypatch.context() as patch:
        patch.setattr(llamacpp_orchestrator, "__version__", "9.9")
        answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 2 and "no worker can do it; one: it has llamacpp-orchestrator" in answer.err and "9.9" in answer.err
    assert not cluster.children("one")


def test_memory_that_workers_offer_is_claimed_and_where_none_has_enough_it_is_told(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path
) -> None:
    file = job(model(data, outtype="f16"), **QUICK)
    cluster.join("small", "--resources", "MEMORY=1e6")
    answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 2 and "no worker offers more than 1.0 MB" in answer.err
    cluster.join("large", "--resources", "MEMORY=8e9")
    wait_for(lambda: "Registered to" in (cluster.folder / "large.log").read_text())
    answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 0 and " on large" in answer.err and " on small" not in answer.err


def test_without_a_scheduler_or_workers(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job(model(data), **QUICK)
    monkeypatch.setattr(driver, "WAIT_SECONDS", 0.5)
    answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 2 and "the cluster has no workers" in answer.err and "dask worker" in answer.err
    monkeypatch.setattr(driver, "CONNECT_SECONDS", 0.5)
    answer = orchestrate("run", file, "--scheduler", "tcp://127.0.0.1:9")
    assert answer.code == 1 and "no scheduler of Dask answers at tcp://127.0.0.1:9" in answer.err
    answer = orchestrate("run", file, "--scheduler", "nonsense://x")
    assert answer.code == 1 and "no scheduler of Dask answers" in answer.err
    answer = orchestrate("run", file, "--workers-per-node", "2")
    assert answer.code == 2 and "--workers-per-node goes with --scheduler" in answer.err
    monkeypatch.setitem(sys.modules, "distributed", None)
    answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 2 and "needs Dask's `distributed`" in answer.err


@pytest.mark.skipif(not disks.possible(), reason="small disks are made by root alone")
def test_what_one_worker_has_no_room_for_another_one_makes(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, data: Path, world: Path, tmp_path: Path
) -> None:
    file = job(model(data, outtype="f16"), {"source": str(data / "all-MiniLM-L6-v2"), "outtype": "f16"}, **QUICK)
    with disks.mounted(tmp_path / "small", 8):
        cluster.join("small", ORCHESTRATE_CACHE_DIR=str(tmp_path / "small" / "cache"))
        answer = orchestrate("run", file, "--scheduler", cluster.place)
        assert answer.code == 1 and "it was on worker small" in answer.err, answer.err
        assert "need " in answer.err and "missing" in answer.err and "free some space" in answer.err
        cluster.join("large")
        wait_for(lambda: "Registered to" in (cluster.folder / "large.log").read_text())
        answer = orchestrate("run", file, "--scheduler", cluster.place)
        assert answer.code == 0 and "worker small has no room for" in answer.err, answer.err
        assert "failed" not in answer.err and orchestrate("verify", world / "dist").code == 0
        cluster.kill("small")


def test_a_worker_that_is_cut_off_from_the_hub_is_named_and_the_next_run_goes_on(
    cluster: Cluster, orchestrate: Orchestrate, job: Job, hub: Hub, tmp_path: Path
) -> None:
    file = job({"source": "org/m", "outtype": "f16"}, **QUICK)
    cluster.join("far", HF_ENDPOINT=NOWHERE, HF_HOME=str(tmp_path / "far"), ORCHESTRATE_WAIT_SECONDS="1")
    answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 1 and "it was on worker far" in answer.err and NOWHERE in answer.err, answer.err
    cluster.kill("far")
    cluster.join("near", HF_HOME=str(tmp_path / "near"))
    answer = orchestrate("run", file, "--scheduler", cluster.place)
    assert answer.code == 0, answer.err


def test_two_machines_that_make_the_same_on_one_disk_both_end_with_whole_files(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, shared_cache: Path, tmp_path: Path
) -> None:
    file = job(model(data, outtype=["f16", "q8_0", "bf16", "f32"]), **QUICK)
    assert orchestrate("run", file).code == 0
    here = made(world / "dist")
    caches = [tmp_path / "one", tmp_path / "two"]
    for cache in caches:  # of their own but for what takes long to make: neither sees the locks of the other
        cache.mkdir()
        for kind in ("environments", "source"):
            (cache / kind).symlink_to(shared_cache / kind)
    argv = [sys.executable, "-m", "llamacpp_orchestrator", "run", str(file), "--force"]
    runs = [
        subprocess.Popen(
            argv,
            env={**os.environ, "PYTHONPATH": str(ROOT), "ORCHESTRATE_CACHE_DIR": str(cache)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for cache in caches
    ]
    for run in runs:
        _, err = run.communicate(timeout=200)
        assert run.returncode == 0, err.decode()
    assert made(world / "dist") == here and not list((world / "dist").glob(".*.stage"))
    assert orchestrate("verify", world / "dist").code == 0
    idle = orchestrate("run", file, "--json")
    assert {output["status"] for output in json.loads(idle.out)["outputs"]} == {"current"}
