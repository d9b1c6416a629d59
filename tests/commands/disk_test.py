"""What the disk must hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import disk as system_disk


def test_the_disk_must_hold_the_job(tmp_path: Path) -> None:
    system_disk.check_space([system_disk.Need(str(tmp_path / "not" / "there"), 1, "a file")])
    with pytest.raises(OrchestrateError, match=r"need 1000.1 PB|need .* have .* missing \(.* for the moon\)"):
        system_disk.check_space([system_disk.Need(str(tmp_path), 10**18, "the moon")])
