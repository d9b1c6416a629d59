from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.util import cancel
from llamacpp_orchestrator.util import disk
from llamacpp_orchestrator.util import hashing


@pytest.fixture
def stopping() -> Iterator[None]:
    cancel.STOP.set()
    yield
    cancel.STOP.clear()


@pytest.mark.parametrize("size", [0, 1, hashing.BUFFER - 1, hashing.BUFFER, hashing.BUFFER + 1])
def test_the_digest_of_a_file_of_any_size(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert hashing.file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert hashing.file_digest(tmp_path / "file", hashlib.sha1(b"begun")) == hashlib.sha1(b"begun" + content).hexdigest()


def test_a_signal_ends_what_reads_and_what_waits(tmp_path: Path, stopping: None) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(Stopped):
        hashing.file_sha256(tmp_path / "file")
    with pytest.raises(Stopped):
        cancel.wait(60)


def test_a_disk_without_room_says_how_much_is_missing(tmp_path: Path) -> None:
    disk.need_room(tmp_path, 0, "to do nothing")
    assert disk.shortage(tmp_path, 0) == ""
    with pytest.raises(OrchestrateError, match=r"need 1000000\.0 TB to fly, have .* missing"):
        disk.need_room(tmp_path, 10**18, "to fly")
