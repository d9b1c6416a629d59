"""Faults of the hub, 45 to 65: what it refuses, spoils or lists, where it sends us, and what lies in its library's cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import constants

from llamacpp_orchestrator.models import hub as models_hub
from llamacpp_orchestrator.models import hub_session
from llamacpp_orchestrator.system.settings import load
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import Store
from tests.support import NOWHERE
from tests.support import disks
from tests.support.answer import Answer
from tests.support.folders import remains
from tests.support.stage.hub import COMMIT
from tests.support.stage.hub import LARGE
from tests.support.stage.hub import Hub
from tests.support.stage.hub import blob as git_name

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Told = Callable[..., str]
Command = Callable[..., subprocess.Popen[str]]

ELSEWHERE = {
    57: "jobs/concurrency_test.py::test_eight_runs_at_once_make_and_fetch_everything_once",
}
NEXT = "c" * 40
LOCKED: list[bytes] = []  # the lock of another job, with the session's environment
WEIGHTS, FIRST = "model.safetensors", "GET /store/tokenizer.model"  # the small files come first
MODEL = {"source": "org/m", "name": "m", "outtype": "f16", "verify": "structure"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no longer than need be, and let the library choose its store anew in each test."""
    monkeypatch.setattr(hub_session, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)


@pytest.fixture
def asked(world: Path, shared_cache: Path, data: Path, orchestrate: Orchestrate, job: Job) -> Path:
    """A job with one model of the hub; its lock knows all but the model. No test sees the model of another."""
    if not LOCKED:
        assert orchestrate("setup", job(str(data / "tiny-llama"), name="first.yaml", binaries={"backend": "none"})).code == 0
        LOCKED.append((world / "first.lock.yaml").read_bytes())
        (world / "first.lock.yaml").unlink()
    shutil.rmtree(shared_cache / "views", ignore_errors=True)
    (world / "job.lock.yaml").write_bytes(LOCKED[0])
    return job(MODEL, binaries={"backend": "none"})


@pytest.fixture
def models(world: Path) -> Path:
    """Where the hub's library keeps the model."""
    return world.parent / "hf" / "hub" / "models--org--m"


@pytest.fixture
def trusted(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub as one that may be sent the token."""
    monkeypatch.setenv("ORCHESTRATE_TOKEN_HOSTS", hub.url.removeprefix("http://"))
    return hub


def stray(world: Path) -> list[str]:
    """What a failure must not leave: outputs, parts, and anything beside the work and the hub's cache."""
    found = remains(world.parent, also=("*.gguf*", "*incomplete"))
    found += [path for path in world.parent.iterdir() if path.name not in ("work", "hf", "config.yaml")]
    return [str(path) for path in found]


def unnamed(answer: Answer) -> Answer:
    """The same without the name of the file that came first: several are fetched at once."""
    return msgspec.structs.replace(
        answer, err=re.sub(r"about \w+\.(json|model)$", "about <file>", answer.err, flags=re.MULTILINE)
    )


def digest_of(path: Path) -> str:
    """What the hub would call a file by its bytes."""
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest() if len(content) > LARGE else git_name(content)


def blob(models: Path, name: str = WEIGHTS) -> Path:
    return (models / "snapshots" / COMMIT / name).resolve()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("49 gated", "gated"),
        ("49 no login", "401"),
        ("49 no right", "403"),
        ("49 no such repository", "missing"),
        ("49 a private repository", "private"),
        ("49 no such revision", "revision"),
        ("48 too many requests", "429"),
        ("48 the hub is down", "503"),
        ("64 digests that lead elsewhere", "oid-escape"),
        ("65 a login page instead of the model", "page"),
        ("65 sent to a login page instead of the model", "page-redirect"),
        ("65 a login page instead of the list", "page-tree"),
        ("65 something else instead of the model", "odd-json"),
        ("65 no commit", "no-sha"),
        ("65 an odd commit", "odd-sha"),
    ],
)
def test_what_a_hub_answers_to_a_lock(
    fault: str, kind: str, hub: Hub, asked: Path, models: Path, world: Path, orchestrate: Orchestrate, told: Told
) -> None:
    hub.fault = kind
    said = told(fault, unnamed(orchestrate("lock", asked)))
    assert ("not on the hub" in said) == (kind in ("missing", "private"))
    assert "hf_SECRETSECRET" not in said and hub.tokens == []
    assert not models.exists() and stray(world) == [] and (world / "job.lock.yaml").read_bytes() == LOCKED[0]
    hub.fault = ""
    assert orchestrate("lock", asked).code == 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("49 gated for this account", "gated"), ("49 a token that is not right", "401"), ("49 private", "private")],
)
def test_49_a_hub_that_is_sent_the_token(
    fault: str, kind: str, trusted: Hub, asked: Path, orchestrate: Orchestrate, told: Told
) -> None:
    trusted.fault = kind
    assert "hf_SECRETSECRET" not in told(fault, orchestrate("lock", asked))
    assert set(trusted.tokens) == {"Bearer hf_SECRETSECRET"} and trusted.strayed == []
    trusted.fault = ""
    assert orchestrate("lock", asked).code == 0


