"""Folders as a job uses them: what is said of each, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llamacpp_orchestrator.doctor import disks as doctor_disks
from llamacpp_orchestrator.doctor.disks import Place
from llamacpp_orchestrator.doctor.servers import _check_room
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models.selection import HubFile
from llamacpp_orchestrator.models.selection import Snapshot
from llamacpp_orchestrator.system import disk_trial
from tests.support import disks


def examined(folder: Path, room: int = 0, inner: bool = False) -> list[tuple[bool, str, str]]:
    place = Place(name="cache", folder=folder, way="go elsewhere", room=room, programs=True, links=True, inner=inner)
    return [(line.ok, line.cause, line.said) for line in doctor_disks.examine(place)]


def test_a_folder_that_is_not_there_yet_is_looked_at_and_not_made(tmp_path: Path) -> None:
    ((ok, _, said),) = examined(tmp_path / "a" / "b")
    assert ok and " free" in said and str(tmp_path / "a" / "b") in said and not list(tmp_path.iterdir())


def test_a_part_of_the_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ((ok, cause, said),) = examined(tmp_path / "file" / "cache")
    assert not ok and cause == "path" and said.endswith("go elsewhere")


def test_too_little_room_and_nothing_to_run_are_both_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_trial, "_unmapped", lambda file, what: disk_trial.Refusal("noexec", "no program runs"))
    assert [cause for _, cause, _ in examined(tmp_path, room=1 << 60)] == ["noexec", "space"]


def test_what_another_user_has_made_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "environments").mkdir()
    assert examined(tmp_path, inner=True)[0][0]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    ((ok, cause, said),) = examined(tmp_path, inner=True)
    assert not ok and cause == "rights" and "who made it" in said


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **how: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    assert examined(tmp_path)[0][:2] == (False, "disk")


FILE = HubFile(path="model.safetensors", size=5 << 30, sha256="a", oid="b")
SNAPSHOT = Snapshot(source="org/m", commit="0" * 40, files=(FILE,))


def test_files_for_which_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=1 << 30))
    with pytest.raises(OrchestrateError, match="for the files of org/m"):
        _check_room(SNAPSHOT, FILE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=1 << 40))
    _check_room(SNAPSHOT, FILE)
    monkeypatch.setattr(disk_trial, "kind", lambda path: "vfat")
    assert "no file of 4 GiB or more" in examined(tmp_path)[0][2]
    with pytest.raises(OrchestrateError, match="takes no file of 4 GiB"):
        _check_room(SNAPSHOT, FILE)


@pytest.mark.parametrize("kind", ["vfat", "exfat"])
def test_a_real_disk_of_a_camera_or_stick(kind: str, tmp_path: Path) -> None:
    known = Path("/proc/filesystems")
    if not disks.possible() or not shutil.which(f"mkfs.{kind}") or kind not in known.read_text(encoding="utf-8").split():
        pytest.skip(f"no {kind} can be made here")
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    place.mkdir()
    subprocess.run([f"mkfs.{kind}", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        assert [cause for _, cause, _ in examined(place / "cache")] == ["links"]
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
