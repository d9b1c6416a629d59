"""The lock: read back strictly, moved part by part, and enough to work without a network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.models.hub import HubFile
from tests.support.answer import Answer
from tests.support.locks import JOB
from tests.support.locks import REQUIREMENTS
from tests.support.locks import a_lock

Run = Callable[..., Answer]


def test_what_is_written_reads_back_and_is_the_same_text(tmp_path: Path) -> None:
    lock_file.write(tmp_path / "job.lock.yaml", a_lock())
    assert lock_file.read(tmp_path / "job.lock.yaml") == a_lock()
    assert lock_file.text_of(a_lock()) == (tmp_path / "job.lock.yaml").read_text(encoding="utf-8")
    lock_file.write(tmp_path / "job.lock.yaml", lock_file.read(tmp_path / "job.lock.yaml") or a_lock())
    assert lock_file.text_of(a_lock()) == (tmp_path / "job.lock.yaml").read_text(encoding="utf-8")
    assert lock_file.read(tmp_path / "none.yaml") is None
    assert diff.stale_reasons(JOB, a_lock()) == []


def test_a_byte_order_mark_moves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "job.lock.yaml"
    path.write_text(lock_file.text_of(a_lock()), encoding="utf-8-sig")
    assert lock_file.read(path) == a_lock()
    path.write_text("version: &a 1\n", encoding="utf-8-sig")
    with pytest.raises(LockError, match="anchors and aliases"):
        lock_file.read(path)


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\r", "\n", " \n"])
def test_every_end_of_a_line_reads_back(tmp_path: Path, end: str) -> None:
    lock = msgspec.structs.replace(a_lock(), llama_cpp=msgspec.structs.replace(a_lock().llama_cpp, repo=f"a{end}b{end}"))
    lock_file.write(tmp_path / "job.lock.yaml", lock)
    assert lock_file.read(tmp_path / "job.lock.yaml") == lock


@pytest.mark.parametrize(
    ("old", "new", "line_with", "said"),
    [
        ("tree: '" + "3" * 64, "tree: '" + "3" * 63, "tree:", "does not match|matching"),
        ("commit: " + "c" * 40, "commit: main", "commit: main", "matching"),
        ("python: '3.11'", "python: '4'", "python:", "matching"),
        ("size: 5", "size: five", "size: five", "Expected `int`"),
        ("size: 5", "size: -5", "size: -5", "size or sha256"),
        ("sha256: '" + "6" * 64, "sha256: '66", "adapter_config.json", "neither a sha256"),
        ("path: config.json", "path: ../config.json", "files:", "leave its folder"),
        ("name: llama-b11434-bin", "name: ../x/llama-b11434-bin", "../x", "no asset"),
        ("url: 'https", "url: 'ftp", "ftp", "no asset"),
        ("torch==2.13.0 ;", "--index-url=http://evil/ ;", "requirements:", "neither a pinned package"),
        ("torch==2.13.0 ;", "torch @ http://evil/t.whl ;", "requirements:", "neither a pinned package"),
        ("version: 1\n", "version: 2\n", "version: 2", "format 2"),
        ("version: 1\n", "version: 1\nversion: 1\n", "version: 1", "stands twice"),
        ("version: 1\n", "version: 1\nnonsense: 1\n", "version: 1", "unknown field `nonsense`"),
        ("version: 1\n", "version: [1\n", "", "expected"),
        ("models:\n", "models: 3\nmodel:\n", "models: 3", "Expected `array`"),
        ("source: org/l, kind: adapter", "source: org/m, kind: model", "", "twice"),
    ],
)  # fmt: skip
def test_a_damaged_lock_is_an_error_with_its_line(tmp_path: Path, old: str, new: str, line_with: str, said: str) -> None:
    text = lock_file.text_of(a_lock())
    assert old in text
    damaged = text.replace(old, new, 1)
    path = tmp_path / "job.lock.yaml"
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(LockError, match=said) as caught:
        lock_file.read(path)
    line = int(re.match(r"job\.lock\.yaml:(\d+): ", caught.value.message)[1])  # type: ignore[index]
    near = "\n".join(damaged.splitlines()[max(0, line - 2) : line + 1])
    assert line_with in near


def test_a_lock_that_is_not_utf_8_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "job.lock.yaml").write_bytes(b"\xff")
    with pytest.raises(LockError, match="cannot be read"):
        lock_file.read(tmp_path / "job.lock.yaml")


@pytest.mark.parametrize("make", [Path.mkdir, getattr(os, "mkfifo", Path.mkdir)])
def test_what_is_no_file_is_no_lock(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "job.lock.yaml")
    with pytest.raises(LockError, match="job.lock.yaml is a folder, a pipe or a device"):
        lock_file.read(tmp_path / "job.lock.yaml")


def test_a_merge_with_both_sides_is_told_as_such(tmp_path: Path) -> None:
    lines = lock_file.text_of(a_lock()).splitlines()
    (tmp_path / "job.lock.yaml").write_text("\n".join([*lines[:5], "<<<<<<< ours", *lines[5:7], "=======", ">>>>>>> theirs"]))
    with pytest.raises(LockError, match=r"job\.lock\.yaml:6: a merge has left both sides") as caught:
        lock_file.read(tmp_path / "job.lock.yaml")
    assert "git checkout" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "[1", "a", "a: 1", "version: 1", "\x00", "models: *x", "{}", "? [a]\n: b"])
def test_what_is_no_lock_at_all_is_damaged_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.lock.yaml").write_text(text)
    with pytest.raises(LockError, match=r"job\.lock\.yaml:\d+: the lock is damaged"):
        lock_file.read(tmp_path / "job.lock.yaml")


@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ("", {"source", "environment", "spare", "assets", "org/m", "org/l"}),
        ("all", set()),
        ("llama_cpp", {"spare", "org/m", "org/l"}),
        ("environment", {"source", "assets", "org/m", "org/l"}),
        ("models", {"source", "environment", "spare", "assets"}),
        ("m", {"source", "environment", "spare", "assets", "org/l"}),
        ("org/l", {"source", "environment", "spare", "assets", "org/m"}),
    ],
)
def test_an_upgrade_moves_what_it_names_and_nothing_else(what: str, kept: set[str]) -> None:
    parts = msgspec.structs.asdict(diff.fitting(JOB, a_lock(), what))
    models = {wanted.source for wanted in parts.pop("models")}
    assert {part for part, pin in parts.items() if pin} | models == kept


def test_an_upgrade_of_nothing_known_names_what_is_known() -> None:
    with pytest.raises(JobError, match='did you mean "models"'):
        diff.fitting(JOB, a_lock(), "model")


def test_what_moved_is_said_old_and_new() -> None:
    old = a_lock()
    assert diff.moved(old, old) == []
    files = (HubFile(path="config.json", size=3, oid="e" * 40), HubFile(path="new.json", size=3, oid="f" * 40))
    new = msgspec.structs.replace(
        old,
        llama_cpp=msgspec.structs.replace(old.llama_cpp, commit="d" * 40),
        environment=msgspec.structs.replace(old.environment, requirements=REQUIREMENTS.replace("1.26.4", "2.0.0")),
        assets=(msgspec.structs.replace(old.assets[0], sha256="7" * 64),),
        models=(msgspec.structs.replace(old.models[0], commit="b" * 40, files=files), old.models[1]),
    )
    said = diff.moved(old, new)
    assert f"llama_cpp: commit {'c' * 40} → {'d' * 40}" in said
    assert any(re.fullmatch(r"environment: numpy 1\.26\.4 \(hashes (\w+)\) → 2\.0\.0 \(hashes \1\)", line) for line in said)
    assert f"binaries: llama-b11434-bin-ubuntu-x64.tar.gz {'5' * 64} → {'7' * 64}" in said
    assert [line for line in said if line.startswith("org/m")] == [
        f"org/m: {'a' * 40} → {'b' * 40}",
        f"org/m: config.json {'b' * 40} → {'e' * 40}",
        f"org/m: new.json none → {'f' * 40}",
    ]
    assert len(said) == 6


def test_without_a_network_a_run_needs_nothing_but_what_is_here(
    orchestrate: Run, job: Callable[..., Path], copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy("tiny-llama")
    file = job({"source": "./model", "outtype": "f16"})
    first = orchestrate("run", file, "--json")
    assert first.code == 0, first.err
    again = orchestrate("run", file, "--json", "--offline", "--force")
    assert again.code == 0, again.err
    assert [each["sha256"] for each in again.json()["outputs"]] == [each["sha256"] for each in first.json()["outputs"]]

    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(tmp_path / "empty"))
    cold = orchestrate("run", file, "--offline", "--force")
    assert cold.code == 1
    assert "the converter tree of b11434" in cold.err and "the Python environment" in cold.err
    file.with_name("job.lock.yaml").unlink()
    unlocked = orchestrate("lock", file, "--offline")
    assert (unlocked.code, file.with_name("job.lock.yaml").exists()) == (1, False)
    assert "what the tag b11434 points at" in unlocked.err


def test_lock_upgrade_takes_the_job_before_or_after_the_option(
    orchestrate: Run, job: Callable[..., Path], copy: Callable[..., Path]
) -> None:
    model = copy("tiny-llama")
    file = job({"source": "./model", "outtype": "f16"})
    assert orchestrate("lock", file).code == 0
    lock = file.with_name("job.lock.yaml")
    before = lock_file.read(lock)
    (model / "generation_config.json").write_text('{"max_length": 7}')
    for argv in (("lock", file, "--upgrade", "model"), ("lock", "--upgrade", file)):
        said = orchestrate(*argv)
        assert said.code == 0, said.err
        after = lock_file.read(lock)
        assert before and after and (before.llama_cpp, before.environment) == (after.llama_cpp, after.environment)
    assert "generation_config.json" in lock.read_text()
    wrong = orchestrate("lock", file, "--upgrade", "nothing")
    assert wrong.code == 2 and "no such part of the lock" in wrong.err
    for argv in (("lock", "--upgrade"), ("lock", file, "--upgrade")):  # without a name it is the only job of the folder
        said = orchestrate(*argv)
        assert said.code == 0 and "nothing has moved: the lock is as it was" in said.err, said.err
    assert orchestrate("lock", file, "--locked", "--upgrade", "models").code == 2


def test_a_tag_with_the_same_requirements_keeps_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = msgspec.structs.replace(JOB, llama_cpp=msgspec.structs.replace(JOB.llama_cpp, tag="b11400"))
    found = diff.fitting(other, a_lock())
    assert (found.source, found.environment, found.spare) == (None, None, a_lock().environment)


def test_the_environment_of_peft_is_locked_where_an_adapter_needs_it() -> None:
    adapter = spec.Merge(source="./loha", name="loha")
    job: Any = msgspec.structs.replace(JOB, models=(msgspec.structs.replace(JOB.models[0], merge=(adapter,), loras=()),))
    pin = FilesPin(wanted=records.merge_wanted(adapter), files=())
    base = next(other for other in a_lock().models if other.wanted == records.base_wanted(job.models[0]))
    plain, by_peft = (
        msgspec.structs.replace(a_lock(), models=(base, msgspec.structs.replace(pin, by_peft=needed))) for needed in (False, True)
    )
    assert diff.stale_reasons(job, plain) == []
    (reason,) = diff.stale_reasons(job, by_peft)
    assert reason.startswith("reference: the environment of PEFT, which has to merge an adapter, is not locked")
    assert diff.stale_reasons(job, msgspec.structs.replace(by_peft, reference=REFERENCE)) == []


COMPARING: Any = msgspec.structs.replace(JOB, models=(msgspec.structs.replace(JOB.models[0], verify="logits"),))
REFERENCE = EnvironmentPin(
    upstream="7" * 64, torch="cpu", python="3.11", requirements=f"peft==0.21.2 \\\n    --hash=sha256:{'8' * 64}\n"
)


def test_what_is_compared_with_is_completed_where_it_is_asked_for_and_lacking(tmp_path: Path) -> None:
    old, whole = a_lock(), msgspec.structs.replace(a_lock(), reference=REFERENCE)
    assert diff.stale_reasons(JOB, old) == []
    (reason,) = diff.stale_reasons(COMPARING, old)
    assert reason.startswith("reference: the environment that `verify: logits` compares with is not locked")
    assert diff.stale_reasons(COMPARING, whole) == diff.stale_reasons(JOB, whole) == []
    assert lock_file.hashes(whole) == lock_file.hashes(old) | {"8" * 64} and lock_file.environments(whole) == (
        old.environment,
        REFERENCE,
    )
    assert diff.moved(old, whole)[-1].startswith("reference: peft none → 0.21.2")
    lock_file.write(tmp_path / "job.lock.yaml", whole)
    assert lock_file.read(tmp_path / "job.lock.yaml") == whole
    damaged = lock_file.text_of(whole).replace("peft==0.21.2", "peft @ https://h/peft.whl")
    (tmp_path / "job.lock.yaml").write_text(damaged, encoding="utf-8")
    with pytest.raises(LockError, match=r"neither a pinned package nor a hash - at `\$\.reference\.requirements`"):
        lock_file.read(tmp_path / "job.lock.yaml")


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"overrides": ("transformers==4.51.0",)}, True),
        ({"overrides": ("torch==2.13.0",)}, False),
        ({"torch": "cu128"}, False),
        ({"python": "3.12"}, False),
        ({"path": "own"}, True),
    ],
)
def test_what_is_compared_with_follows_what_is_said_of_the_machine(changes: dict[str, Any], kept: bool) -> None:
    environment = msgspec.structs.replace(COMPARING.environment, **changes)
    found = diff.fitting(
        msgspec.structs.replace(COMPARING, environment=environment), msgspec.structs.replace(a_lock(), reference=REFERENCE)
    )
    assert bool(found.reference) == kept


@pytest.mark.parametrize(("what", "kept"), [("environment", False), ("all", False), ("llama_cpp", True), ("models", True)])
def test_what_is_compared_with_moves_with_the_environment(what: str, kept: bool) -> None:
    lock = msgspec.structs.replace(a_lock(), reference=REFERENCE)
    assert bool(diff.fitting(COMPARING, lock, what).reference) == kept