@pytest.mark.parametrize("kind", ["once-429", "once-503"])
def test_48_a_passing_refusal_heals(kind: str, hub: Hub, asked: Path, orchestrate: Orchestrate) -> None:
    hub.fault = kind
    assert orchestrate("lock", asked).code == 0


def test_49_a_folder_of_the_same_name_is_pointed_at(hub: Hub, asked: Path, world: Path, orchestrate: Orchestrate) -> None:
    (world / "org" / "m").mkdir(parents=True)
    answer = orchestrate("lock", asked)
    assert (
        answer.code == 0 and "org/m is taken for a repository of the hub; for the folder of that name write ./org/m" in answer.err
    )


def test_49_a_login_in_an_address_is_not_shown(
    hub: Hub, asked: Path, orchestrate: Orchestrate, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//me:mypassword@"))
    for kind in ("gated", "revision", "503", "page", "file-gated"):
        hub.fault = kind
        assert "mypassword" not in orchestrate("run", asked).err
    hub.fault = ""
    assert "mypassword" not in orchestrate("doctor", asked).out


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ("52 empty", None),
        ("52 nothing that is converted", ("m.gguf",)),
        ("61 names that differ by case only", ("README.md", "readme.md")),
        ("61 weights that differ by case only", ("Model.safetensors",)),
        ("62 up", ("../x",)),
        ("62 up, from below", ("a/../../x",)),
        ("62 another drive", ("C:x",)),
        ("62 the root", ("/nowhere/x",)),
        ("62 backslashes", ("..\\x",)),
        ("62 a zero byte", ("x\0.json",)),
        ("62 a line break", ("x\n.json",)),
        ("62 words for the terminal", ("x\x1b[2J.json",)),
        ("62 a device of Windows", ("CON.json",)),
        ("62 a dot at the end of a folder", ("1_Pooling./config.json",)),
        ("62 a blank at the end of a folder", ("1_Pooling /config.json",)),
        ("62 too long", ("x" * 300 + ".json",)),
    ],
)
def test_what_a_hub_lists(
    fault: str,
    names: tuple[str, ...] | None,
    hub: Hub,
    asked: Path,
    models: Path,
    world: Path,
    orchestrate: Orchestrate,
    told: Told,
) -> None:
    good = hub.files
    hub.files = dict.fromkeys(names or (), b"x" * 10) | (good if not fault.startswith("52") else {})
    told(fault, orchestrate("lock", asked))
    assert not models.exists() and stray(world) == [] and (world / "job.lock.yaml").read_bytes() == LOCKED[0]
    hub.files = good
    assert orchestrate("lock", asked).code == 0


def test_63_a_next_page_on_another_host(trusted: Hub, asked: Path, world: Path, orchestrate: Orchestrate, told: Told) -> None:
    trusted.fault = "next-elsewhere"
    told("63 a next page on another host", orchestrate("lock", asked))
    assert trusted.seen["GET /steal"] and trusted.tokens and trusted.strayed == []
    assert stray(world) == [] and (world / "job.lock.yaml").read_bytes() == LOCKED[0]
    trusted.fault = ""
    assert orchestrate("lock", asked).code == 0


