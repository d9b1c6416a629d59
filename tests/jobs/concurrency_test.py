"""Several runs at once, on one cache or for one file: each thing is made once, all of them end well, and every file is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.support.answer import Answer
from tests.support.folders import remains
from tests.support.folders import sums
from tests.support.programs import TOOL
from tests.support.stage.github import GitHub
from tests.support.stage.github import release
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
linux_only = pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="the stage serves x64 Linux")
NO_LOCKS = """
import errno, fcntl
def flock(*given):
    raise OSError(errno.{error}, "no locks here")
fcntl.flock = flock
"""
# The clock is an hour late, right, and a day early in turn.
JUMPS = """
import itertools, time
real, turns = time.time, itertools.count()
time.time = lambda: real() + (-3600, 0, 86400)[next(turns) % 3]
"""
RUNS = 8
FETCHES = 2  # of one tree: its commit, then the files that are wanted of it
LIMIT_SECONDS = 120
UNDISTURBED: dict[Path, dict[str, str]] = {}


def begin(*argv: object, cwd: Path, **env: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "llamacpp_orchestrator", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=cwd, env={**os.environ, **env}, stdout=pipe, stderr=pipe, text=True)


def end(child: subprocess.Popen[str]) -> Answer:
    out, err = child.communicate(timeout=LIMIT_SECONDS)
    return Answer(child.returncode, out, err)


def site(folder: Path, text: str) -> str:
    """A folder for PYTHONPATH, with what Python does first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture
