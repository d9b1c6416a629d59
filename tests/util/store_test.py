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
    assert entry.bytes == 1


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
    assert [item.name for item in path.iterdir()] == ["whole"]
    (path / "whole").unlink()
    kept.ensure(
        "views", "k", lambda folder: (folder / "whole").touch(), lambda folder: "" if (folder / "whole").exists() else "gone"
    )
    assert (path / "whole").exists()


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    """A cache with one whole entry, of one file."""
    store = Store(tmp_path / "cache")
    store.ensure("binaries", "k", lambda folder: (folder / "program").write_text("it") and {"content": "1234"}, about="b1")
    return store


def test_a_mark_names_what_it_vouches_for(kept: Store) -> None:
    path = kept.entry("binaries", "k")
    mark = kept.mark("binaries", "k")
    assert mark and (mark.about, mark.facts) == ("b1", {"content": "1234"}) and kept.has("binaries", "k")
    assert [item.name for item in path.iterdir()] == ["program"], "a mark lies beside, for an archive may hold any name"
    (path / "__pycache__").mkdir()
    (path / "imports.json").touch()
    assert kept.has("binaries", "k"), "what Python and we ourselves put there later is no change"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "\xff", "null", '{"kind": "binaries", "key": "k"}',
        '{"format": 2, "kind": "binaries", "key": "k", "holds": ""}',
        '{"format": 1, "kind": "binaries", "key": "k", "holds": "", "more": 1}', "folder", "other",
    ],
)  # fmt: skip
def test_what_is_no_mark_of_this_entry_is_none(kept: Store, text: str) -> None:
    path, made = kept.entry("binaries", "k"), list[str]()
    mark = store.beside(path)
    if text == "folder":
        mark.unlink()
        (mark / "below").mkdir(parents=True)
    elif text == "other":
        mark.write_text(mark.read_text(encoding="utf-8").replace('"k"', '"l"'), encoding="utf-8")
    else:
        mark.write_text(text, encoding="latin-1")
    assert not kept.has("binaries", "k") and not store.entries(kept.root)[0].complete
    for _ in range(2):
        kept.ensure("binaries", "k", lambda folder: made.append("again"))
    assert made == ["again"] and kept.has("binaries", "k")


@pytest.mark.parametrize("change", ["shorter", "gone", "more", "unrunnable", "empty", "below"])
def test_an_entry_that_is_not_what_its_mark_vouches_for_is_made_anew(tmp_path: Path, change: str) -> None:
    if change == "unrunnable" and os.name == "nt":
        pytest.skip("there a name tells what may be run")
    kept = Store(tmp_path / "cache")

    def make(folder: Path) -> None:
        (folder / "bin").mkdir()
        (folder / "bin" / "program").write_text("it")
        (folder / "bin" / "program").chmod(0o755)

    path = kept.ensure("binaries", "k", make)
    program = path / "bin" / "program"
    assert kept.has("binaries", "k")
    if change in ("shorter", "empty"):
        program.write_text("i" if change == "shorter" else "")
    elif change == "gone":
        program.unlink()
    elif change == "unrunnable":
        program.chmod(0o644)
    else:
        (path / "more" if change == "more" else path / "bin" / "more").mkdir()
    assert not kept.has("binaries", "k")
    kept.ensure("binaries", "k", make)
    assert kept.has("binaries", "k") and sorted(item.name for item in path.rglob("*")) == ["bin", "program"]
    store.remove(path)
    assert not kept.has("binaries", "k") and kept.mark("binaries", "k") is None and not store.entries(kept.root)