SPOILT = [
    ("45 corrupt", "corrupt"),
    ("46 cut each time", "cut"),
    ("47 short", "short"),
    ("49 a file is gated", "file-gated"),
    ("49 no login for a file", "file-401"),
    ("49 no right to a file", "file-403"),
    ("53 a pointer", "pointer"),
    ("64 a name that leads elsewhere", "etag-escape"),
    ("64 a commit that leads elsewhere", "commit-escape"),
    ("65 a login page instead of a file's head", "page-head"),
    ("65 sent to a login page instead of a file's head", "page-head-redirect"),
    ("65 a login page instead of a file", "page-file"),
    ("65 a login page as long as the file", "page-file-as-long"),
]


@pytest.mark.slow
def test_45_46_47_49_53_64_65_what_a_hub_sends(
    trusted: Hub, asked: Path, models: Path, world: Path, orchestrate: Orchestrate, told: Told
) -> None:
    for fault, kind in SPOILT:
        trusted.fault = kind
        trusted.seen.clear()
        told(fault, unnamed(orchestrate("run", asked)))
        assert stray(world) == [] and not list(models.rglob(WEIGHTS)), fault
        assert all(digest_of(path) == path.name for path in models.glob("blobs/*")), fault
    trusted.fault = ""
    answer = orchestrate("run", asked)
    assert answer.code == 0, answer.err
    assert blob(models).read_bytes() == trusted.files[WEIGHTS] and trusted.tokens and trusted.strayed == []


@pytest.mark.parametrize("kind", ["cut-once", "get-500", "corrupt-once"])
def test_46_48_what_heals_while_it_is_fetched(kind: str, hub: Hub, asked: Path, orchestrate: Orchestrate) -> None:
    found, hub.fault = load(os.environ), kind
    snapshot = models_hub.list_hub("org/m", "main", found, print, kind="model", weights=True, remote_code=False)
    folder = models_hub.fetch(snapshot, found, print)
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert hub.seen[f"GET /store/{WEIGHTS}"] == 2


def test_49_a_file_or_the_commit_has_gone(hub: Hub, asked: Path, world: Path, orchestrate: Orchestrate, told: Told) -> None:
    assert orchestrate("lock", asked).code == 0
    kept, good = (world / "job.lock.yaml").read_bytes(), hub.files
    hub.files = {name: content for name, content in good.items() if name != WEIGHTS}
    told("49 no such file", orchestrate("run", asked))
    hub.files, hub.gone, hub.commit = good, {COMMIT}, NEXT
    told("49 the locked commit has gone", orchestrate("run", asked))
    assert (world / "job.lock.yaml").read_bytes() == kept and stray(world) == []
    assert orchestrate("lock", asked, "--upgrade", "models").code == 0
    answer = orchestrate("run", asked)
    assert answer.code == 0 and "has moved" not in answer.err


HARMS = [
    ("50 cut", WEIGHTS, lambda path: os.truncate(path, 1000)),
    ("50 changed, with its time kept", WEIGHTS, lambda path: change(path, keep=True)),
    ("50 a small file changed, with a time to come", "config.json", lambda path: change(path, ahead=86400)),
    ("51 removed", WEIGHTS, lambda path: path.unlink()),
]


