"""Store, steps and processes: made once, in order, and everything ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import log_of
from llamacpp_orchestrator.system.scheduler import run
from llamacpp_orchestrator.util import background
from llamacpp_orchestrator.util import cancel
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
    assert store.entries(kept.root) == [("source", "k", (kept.entry("source", "k") / "complete.json").stat().st_size + 1, True)]


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


def steps_of(order: list[str], **needs: tuple[str, ...]) -> list[Step]:
    def action(name: str) -> Step:
        def act(tell: Tell) -> str:
            tell("working")
            if name == "old":
                tell("note: old is special")
            order.append(name)
            if name.startswith("bad"):
                raise OrchestrateError("broke", "mend it")
            if name.startswith("bug"):
                raise ZeroDivisionError("oops")
            return "current" if name.startswith("old") else "done"

        return Step(name=name, action=act, needs=needs[name], heavy=name.startswith("heavy"))

    return [action(name) for name in needs]


def test_steps_run_in_order_and_report(tmp_path: Path) -> None:
    order: list[str] = []
    seen: list[Event] = []
    ended = run(steps_of(order, c=("b", "old"), b=("a",), a=(), old=()), 1, False, seen.append)
    assert order.index("a") < order.index("b") < order.index("c")
    assert {event.step: event.status for event in ended} == {"a": "done", "b": "done", "c": "done", "old": "current"}
    assert [event.text for event in seen if event.step == "a"] == ["", "working", ""]
    assert [(event.step, event.text) for event in seen if event.status == "note"] == [("old", "old is special")]


@pytest.mark.parametrize(("keep_going", "free"), [(True, "done"), (False, "blocked")])
def test_a_failure_blocks_what_needs_it(keep_going: bool, free: str) -> None:
    ended = {
        event.step: event
        for event in run(
            steps_of([], bad=(), after=("bad",), late=("after",), first=(), free=("slow",), slow=("first",)),
            1,
            keep_going,
            lambda event: None,
        )
    }
    assert ended["bad"].status == "failed" and ended["after"].text == "by bad" and ended["late"].status == "blocked"
    assert isinstance(ended["bad"].error, OrchestrateError) and (not keep_going or ended["free"].status == free)


def test_a_bug_in_a_step_is_an_event_with_its_error() -> None:
    (event,) = run(steps_of([], bug=()), 1, False, lambda event: None)
    assert event.status == "failed" and isinstance(event.error, ZeroDivisionError) and "ZeroDivisionError: oops" in event.text


def test_at_most_so_many_heavy_steps_at_a_time() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def act(tell: Tell) -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return "done"

    run([Step(name=str(number), action=act, heavy=True) for number in range(8)], 2, False, lambda event: None)
    assert most[0] == 2


PYTHON = sys.executable


def python(code: str) -> Command:
    return Command((PYTHON, "-c", code), env=clean_env())


def test_short_questions() -> None:
    assert process.capture(python("print(5)")).strip() == "5"
    with pytest.raises(CommandFailed, match="ended with exit code 3: why") as failed:
        process.capture(python("import sys; sys.stderr.write('why'); sys.exit(3)"))
    assert failed.value.code == 3
    with pytest.raises(CommandFailed, match="no answer in 0 s"):
        process.capture(python("import time; time.sleep(30)"), timeout=0.2)
    with pytest.raises(CommandFailed, match="could not be started"):
        process.capture(Command(("/no/such/program",)))
    assert len(process.capture(python("print('x' * 300_000)"))) > 300_000


def test_a_short_question_ends_with_us() -> None:
    timer, began = threading.Timer(0.4, cancel.STOP.set), time.monotonic()
    timer.start()
    try:
        with pytest.raises(Stopped):
            process.capture(python("import time; time.sleep(30)"))
    finally:
        timer.join()
        cancel.STOP.clear()
    assert time.monotonic() - began < 10


def test_long_work_is_logged_line_by_line(tmp_path: Path) -> None:
    lines: list[str] = []
    process.stream(python("print('one'); print('two')"), tmp_path / "logs" / "x.log", lines.append)
    assert lines == ["one", "two"] and "two" in (tmp_path / "logs" / "x.log").read_text()
    with pytest.raises(CommandFailed) as failed:
        process.stream(python("print('a\\rb'); raise SystemExit(4)"), tmp_path / "y.log")
    assert failed.value.code == 4 and failed.value.tail.endswith("b") and failed.value.log == tmp_path / "y.log"


def test_long_work_may_have_a_limit(tmp_path: Path) -> None:
    process.stream(python("print('in time')"), tmp_path / "x.log", limit=60.0)
    began = time.monotonic()
    with pytest.raises(CommandFailed, match="took longer than 2 s") as late:
        process.stream(python("print('begun', flush=True); import time; time.sleep(60)"), tmp_path / "y.log", limit=1.5)
    assert time.monotonic() - began < 30 and late.value.tail.endswith("begun")


@pytest.mark.parametrize(("code", "words"), [(-9, "memory"), (-15, "signal 15"), (2, "exit code 2")])
def test_how_a_process_ended(code: int, words: str) -> None:
    assert words in process.ended(code)


def test_a_child_is_ended_with_all_of_its_own(tmp_path: Path) -> None:
    code = "import subprocess,sys,time; subprocess.Popen([sys.executable,'-c','import time; time.sleep(60)'])"
    code += "; print('up',flush=True); time.sleep(60)"
    child = process.start(python(code), stderr=tmp_path / "err")
    assert child.stdout and child.stdout.readline() == b"up" + os.linesep.encode()
    began = time.monotonic()
    process.stop(child)
    assert child.returncode and time.monotonic() - began < process.GRACE_SECONDS + 2
    child.stdout.close()
    assert child.stdin
    child.stdin.close()


def test_a_program_on_our_own_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert process.attached(python("print('seen'); raise SystemExit(5)")) == 5 and "seen" in capfd.readouterr().out
    with pytest.raises(CommandFailed):
        process.attached(Command(("/no/such/program",)))


def test_logs_have_names_that_fit_and_that_no_two_steps_share(tmp_path: Path) -> None:
    assert log_of("convert tiny/a b-f16.gguf", tmp_path) == tmp_path / "convert-tiny-a-b-f16.gguf.log"
    # The longest names that outputs may have, in letters of one byte and of three, for two types.
    steps = [f"convert {name}-{kind}.gguf" for name in ("x" * 236, "模" * 78) for kind in ("f16", "q8_0")]
    logs = [log_of(step, tmp_path) for step in steps]
    assert len(set(logs)) == len(steps)
    for log in logs:
        log.touch()


def test_work_aside_goes_on_beside_and_ends_with_its_result_or_its_failure() -> None:
    gate = threading.Event()
    end = background.begin(lambda: gate.wait(10) and "done")
    gate.set()
    assert end() == "done" == end()

    def broken() -> None:
        raise OrchestrateError("no")

    failed = background.begin(broken)
    with pytest.raises(OrchestrateError, match="no"):
        failed()


def test_an_entry_that_another_makes_anew_while_it_is_looked_at_is_waited_for(tmp_path: Path) -> None:
    store, looks, made = Store(tmp_path / "cache"), iter(("gone", "")), list[str]()
    store.ensure("source", "k", lambda entry: made.append("first"))

    def healthy(entry: Path) -> str:
        if next(looks):
            raise FileNotFoundError(2, "no such file", str(entry / "script.py"))
        return ""

    store.ensure("source", "k", lambda entry: made.append("again"), healthy)
    assert made == ["first"]
