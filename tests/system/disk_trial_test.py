"""What disks refuse: the real ones that can be mounted here, and calls that fail as they do on others."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import disk_trial
from tests.support import disks

root = pytest.mark.skipif(not disks.possible(), reason="only root can make a disk")
posix = pytest.mark.skipif(os.name == "nt", reason="links are no matter on Windows")


def causes(folder: Path) -> list[str]:
    return [refusal.cause for refusal in disk_trial.tried(folder, programs=True, links=True, locks=True)]


def test_a_good_disk_refuses_nothing_and_is_left_as_it_was(tmp_path: Path) -> None:
    assert causes(tmp_path / "not" / "here" / "yet") == [] and list(tmp_path.iterdir()) == []
    disk_trial.check(tmp_path, links=True)
    assert list(tmp_path.iterdir()) == []


@root
def test_a_disk_on_which_nothing_runs(tmp_path: Path) -> None:
    with disks.mounted(tmp_path / "disk", 4, "noexec"):
        assert causes(tmp_path / "disk") == ["noexec"]
        assert disk_trial.kind(tmp_path / "disk") == "tmpfs"
        with pytest.raises(OrchestrateError, match="noexec") as caught:
            disk_trial.check(tmp_path / "disk" / "cache")
        assert "ORCHESTRATE_CACHE_DIR" in caught.value.hint and not list((tmp_path / "disk").iterdir())


@root
def test_a_rule_that_lets_libraries_in_and_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_trial, "_unmapped", lambda file, what: None)
    with disks.mounted(tmp_path / "disk", 4, "noexec"):
        assert causes(tmp_path / "disk") == ["noexec"]


@root
def test_a_disk_that_takes_no_file(tmp_path: Path) -> None:
    with disks.mounted(tmp_path / "disk", 4, "ro"), pytest.raises(OSError, match="Read-only") as caught:
        causes(tmp_path / "disk")
    assert caught.value.errno == errno.EROFS


@posix
def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **how: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert causes(tmp_path) == ["links"]
    with pytest.raises(OrchestrateError, match="no symbolic links"):
        disk_trial.check(tmp_path, links=True)
    disk_trial.check(tmp_path)


@pytest.mark.parametrize("failure", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_disk_without_locks(failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any) -> None:
        raise failure

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert causes(tmp_path) == ["locks"]


@pytest.mark.skipif(sys.platform != "linux", reason="another system says it in other words")
def test_a_program_that_is_still_being_written_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_trial, "BUSY_SECONDS", 0.0)
    chmod, held = Path.chmod, list[Any]()

    def hold(path: Path, mode: int) -> None:
        chmod(path, mode)
        held.append(path.open("ab"))

    monkeypatch.setattr(Path, "chmod", hold)
    assert causes(tmp_path) == [], "busy is not forbidden"
    for file in held:
        file.close()