def cold(world: Path, python: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it but what Python has compiled; the session's environment serves as one's own."""
    made = world / "cold"
    made.mkdir()
    (shared_cache / "home").mkdir(exist_ok=True)
    (made / "home").symlink_to(shared_cache / "home")
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(made))
    return made


def own(python: Path) -> dict[str, Any]:
    return {"environment": {"path": str(python.parents[1])}}


@pytest.mark.slow
@linux_only
def test_eight_runs_at_once_make_and_fetch_everything_once(
    github: GitHub, hub: Hub, job: Job, python: Path, cold: Path, world: Path
) -> None:
    github.archive = release(TOOL)
    model = {"source": "org/m", "name": "m", "outtype": "f16", "verify": "content"}
    keys = {"binaries": {"backend": "cpu"}, **own(python)}
    quantized = {"quantize": ["Q8_0"]}
    one = job(model | quantized, name="one.yaml", output="one", **keys)
    two = job(model | quantized | {"outtype": []}, name="two.yaml", output="two", **keys)
    three = job(model, name="three.yaml", output="one", **keys)
    github.seen.clear()
    github.fetches = 0
    hub.seen.clear()
    answers = [end(child) for child in [begin("run", file, "--json", cwd=world) for file in (one, two, three, one) * (RUNS // 4)]]
    assert [answer.code for answer in answers] == [0] * RUNS, "\n".join(answer.err for answer in answers if answer.code)
    fetched = Counter({path: count for path, count in hub.seen.items() if path.startswith("GET /store/")})
    assert fetched == Counter(dict.fromkeys(fetched, 1)) and "GET /store/model.safetensors" in fetched
    assert sum(path.endswith(".tar.gz") for path in github.seen) == 1
    assert github.fetches == FETCHES
    built = Counter(output["path"] for answer in answers for output in answer.json()["outputs"] if output["status"] == "built")
    assert built == Counter(dict.fromkeys((str(path) for path in [*world.glob("one/*.gguf"), *world.glob("two/*.gguf")]), 1))
    assert set(sums(world / "one")) == {"m-f16.gguf", "m-Q8_0.gguf"}
    assert set(sums(world / "two")) == {"m-Q8_0.gguf"}
    assert end(begin("verify", "one", "two", cwd=world)).code == 0
    assert remains(cold, world / "one", world / "two", Path(os.environ["HF_HOME"])) == []


@pytest.mark.slow
@linux_only
def test_four_set_up_one_environment(job: Job, data: Path, cold: Path, world: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"}, binaries={"backend": "none"})
    answers = [end(child) for child in [begin("setup", file, cwd=world) for _ in range(RUNS // 2)]]
    assert [answer.code for answer in answers] == [0] * (RUNS // 2), "\n".join(answer.err for answer in answers if answer.code)
    texts = [log.read_text(encoding="utf-8") for log in (cold / "logs").rglob("environment*.log")]  # a run keeps those of others
    assert sum(text.count("pip sync") for text in texts) == 1
    assert remains(cold) == []


@pytest.fixture
def alone(job: Job, data: Path, python: Path) -> Path:
    """A job that needs no server, once the session has its tree."""
    return job(
        {"source": str(data / "tiny-llama"), "outtype": "f16", "verify": "content"}, binaries={"backend": "none"}, **own(python)
    )


@pytest.fixture
def good(orchestrate: Orchestrate, alone: Path, world: Path, data: Path) -> dict[str, str]:
    """What the job makes when nothing disturbs it."""
    if data not in UNDISTURBED:
        assert orchestrate("run", alone).code == 0
        UNDISTURBED[data] = sums(world / "dist")
        shutil.rmtree(world / "dist")
    return UNDISTURBED[data]


def together(alone: Path, world: Path, meanwhile: Callable[[], None] = lambda: None, **env: str) -> list[Answer]:
    """Two runs for one file, the second as soon as the first is at it."""
    first = begin("run", alone, cwd=world, **env)
    deadline = time.monotonic() + 60
    while not list(world.glob("dist/.*.stage")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    meanwhile()
    return [end(child) for child in (begin("run", alone, cwd=world, **env), first)]


@linux_only
def test_of_two_runs_for_one_file_one_waits_and_says_so(
    alone: Path, good: dict[str, str], shared_cache: Path, world: Path
) -> None:
    (name,) = good
    key = hashlib.sha256(os.path.normcase((world / "dist" / name).resolve()).encode()).hexdigest()[:32]
    with FileLock(shared_cache / "locks" / f"output-{key}.lock"):
        waiting = begin("run", alone, cwd=world)
        assert waiting.stderr
        said = next(line for line in waiting.stderr if "making this file" in line or "error" in line)
        assert "another run is making this file; waiting for it" in said and not list(world.glob("dist/*"))
    assert end(waiting).code == 0
    assert sums(world / "dist") == good and remains(world) == []


@pytest.mark.slow
@linux_only
def test_locks_that_somebody_removes_cost_no_bytes(alone: Path, good: dict[str, str], shared_cache: Path, world: Path) -> None:
    answers = together(alone, world, lambda: shutil.rmtree(shared_cache / "locks"))
    assert {answer.code for answer in answers} <= {0, 1} and not any("Traceback" in answer.err for answer in answers)
    assert sums(world / "dist") in (good, {})
    assert end(begin("run", alone, cwd=world)).code == 0
    assert sums(world / "dist") == good and remains(world) == []


@linux_only
@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP"])
def test_a_disk_that_refuses_locks_is_told(error: str, alone: Path, good: dict[str, str], tmp_path: Path, world: Path) -> None:
    answer = end(begin("run", alone, cwd=world, PYTHONPATH=site(tmp_path / "site", NO_LOCKS.format(error=error))))
    assert answer.code == 1 and "the cache's disk has no locks" in answer.err and "ORCHESTRATE_CACHE_DIR" in answer.err
    assert not sums(world / "dist") and remains(world) == []


@linux_only
def test_on_a_system_without_locks_a_file_stands_for_one(alone: Path, good: dict[str, str], tmp_path: Path, world: Path) -> None:
    answers = together(alone, world, PYTHONPATH=site(tmp_path / "site", NO_LOCKS.format(error="ENOSYS")))
    assert [answer.code for answer in answers] == [0, 0], answers[0].err + answers[1].err
    assert sums(world / "dist") == good and remains(world) == []


@linux_only
def test_a_clock_that_jumps(alone: Path, good: dict[str, str], tmp_path: Path, world: Path) -> None:
    answers = together(alone, world, PYTHONPATH=site(tmp_path / "site", JUMPS))
    assert [answer.code for answer in answers] == [0, 0], answers[0].err + answers[1].err
    assert sums(world / "dist") == good and remains(world) == []
    again = end(begin("run", alone, cwd=world))
    assert again.code == 0 and "current convert" in again.err


def test_jobs_that_would_undo_each_other_are_refused(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    model = {"source": str(data / "tiny-llama"), "outfile": "x.gguf", "outtype": "f16"}
    one, other = job(model, name="one.yaml"), job(model | {"outfile": "y.gguf"}, name="one.yml")
    answer = orchestrate("run", one, other)
    assert answer.code == 2 and "would share one lock, one.lock.yaml" in answer.err
    assert not (world / "dist").exists() and not list(world.glob("*.lock.yaml"))


def test_the_lock_of_one_job_is_not_overwritten_by_another(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "f16"}
    one = job(model, name="one.yaml")
    assert orchestrate("lock", one).code == 0
    before = (world / "one.lock.yaml").read_bytes()
    other = job(model | {"loras": [str(data / "lora-a")]}, name="one.yml")
    for words in (("lock", other), ("run", other), ("lock", one, "--upgrade")):
        answer = orchestrate(*words)
        assert answer.code == 2 and "would share one lock" in answer.err, answer.err
        assert (world / "one.lock.yaml").read_bytes() == before
    other.rename(world / "two.yml")
    assert orchestrate("lock", "two.yml").code == 0 and orchestrate("lock", one, "--upgrade").code == 0
    assert (world / "one.lock.yaml").read_bytes() == before