@pytest.mark.parametrize(
    "name", ["complete.json", "k.complete.json", "content.sha256", "k.lock", "tree.sha256", ".complete.json"]
)
@pytest.mark.parametrize("inner", ["", "below"])
def test_no_name_in_an_entry_makes_it_count(tmp_path: Path, name: str, inner: str) -> None:
    kept = Store(tmp_path / "cache")

    def killed(folder: Path) -> None:
        (folder / name / inner).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / inner).write_text('{"kind": "binaries", "key": "k", "about": ""}')
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "remove", lambda path: None)  # as if the process had gone
        kept.ensure("binaries", "k", killed)
    assert (kept.entry("binaries", "k") / name).exists() and not kept.has("binaries", "k")
    kept.ensure("binaries", "k", lambda folder: (folder / "program").touch())
    assert [path.name for path in kept.entry("binaries", "k").iterdir()] == ["program"] and kept.has("binaries", "k")


@pytest.mark.parametrize("kind", ["environments", "builds", "imatrix", "binaries", "source", "bundles"])
def test_the_mark_of_an_older_version_holds_where_only_we_could_have_written_it(tmp_path: Path, kind: str) -> None:
    kept, made = Store(tmp_path), list[str]()
    path = kept.entry(kind, "k")
    path.mkdir(parents=True)
    (path / "complete.json").write_text(f'{{"kind": "{kind}", "key": "k", "about": "costly"}}\n')
    kept.ensure(kind, "k", lambda folder: made.append("again"))
    assert made == ([] if kind in store.OWN else ["again"]) and kept.has(kind, "k") and not kept.has(kind, "l")
    kept.ensure(kind, "k", lambda folder: made.append("ill"), lambda folder: "" if made[-1:] == ["ill"] else "ill")
    assert made[-1] == "ill" and kept.has(kind, "k") and not (path / "complete.json").exists()


def test_below_the_packages_of_an_environment_only_names_count(tmp_path: Path) -> None:
    deep = tmp_path / "venv" / "lib" / "python3.12" / "site-packages" / "package"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    before = store.listing(tmp_path)
    (deep / "file").unlink()
    assert store.listing(tmp_path) == before
    deep.rename(deep.with_name("other"))
    assert store.listing(tmp_path) != before


def test_a_kill_before_the_mark_is_in_place_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Store(tmp_path)

    def killed(source: Path, to: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        kept.ensure("source", "k", lambda folder: (folder / "file").touch())
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["k"] and not kept.has("source", "k")
    path = kept.ensure("source", "k", lambda folder: (folder / "file").touch())
    assert [item.name for item in path.iterdir()] == ["file"]


def test_pruning_takes_marks_first(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order = list[str]()
    monkeypatch.setattr(store, "remove", lambda path: order.append(path.name))
    store.prune(kept.root, ("binaries",))
    assert order == ["k.complete.json", "k"]


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


@pytest.mark.parametrize("damage", ["cut", "folder"])
def test_a_damaged_memory_of_a_digest_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(store, "TICK_SECONDS", 0.0)
    kept, file = Store(tmp_path / "c"), tmp_path / "f"
    file.write_bytes(b"a")
    digest = kept.sha256(file)
    (memo,) = (tmp_path / "c" / "memo").iterdir()
    text = memo.read_text()
    if damage == "cut":
        memo.write_text(text[:-1])
    else:
        memo.unlink()
        memo.mkdir()
    assert kept.sha256(file) == digest and memo.read_text() == text


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


def test_an_entry_that_nobody_uses_can_be_taken_away(kept: Store) -> None:
    with kept.using("binaries", "k"):
        kept.discard("binaries", "k")  # what this process itself uses, it may take away
    assert not kept.has("binaries", "k") and not kept.entry("binaries", "k").exists()
    assert not store.beside(kept.entry("binaries", "k")).exists() and not list(kept.folder("locks").glob("*.use.lock"))
    kept.discard("binaries", "k")


@pytest.mark.parametrize("name", ["binaries-k-elsewhere-1.use", "binaries-k"])
def test_an_entry_that_another_process_uses_or_makes_stays(kept: Store, name: str) -> None:
    with kept.lock(name):
        kept.discard("binaries", "k")
    assert kept.has("binaries", "k")
    kept.discard("binaries", "k")
    assert not kept.has("binaries", "k")


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


@pytest.mark.no_cover
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
