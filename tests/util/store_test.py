"""The store: entries made once, digests remembered, and what may be removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util import hashing
from llamacpp_orchestrator.util import store
from llamacpp_orchestrator.util.store import Store


def test_an_entry_is_made_once_even_by_many_at_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make(path: Path) -> None:
        made.append(1)
        time.sleep(0.05)
        (path / "file").write_text("x")

    kept = Store(tmp_path / "cache")
    threads = [threading.Thread(target=kept.ensure, args=("source", "k", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and kept.has("source", "k") and (kept.entry("source", "k") / "file").read_text() == "x"
    (entry,) = store.entries(kept.root)
    assert (entry.kind, entry.key, entry.complete) == ("source", "k", True)
    assert entry.bytes == (kept.entry("source", "k") / "complete.json").stat().st_size + 1


def test_what_failed_or_fell_ill_is_made_anew(tmp_path: Path) -> None:
    kept = Store(tmp_path)

    def broken(path: Path) -> None:
        (path / "half").touch()
        raise OSError("no")

    with pytest.raises(OSError):
        kept.ensure("views", "k", broken)
    assert not kept.entry("views", "k").exists()
    kept.entry("views", "k").mkdir(parents=True)
    (kept.entry("views", "k") / "half").touch()
    path = kept.ensure("views", "k", lambda folder: (folder / "whole").touch())
    assert sorted(item.name for item in path.iterdir()) == ["complete.json", "whole"]
    (path / "whole").unlink()
    kept.ensure(
        "views", "k", lambda folder: (folder / "whole").touch(), lambda folder: "" if (folder / "whole").exists() else "gone"
    )
    assert (path / "whole").exists()


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    kept, file = Store(tmp_path / "c"), tmp_path / "f"
    file.write_bytes(b"a")
    first = kept.sha256(file)
    assert kept.sha256(file) == first == hashing.file_sha256(file)
    file.write_bytes(b"bb")
    assert kept.sha256(file) == hashing.file_sha256(file) != first
    for memo in (tmp_path / "c" / "memo").iterdir():
        memo.write_text("damaged")
    assert kept.sha256(file) == hashing.file_sha256(file)


def test_a_digest_is_believed_once_the_disks_clock_has_gone_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, file = Store(tmp_path / "c"), tmp_path / "f"
    file.write_text("one")
    kept.sha256(file)
    assert not list((tmp_path / "c" / "memo").iterdir()), "it may change again and look the same"
    monkeypatch.setattr(store, "TICK_SECONDS", 0.0)
    kept.sha256(file)
    assert len(list((tmp_path / "c" / "memo").iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="its third time is the one when a file was made")
def test_a_file_whose_time_was_set_back_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "TICK_SECONDS", 0.0)
    kept, file = Store(tmp_path / "c"), tmp_path / "f"
    for text in ("one", "two"):
        file.write_text(text)
        os.utime(file, ns=(10**18, 10**18))
        time.sleep(0.05)  # the system's own time must have gone on
        assert kept.sha256(file) == hashlib.sha256(text.encode()).hexdigest()


def test_a_place_where_no_cache_can_be_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OrchestrateError, match=f"there can be no cache at {root}") as caught:
            Store(root).folder("logs")
        assert "ORCHESTRATE_CACHE_DIR" in caught.value.hint


def test_what_somebody_still_writes_to_is_removed_all_the_same(tmp_path: Path) -> None:
    folder, until = tmp_path / "entry", time.monotonic() + 0.5

    def write() -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                (folder / "below").mkdir(parents=True, exist_ok=True)
                (folder / "below" / os.urandom(4).hex()).touch()

    writer = threading.Thread(target=write)
    writer.start()
    while not folder.exists():
        time.sleep(0.001)
    for _ in range(3):
        store.remove(folder)
    writer.join()
    store.remove(folder)
    assert not folder.exists()


def test_pruning_refuses_what_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "mine").write_text("mine")
    with pytest.raises(OrchestrateError, match="not a cache of ours"):
        store.prune(tmp_path, ("source",))
    kept = Store(tmp_path / "cache")
    (kept.folder("logs") / "a").write_bytes(b"1234")
    assert store.prune(kept.root, ("logs",)) == 4 and not (kept.root / "logs" / "a").exists()


def test_writing_into_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(OrchestrateError, match="cannot write"):
        store.write_atomically(tmp_path / "no" / "file", "x")


def test_read_only_files_are_removed_too(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").touch(0o400)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    store.remove(tmp_path / "link")
    assert (tmp_path / "d").exists()
    store.remove(tmp_path / "d")
    store.remove(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_another_makes_anew_while_it_is_looked_at_is_waited_for(tmp_path: Path) -> None:
    store, looks, made = Store(tmp_path / "cache"), iter(("gone", "")), list[str]()
    store.ensure("source", "k", lambda entry: made.append("first"))

    def healthy(entry: Path) -> str:
        if next(looks):
            raise FileNotFoundError(2, "no such file", str(entry / "script.py"))
        return ""

    store.ensure("source", "k", lambda entry: made.append("again"), healthy)
    assert made == ["first"]


def test_ten_thousand_entries_cost_seconds_at_most(tmp_path: Path) -> None:
    kept = Store(tmp_path / "cache")
    for number in range(10_000):
        place = kept.folder("views") / f"{number}"
        place.mkdir()
        (place / "file").write_text("x")
    began = time.monotonic()
    kept.ensure("views", "new", lambda path: (path / "file").touch())
    assert kept.has("views", "new") and time.monotonic() - began < 2
    assert len(store.entries(kept.root)) == 10_001 and store.prune(kept.root, ("views",)) >= 10_000
    assert time.monotonic() - began < 60
