"""What was seen at an address, noted beside the place of each file."""

from __future__ import annotations

from pathlib import Path

from llamacpp_orchestrator.storage import stored
from llamacpp_orchestrator.storage.stored import Stored


def test_what_was_seen_is_read_again_and_forgotten(tmp_path: Path) -> None:
    path, seen = tmp_path / "sub" / ("x" * 250), Stored(address="s3://b/x", size=3, version="e", ours=True, sha256="d")
    assert stored.read(path) is None
    stored.write(path, None)
    stored.write(path, seen)
    assert stored.read(path) == seen and not path.exists()
    stored.write(path, None)
    assert stored.read(path) is None and not list(path.parent.iterdir())


def test_a_damaged_note_is_none(tmp_path: Path) -> None:
    stored.note(tmp_path / "x").write_text("{")
    assert stored.read(tmp_path / "x") is None
