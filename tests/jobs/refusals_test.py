"""What the system refuses, told as what it is: never a traceback, and before anything is downloaded where that can be known."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator import errors
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.pipeline import placement
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.scheduler import Bounds
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Step
from tests.support.answer import Answer
from tests.support.stage.steps import run_all

Orchestrate = Callable[..., Answer]
posix_only = pytest.mark.skipif(os.name == "nt", reason="speaks to a POSIX shell")


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "cannot be written to"),
        (errno.EACCES, "check the rights"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.ENOTDIR, "a file, not a folder"),
        (errno.EMFILE, "--jobs 1"),
        (errno.ENXIO, "--verbose"),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else "",
)
def test_a_refusal_names_the_thing_and_the_way_out(number: int, hint: str) -> None:
    told = errors.of_system(OSError(number, os.strerror(number), "/some/where"))
    assert told and told.exit_code == 1 and told.message.startswith("/some/where: ") and hint in told.hint


def test_what_a_library_made_up_is_no_refusal_of_the_system() -> None:
    assert errors.of_system(OSError("connection reset by a library")) is None


def test_a_step_that_the_system_refuses_has_failed_and_is_no_bug(tmp_path: Path) -> None:
    def action(tell: Callable[[str], None]) -> str:
        (tmp_path / "file").write_text("x", encoding="utf-8")
        (tmp_path / "file" / "below").mkdir()
        return "done"

    said: list[Event] = []
    (event,) = run_all([(Step(kind="s"), action)], Bounds(), said.append)
    assert event.status == "failed" and isinstance(event.error, OrchestrateError) and "not a folder" in event.error.hint


@pytest.mark.parametrize(
    ("argv", "text", "code", "said"),
    [
        (["run", "x" * 300 + ".yaml"], "", 2, "file name too long"),
        (["run", "job.yaml"], "output: job.yaml/sub\n", 2, "job.yaml is not a folder"),
        (["run", "job.yaml"], f"output: {'y' * 300}\n", 2, "is longer than a name can be (255 bytes)"),
    ],
    ids=["a long name", "below a file", "a long folder"],
)
def test_names_and_places_that_cannot_be(
    argv: list[str], text: str, code: int, said: str, orchestrate: Orchestrate, world: Path
) -> None:
    (world / "model").mkdir()
    (world / "job.yaml").write_text(f"version: 1\nllama_cpp: {{tag: b11434}}\nmodels: [./model]\n{text}", encoding="utf-8")
    answer = orchestrate(*argv)
    assert answer.code == code and said in answer.err and "Traceback" not in answer.err


@posix_only
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_harms_nobody(closed: str, world: Path) -> None:
    done = subprocess.run(
        f'"{sys.executable}" -m llamacpp_orchestrator init {closed}', shell=True, cwd=world, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 and (world / "job.yaml").read_text(encoding="utf-8").startswith("# A job")


@posix_only
def test_a_current_folder_that_has_gone_is_told(world: Path) -> None:
    (world / "gone").mkdir()
    words = f'cd gone && rmdir ../gone && exec "{sys.executable}" -m llamacpp_orchestrator init'
    done = subprocess.run(words, shell=True, cwd=world, capture_output=True, text=True)
    assert done.returncode == 1 and "the current folder is gone" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_in_another_encoding_is_told(orchestrate: Orchestrate, world: Path) -> None:
    place = world / os.fsdecode(b"caf\xe9")
    (place / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (place / "model" / name).write_text("{}", encoding="utf-8")
    (place / "job.yaml").write_text("version: 1\nllama_cpp: {tag: b11434}\nmodels: [./model]\n", encoding="utf-8")
    answer = orchestrate("plan", place / "job.yaml")
    assert answer.code == 1 and "is not in UTF-8" in answer.err and "Traceback" not in answer.err


def test_a_cache_below_a_file_is_told(orchestrate: Orchestrate, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "model").mkdir()
    (world / "job.yaml").write_text("version: 1\nllama_cpp: {tag: b11434}\nmodels: [./model]\n", encoding="utf-8")
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "job.yaml" / "cache"))
    answer = orchestrate("run", "job.yaml")
    assert answer.code == 1 and "there can be no cache at" in answer.err and "ORCHESTRATE_CACHE_DIR" in answer.err


def test_a_lock_with_an_alias_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "job.lock.yaml"
    path.write_text("a: &a [x]\nb: *a\n", encoding="utf-8")
    with pytest.raises(LockError, match="anchors and aliases"):
        lock_file.read(path)


def test_a_child_that_another_library_started_ends_with_ours() -> None:
    code = (
        "import subprocess, sys, time\n"
        "from llamacpp_orchestrator.system import process\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "with process.known(child):\n"
        "    process.stop_all()\n"
        "print(child.poll())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() not in ("None", "0") and process.known


def test_a_signal_between_two_renames_loses_nothing(
    orchestrate: Orchestrate, job: Callable[..., Path], data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16", "args": ["--split-max-size", "4M"]})
    replace, seen = os.replace, list[str]()

    def interrupted(source: str | Path, dest: str | Path) -> None:
        replace(source, dest)
        if str(dest).endswith(".gguf"):
            seen.append(str(dest))
            if len(seen) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(placement.os, "replace", interrupted)
    assert orchestrate("run", file).code != 0
    monkeypatch.setattr(placement.os, "replace", replace)
    answer = orchestrate("run", file)
    assert answer.code == 0 and len(seen) > 1, answer.err
    receipt = pipeline_receipt.read(world / "dist" / "tiny-llama-f16.gguf")
    assert receipt and pipeline_receipt.recheck(world / "dist" / "tiny-llama-f16.gguf") == []
    assert not [*(world / "dist").glob(".*")] and msgspec.structs.asdict(receipt)["files"]
