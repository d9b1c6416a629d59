"""Environments as they lie on disks, ours and users' own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import venv as environment_venv
from llamacpp_orchestrator.environment.pin import Pin
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings


def test_python_is_found_in_every_layout(tmp_path: Path) -> None:
    for layout in ("bin/python", "Scripts/python.exe", "python.exe"):
        venv = tmp_path / layout.replace("/", "-")
        (venv / layout).parent.mkdir(parents=True)
        (venv / layout).touch()
        assert python_in(venv) == venv / layout
    assert environment_venv.unhealthy(tmp_path / "gone") == "its interpreter is gone"


def test_an_own_environment_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no Python in"):
        environment_venv.own(tmp_path, tmp_path / "job.yaml")


@pytest.mark.parametrize("lost", ["", "a/__init__.py", "a-1.0.dist-info/RECORD", "all"])
def test_an_environment_whose_packages_have_gone_is_made_again(lost: str, tmp_path: Path) -> None:
    python = python_in(tmp_path / "venv")
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    for file in (python, packages / "a" / "__init__.py", packages / "a-1.0.dist-info" / "METADATA"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o755)
    (packages / "a-1.0.dist-info" / "RECORD").write_text("../../../bin/a,,\na-1.0.dist-info/METADATA,,\na/__init__.py,,\n")
    if lost == "all":
        shutil.rmtree(packages)
    elif lost:
        # As uv lays an environment out with UV_LINK_MODE=symlink, once its cache was pruned.
        (packages / lost).unlink()
        (packages / lost).symlink_to(tmp_path / "pruned")
    assert environment_venv.unhealthy(tmp_path) == ("files of its packages are gone" if lost else "")
    python.chmod(0o644)  # as a copy without rights has it
    assert os.name == "nt" or environment_venv.unhealthy(tmp_path) == "its interpreter may not be started"


@pytest.mark.parametrize(
    ("torch", "extra", "marker", "refused"),
    [
        ("cpu", None, "", True),
        ("cpu", None, " ; sys_platform == 'plan9'", False),
        ("cpu", "https://torch/cpu", "", False),
        ("cu128", None, "", False),
        ("upstream", None, "", False),
    ],
)
def test_gigabytes_of_cuda_are_not_taken_unasked(
    torch: str, extra: str | None, marker: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Command] = []
    monkeypatch.setattr(indexes, "places", lambda *_: (Index(), extra))
    monkeypatch.setattr(environment_venv.process, "stream", lambda command, *_: calls.append(command))
    pin = Pin(python="3.11", requirements=f"nvidia-cublas==1.0{marker} \\\n    --hash=sha256:{'0' * 64}\ntorch==2.0\n")
    words: tuple[Any, ...] = (pin, torch, Settings(cache=tmp_path, index=Index()), tmp_path, tmp_path / "log", print)
    if refused:
        with pytest.raises(OrchestrateError, match="only with CUDA") as caught:
            environment_venv.build(*words)
        assert "ORCHESTRATE_TORCH_INDEX" in caught.value.hint and "torch: upstream" in caught.value.hint and not calls
    else:
        environment_venv.build(*words)
        assert len(calls) == 2
