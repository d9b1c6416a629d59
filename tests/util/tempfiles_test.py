from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llamacpp_orchestrator.util import tempfiles
from llamacpp_orchestrator.util.store import machine


def test_what_a_killed_writer_has_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        gone = child.pid
    left = tmp_path / f".{machine()}.{gone}.{'a' * 12}.new"
    kept = {
        f".{machine()}.{os.getpid()}.{'a' * 12}.new",
        f".{'0' * 8}.{gone}.{'a' * 12}.new",  # of another machine
        f".{machine()}.{'9' * 30}.{'a' * 12}.new",
        f".{machine()}.{gone}.new",
        "job.yaml",
    }
    for name in (left.name, *kept):
        (tmp_path / name).touch()
    tempfiles.sweep_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
    tempfiles.sweep_folder(tmp_path / "nowhere")
