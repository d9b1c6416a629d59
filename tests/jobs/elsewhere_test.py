"""Disks, times and pauses as other people have them: what a job lies on may be shared, restored, late or asleep."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT
from tests.support import disks
from tests.support.answer import Answer
from tests.support.folders import remains
from tests.support.folders import sums
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
QUICK = {"binaries": {"backend": "none"}}
OF_THE_HUB = {"source": "org/m", "name": "m", "outtype": "f16"}


@pytest.mark.slow
@pytest.mark.skipif(not disks.possible(), reason="no disk can be made here")
def test_cache_outputs_scratch_and_models_on_disks_of_their_own(
    hub: Hub, orchestrate: Orchestrate, job: Job, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, scratch = tmp_path / "models", tmp_path / "scratch"
    with disks.mounted(world / "dist", 200), disks.mounted(models, 200), disks.mounted(scratch, 200):
        monkeypatch.setenv("HF_HOME", str(models))
        monkeypatch.setenv("TMPDIR", str(scratch))
        file = job(OF_THE_HUB, **QUICK)
        answer = orchestrate("run", file)
        assert answer.code == 0, answer.err
        made = sums(world / "dist")
        assert len(made) == 1 and orchestrate("verify", "dist", "--deep").code == 0
        assert orchestrate("run", file, "--force").code == 0 and sums(world / "dist") == made
        assert orchestrate("reproduce", world / "dist" / "m-f16.gguf").code == 0
        assert remains(world / "dist") == [] and not [path for path in scratch.iterdir() if "torch" not in path.name]


@pytest.mark.slow
@pytest.mark.skipif(not disks.possible(), reason="no disk can be made here")
def test_models_that_are_shared_read_only(
    hub: Hub, orchestrate: Orchestrate, job: Job, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, file = tmp_path / "models", job(OF_THE_HUB, **QUICK)
    monkeypatch.setenv("HF_HOME", str(models))
    hub.files["config.json"] += b"\n"  # files of this test alone: of others, another test's view may lie in the shared cache
    with disks.mounted(models, 200):
        assert orchestrate("run", file).code == 0
        made, blobs = sums(world / "dist"), list(models.glob("hub/models--*/blobs/*"))
        assert blobs
        for blob in blobs:
            blob.with_name(f"{blob.name}.0123.incomplete").touch()  # of somebody's run that was killed
        subprocess.run(["mount", "-o", "remount,ro", str(models)], check=True)
        shutil.rmtree(world / "dist")
        for more in ((), ("--offline", "--force"), ("--force",)):
            answer = orchestrate("run", file, *more)
            assert answer.code == 0, answer.err
            assert sums(world / "dist") == made
        hub.files["config.json"] += b" "
        hub.commit = "d" * 40
        answer = orchestrate("lock", file, "--upgrade", "models")
        assert answer.code == 0, answer.err
        answer = orchestrate("run", file)
        assert answer.code == 1 and "org/m cannot be kept in the cache: [Errno 30] Read-only" in answer.err, answer.err
        assert "or set HF_HOME to another folder" in answer.err and sums(world / "dist") == made


def test_outputs_that_come_back_with_other_times_are_known_by_their_digests(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": ["f16", "f32"]}, **QUICK)
    assert orchestrate("run", file).code == 0
    outputs = sorted((world / "dist").glob("*.gguf"))
    for when in (time.time() - 9e7, time.time() + 9e8):
        for path in outputs:
            os.utime(path, (when, when))
        for _ in range(2):
            answer = orchestrate("run", file)
            assert answer.code == 0 and answer.err.count("current") == 2, answer.err
        assert orchestrate("verify", "dist").code == 0
    before = sums(world / "dist")
    with outputs[0].open("r+b") as changed:
        changed.seek(-1, os.SEEK_END)
        changed.write(b"\x7f")
    answer = orchestrate("run", file)
    assert answer.code == 2 and "was changed after orchestrate made it" in answer.err
    assert orchestrate("run", file, "--force").code == 0 and sums(world / "dist") == before


def test_a_quota_that_is_told_late(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota, real = getattr(errno, "EDQUOT", errno.ENOSPC), os.fsync

    def refused(number: int) -> None:
        if os.fstat(number).st_size > 1_000_000:
            raise OSError(quota, os.strerror(quota))
        real(number)

    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"}, **QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refused)
        answer = orchestrate("run", file)
    assert answer.code == 1 and f"tiny-llama-f16.gguf: {os.strerror(quota).lower()}" in answer.err, answer.err
    assert "hint: free some space" in answer.err and not sums(world / "dist")
    assert orchestrate("run", file).code == 0 and len(sums(world / "dist")) == 1 and remains(world / "dist") == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="has no such signals")
def test_a_machine_that_sleeps_in_the_middle(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"}, **QUICK)
    assert orchestrate("setup", file).code == 0
    command = (sys.executable, "-m", "llamacpp_orchestrator", "run", str(file), "--no-progress")
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    for _ in range(4):
        time.sleep(0.3)
        if child.poll() is not None:
            break
        family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in family:
                if process.is_running():
                    process.send_signal(number)
            time.sleep(0.5)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 0, said
    assert len(sums(world / "dist")) == 1 and remains(world / "dist") == []