def change(path: Path, keep: bool = False, ahead: int = 0) -> None:
    """Change the last byte of a file, in place."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    if keep:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if ahead:
        os.utime(path, (time.time() + ahead,) * 2)


@pytest.mark.slow
def test_50_51_damage_in_the_cache(
    hub: Hub, asked: Path, models: Path, world: Path, orchestrate: Orchestrate, told: Told
) -> None:
    assert orchestrate("run", asked).code == 0
    output = world / "dist" / "m-f16.gguf"
    before = output.read_bytes()
    for fault, name, harm in HARMS:
        harm(blob(models, name))
        told(fault, orchestrate("run", asked, "--force", "--offline"))
        assert output.read_bytes() == before
        answer = orchestrate("run", asked, "--force")
        assert answer.code == 0, answer.err
        assert blob(models, name).read_bytes() == hub.files[name] and output.read_bytes() == before
        assert not list(models.rglob("*incomplete"))
    assert orchestrate("run", asked, "--force", "--offline").code == 0


def test_50_what_is_known_of_a_file_is_not_believed_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, path = Store(tmp_path / "cache"), tmp_path / "file"
    path.write_bytes(b"one")
    first = store.sha256(path)
    path.write_bytes(b"two")
    assert store.sha256(path) != first, "within a tick of the disk's clock"
    monkeypatch.setattr("llamacpp_orchestrator.util.store.TICK_SECONDS", 0.0)
    for keep, ahead in ((True, 0), (False, 86400), (False, -86400)):
        known = store.sha256(path)
        assert list((tmp_path / "cache" / "memo").iterdir()) and store.sha256(path) == known
        time.sleep(0.05)  # longer than a tick here
        change(path, keep, ahead)
        assert store.sha256(path) == file_sha256(path) != known


def test_50_a_link_to_a_file_elsewhere_is_the_users_own(
    hub: Hub, asked: Path, models: Path, world: Path, orchestrate: Orchestrate
) -> None:
    mine = world / "mine.safetensors"
    mine.write_bytes(b"my own work")
    (models / "snapshots" / COMMIT).mkdir(parents=True)
    (models / "snapshots" / COMMIT / WEIGHTS).symlink_to(mine)
    found = load(os.environ)
    snapshot = models_hub.list_hub("org/m", "main", found, print, kind="model", weights=True, remote_code=False)
    assert (models_hub.fetch(snapshot, found, print) / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert mine.read_bytes() == b"my own work"


def test_54_a_hub_that_is_down_with_half_a_snapshot_here(
    hub: Hub, asked: Path, models: Path, world: Path, orchestrate: Orchestrate, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault = "short"
    assert orchestrate("run", asked).code == 1 and list(models.rglob("config.json")), "half of it"
    told("54 without the network", orchestrate("run", asked, "--offline"))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    told("54 the hub is down", orchestrate("run", asked))
    assert stray(world) == []
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.fault = ""
    assert orchestrate("run", asked).code == 0


@pytest.fixture
def stalled(hub: Hub, asked: Path, world: Path) -> Command:
    """Begin a run of its own and wait until a file is half sent to it."""

    def begin() -> subprocess.Popen[str]:
        hub.fault, before = "stall", hub.seen[FIRST]
        words = [sys.executable, "-m", "llamacpp_orchestrator", "run", str(asked), "--no-progress"]
        child = subprocess.Popen(words, cwd=world, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while hub.seen[FIRST] == before and child.poll() is None:
            time.sleep(0.02)
        return child

    return begin


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="other signals there")
def test_55_56_a_run_that_is_ended_while_it_downloads(
    hub: Hub, asked: Path, models: Path, world: Path, stalled: Command, orchestrate: Orchestrate
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        child = stalled()
        child.send_signal(number)
        _, err = child.communicate(timeout=20)  # the hub would hold it for longer
        assert child.returncode == 128 + number and "stopped" in err
        assert not list(world.rglob("*.gguf*"))
    for _ in range(2):
        child = stalled()
        child.kill()
        child.communicate()
    assert list(models.rglob("*incomplete")), "it was killed in a download"
    hub.fault = ""
    answer = orchestrate("run", asked)
    assert answer.code == 0, answer.err
    assert not list(models.rglob("*incomplete"))


@pytest.mark.skipif(not disks.possible(), reason="only root can make a small disk")
def test_58_a_disk_that_is_too_small(
    hub: Hub, asked: Path, world: Path, orchestrate: Orchestrate, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = world.parent / "hf"
    with disks.mounted(place, 3):
        answer = orchestrate("run", asked)
        said = told("58 a small disk", answer)
        assert re.search(r"need [\d.]+ MB, have [\d.]+ MB", answer.err) and str(place) in answer.err and "HF_HOME" in said
        assert list(place.rglob("*")) == [] and hub.seen[f"GET /store/{WEIGHTS}"] == 0
        real = shutil.disk_usage
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=10**12))  # others fill it meanwhile
            told("58 a disk that fills while it downloads", orchestrate("run", asked))
        assert stray(world) == [] and not list(place.rglob(WEIGHTS))
        subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True)
        assert orchestrate("run", asked).code == 0


def test_59_a_branch_that_has_moved(
    hub: Hub, asked: Path, models: Path, world: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert orchestrate("lock", asked).code == 0
    kept = (world / "job.lock.yaml").read_bytes()
    hub.commit = NEXT
    answer = orchestrate("run", asked)
    assert answer.code == 0 and f"org/m@main has moved since it was locked: {COMMIT} → {NEXT}" in answer.err
    assert "orchestrate lock job.yaml --upgrade models" in answer.err and answer.err.count("has moved") == 1
    assert blob(models).is_file() and (world / "job.lock.yaml").read_bytes() == kept
    hub.seen.clear()
    for words in (["run", asked], ["run", asked, "--force"], ["lock", asked]):
        assert orchestrate(*words).code == 0 and not hub.seen, "all is here and locked"
    assert f"{COMMIT} → {NEXT}" in orchestrate("doctor", asked).out
    shutil.rmtree(models)
    hub.fault = "revision"
    answer = orchestrate("run", asked, "--force")
    assert answer.code == 0 and "has moved" not in answer.err, "who cannot know goes on by the lock"
    hub.fault = ""
    assert f"org/m: {COMMIT} → {NEXT}" in orchestrate("lock", asked, "--upgrade", "models").err


def test_59_a_branch_of_pickles_that_has_moved(hub: Hub, world: Path, orchestrate: Orchestrate, job: Callable[..., Path]) -> None:
    hub.files["pytorch_model.bin"] = hub.files.pop("model.safetensors")
    file = job({"source": "org/m", "name": "m", "outtype": "f16", "trust_remote_code": True})
    assert orchestrate("lock", file).code == 0
    hub.commit = NEXT
    assert orchestrate("run", file).err.count(f"org/m@main has moved since it was locked: {COMMIT} → {NEXT}") == 1


def without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no hf_xet, as far as the hub's library looks."""
    from huggingface_hub.utils import _runtime

    monkeypatch.setitem(_runtime._package_versions, "hf_xet", "N/A")
    assert not _runtime.is_xet_available()


