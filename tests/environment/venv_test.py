"""Environments as they lie on disks, ours and users' own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.environment import venv as environment_venv
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import JobError


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
