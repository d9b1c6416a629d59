"""What is done at an address, in memory, in folders, and on the stand-in that fails."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.storage import remote
from tests.support import shelf
from tests.support.shelf import Shelf


def quiet(text: str) -> None:
    pass


@pytest.fixture(params=["file", "memory", "shelf"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[remote.Place]:
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    Shelf.empty()
    if request.param == "file":
        (tmp_path / "store").mkdir()
    yield remote.place(f"file://{tmp_path.as_posix()}/store" if request.param == "file" else f"{request.param}://{tmp_path.name}")
    Shelf.empty()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"0123456789" * 1000)
    return path


def test_what_is_put_is_seen_read_and_gone(
    place: remote.Place, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PIECE", 999)
    assert remote.look(place, "") == {} and remote.entry(place, "sub/a.gguf") is None and remote.read(place, "sub/a.gguf") == b""
    remote.put(place, file, "sub/a.gguf", quiet)
    remote.put(place, file, "sub/a.gguf", quiet)
    remote.put(place, file, "b.gguf", quiet)
    assert list(remote.look(place, "sub")) == ["a.gguf"] and list(remote.look(place, "")) == ["b.gguf"]
    assert set(remote.look(place, "", deep=True)) == {"b.gguf", "sub/a.gguf"}
    entry = remote.entry(place, "sub/a.gguf")
    assert entry == remote.look(place, "sub")["a.gguf"] and entry.size == 10000 and entry.version
    assert remote.sha256(place, "sub/a.gguf", 10000, quiet) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert remote.read(place, "sub/a.gguf") == file.read_bytes()
    remote.get(place, "sub/a.gguf", tmp_path / "back", quiet)
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    remote.remove(place, "sub/a.gguf")
    remote.remove(place, "sub/a.gguf")
    assert remote.look(place, "sub") == {} and remote.entry(place, "sub/a.gguf") is None


def test_a_large_file_is_not_read_at_once(place: remote.Place, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LARGEST_SMALL", 9999)
    remote.put(place, file, "a.gguf", quiet)
    assert remote.read(place, "a.gguf") == b""


@pytest.mark.parametrize("call", ["put", "after put", "mv"])
def test_what_is_cut_leaves_nothing(tmp_path: Path, file: Path, call: str) -> None:
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    Shelf.empty()
    there = remote.place(f"shelf://{tmp_path.name}")
    Shelf.faults[call] = shelf.full
    with pytest.raises(OrchestrateError, match="is full"):
        remote.put(there, file, "a.gguf", quiet)
    assert Shelf.names() == []


def test_nothing_of_a_folder_beside_is_taken_for_what_is_in_it(place: remote.Place, file: Path) -> None:
    remote.put(place, file, "sub-2/a.gguf", quiet)
    assert remote.look(place, "sub") == {} and remote.look(place, "sub", deep=True) == {}


def test_an_unknown_protocol() -> None:
    with pytest.raises(JobError, match="nothing here knows the protocol odd://"):
        remote.place("odd://x")