@pytest.mark.parametrize(
    ("store", "client", "fault"),
    [("{url}/newer", True, ""), (NOWHERE, True, ""), (NOWHERE, True, "keys-elsewhere"), (NOWHERE, False, "")],
    ids=["silent", "not there", "keys from elsewhere", "no client"],
)
def test_60_a_newer_store_that_cannot_be_reached(
    store: str, client: bool, fault: str, trusted: Hub, models: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(hub_session, "XET_SECONDS", 0.5)
    trusted.xet, trusted.fault = store.format(url=trusted.store), fault
    if not client:
        without_xet(monkeypatch)
    found = load(os.environ)
    snapshot = models_hub.list_hub("org/m", "main", found, print, kind="model", weights=True, remote_code=False)
    folder = models_hub.fetch(snapshot, found, print)
    assert (folder / WEIGHTS).read_bytes() == trusted.files[WEIGHTS] and stray(world) == []
    keys = trusted.seen[f"GET /api/models/org/m/xet-read-token/{COMMIT}"]
    assert bool(keys) == (client and not fault), "it was tried, and only where its keys come from the hub itself"
    assert trusted.tokens and trusted.strayed == []


def test_60_a_mirror_that_tells_of_a_newer_store(hub: Hub, asked: Path, models: Path, orchestrate: Orchestrate) -> None:
    hub.xet = f"{hub.store}/newer"
    assert orchestrate("run", asked).code == 0 and not hub.tokens
    assert blob(models).read_bytes() == hub.files[WEIGHTS] and not [path for path in hub.seen if "xet" in path or "newer" in path]
