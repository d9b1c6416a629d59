"""What the driver shows of many workers: each step once, by the name that it has on one machine."""

from __future__ import annotations

import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.cluster import driver
from llamacpp_orchestrator.cluster import worker
from llamacpp_orchestrator.cluster.records import Answer
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.util.hashing import file_sha256

NAMES = frozenset(["convert m.gguf", "verify m.gguf"])


def news(step: str, status: str, text: str = "", turn: str = "1", by: str = "w1", **more: Any) -> News:
    return News(step=step, status=status, text=text, chain="c", by=by, turn=turn, **more)


def told(*items: News) -> tuple[list[tuple[str, str, str]], driver.Screen]:
    events: list[Event] = []
    screen = driver.Screen(names=NAMES, report=events.append)
    for item in items:
        screen.show(item)
    return [(event.step, event.status, event.text) for event in events], screen


def test_steps_of_outputs_go_by_their_names_and_others_with_their_worker() -> None:
    lines, screen = told(
        news("fetch m", "started"), news("fetch m", "done"), news("convert m.gguf", "started"),
        news("convert m.gguf", "progress", "45%"), news("convert m.gguf", "note", "look"), news("convert m.gguf", "done"),
    )  # fmt: skip
    assert lines == [
        ("fetch m on w1", "started", ""), ("fetch m on w1", "done", ""), ("convert m.gguf", "started", ""),
        ("convert m.gguf", "progress", "45% on w1"), ("convert m.gguf", "note", "look"), ("convert m.gguf", "done", ""),
    ]  # fmt: skip
    assert set(screen.last) == {"fetch m on w1", "convert m.gguf"}


def test_an_end_is_told_once_and_progress_only_of_what_runs() -> None:
    lines, _ = told(
        news("convert m.gguf", "progress", "1%"), news("convert m.gguf", "done"), news("convert m.gguf", "done"),
        news("convert m.gguf", "started"), news("convert m.gguf", "progress", "2%"),
    )  # fmt: skip
    assert [line[1] for line in lines] == ["done"]


def test_a_chain_that_begins_anew_ends_what_the_lost_worker_had_begun() -> None:
    lines, _ = told(news("convert m.gguf", "started"), news("fetch m", "started", turn="2", by="w2"))
    assert lines == [
        ("convert m.gguf", "started", ""),
        ("convert m.gguf", "blocked", "by the end of its worker"),
        ("fetch m", "note", "a worker was lost; w2 takes over what it did"),
        ("fetch m on w2", "started", ""),
    ]


def test_a_failure_names_its_worker_and_where_the_log_lies() -> None:
    event = driver.as_event(news("convert m.gguf", "failed", error=("broken", "mend it"), log="/x/y.log"), NAMES)
    assert isinstance(event.error, OrchestrateError)
    assert event.error.lines() == ["broken", "hint: mend it\nit was on worker w1\nits log is there: /x/y.log"]


class KilledWorker(Exception):
    pass


def answer(code: int, *items: News, **more: Any) -> Answer:
    return Answer(code=code, worker="w", news=items, **more)


@pytest.mark.parametrize(
    "ended, failed, words",
    [
        (KilledWorker("x"), True, "workers were lost again and again"),
        (ImportError("no module"), True, "a worker could not make its outputs: ImportError"),
        (answer(9, error=("it was killed", "again")), True, "it was killed"),
        (answer(0, news("convert m.gguf", "done")), False, ""),
        (answer(1, news("verify m.gguf", "failed", error=("broken", "")), error=("a", "b")), True, "broken"),
        (answer(1, blocked=True), True, ""),
    ],
)
def test_how_a_chain_ended(ended: Any, failed: bool, words: str) -> None:
    _, screen = told()
    assert driver._outcome("c", ended, screen) == failed
    errors = [event.error.message for _, event in screen.last.values() if isinstance(event.error, OrchestrateError)]
    assert [words in message for message in errors] == ([True] if words else [])


def test_a_failure_is_told_whatever_came_before() -> None:
    """Two chains fetch the same on one worker, and a chain is made again after a worker was lost."""
    lines, screen = told(news("fetch m", "done"), news("fetch m", "failed", error=("gone", "")))
    assert [line[1] for line in lines] == ["done", "failed"] and screen.last["fetch m on w1"][1].error
    lines, screen = told(
        news("convert m.gguf", "started"), news("convert m.gguf", "done"), news("convert m.gguf", "started", turn="2", by="w2"),
        news("convert m.gguf", "failed", turn="2", by="w2", error=("full", "")),
    )  # fmt: skip
    assert [line[1] for line in lines] == ["started", "done", "note", "started", "failed"]


def test_a_step_has_one_begin() -> None:
    events: list[Event] = []
    screen = driver.Screen(names=NAMES, report=events.append)
    for item in (news("convert m.gguf", "started"), news("convert m.gguf", "done", seconds=9.0)):
        screen.show(item)
    assert events[0].began == events[1].began > 0


@pytest.mark.parametrize("keep_going, seen", [(False, 1), (True, 2)])
def test_the_first_failure_is_the_last_unless_told_to_keep_going(keep_going: bool, seen: int) -> None:
    """Two chains, of which the one fails at once and the other would end with the next look."""
    taken: list[bytes] = []

    def gather(futures: list[Any]) -> list[bytes]:
        taken.extend(future.data for future in futures)
        return [future.data for future in futures]

    def future(data: Answer, done: Any) -> Any:
        return SimpleNamespace(status="finished", cancelled=lambda: False, done=done, data=msgspec.json.encode(data))

    futures = {
        "one": future(answer(1, news("verify m.gguf", "failed")), lambda: True),
        "two": future(answer(0), lambda: bool(taken)),
    }
    lines, screen = told()
    driver._follow(SimpleNamespace(status="running", gather=gather), futures, queue.SimpleQueue(), screen, keep_going)
    assert len(taken) == seen


def test_an_answer_of_a_worker_that_is_lost_just_now_is_looked_for_again() -> None:
    def gather(futures: list[Any]) -> list[bytes]:
        raise OSError("the worker has gone")

    future = SimpleNamespace(status="finished")
    assert driver._answers(SimpleNamespace(gather=gather), {"c": future}) == {}
    bad = SimpleNamespace(status="error", exception=lambda: KilledWorker("x"))
    assert list(driver._answers(SimpleNamespace(), {"c": bad})) == ["c"]


def test_a_run_that_the_scheduler_has_let_go_of_ends() -> None:
    client = SimpleNamespace(status="running")
    lost = SimpleNamespace(cancelled=lambda: True, done=lambda: False)
    with pytest.raises(NetworkError, match="has gone, or has let go of this run"):
        driver._follow(client, {"c": lost}, queue.SimpleQueue(), told()[1], False)


def test_why_a_worker_is_unfit(tmp_path: Any) -> None:
    job, lock, probe = (tmp_path / name for name in ("job.yaml", "job.lock.yaml", ".probe"))
    for path in (job, lock):
        path.write_text(path.name)
    probe.write_text("run-1")
    version = worker.llamacpp_orchestrator.__version__
    order = Order(
        run="run-1", job=str(job), job_sha256=file_sha256(job), lock_sha256=file_sha256(lock), probe=str(probe), version=version
    )

    def reason(**changes: str) -> str:
        return worker.unfit(msgspec.json.encode(msgspec.structs.replace(order, **changes)))

    assert reason() == ""
    assert "and 9.9 was asked" in reason(version="9.9")
    assert reason(run="run-2") == f"it does not see the folder {tmp_path}"
    assert reason(lock_sha256="0") == f"{lock} is another file there"
    lock.unlink()
    assert reason() == f"it does not see {lock}"


@pytest.mark.parametrize("memory, offered, fits", [(0, 10, True), (10, 0, True), (10, 10, True), (11, 10, False)])
def test_what_no_worker_can_ever_take_is_told_at_once(memory: int, offered: int, fits: bool) -> None:
    chains = [Chain(key="c", outputs=("m.gguf",), memory=memory * 10**9)]
    workers = driver.Workers(number=1, memory=offered * 1e9)
    if fits:
        return driver.check(chains, workers)
    with pytest.raises(JobError, match=r"m.gguf takes about 11.0 GB of memory, and no worker offers more than 10.0 GB"):
        driver.check(chains, workers)
    return None


@pytest.mark.parametrize(
    "given, words", [({}, []), ({"force": True, "keep_going": True, "offline": True}, ["--force", "--keep-going", "--offline"])]
)
def test_a_worker_is_told_as_the_driver_was(given: dict[str, bool], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HOME", "/models")
    order = Order(run="r", job="/j/job.yaml", job_sha256="", lock_sha256="", probe="", version="", **given)
    command = worker._command(order, Chain(key="c", outputs=("a.gguf", "b.gguf")))
    assert command.cwd == str(Path("/j")) and command.argv[3:6] == ("run", "/j/job.yaml", "--locked")
    assert [word for word in command.argv if word in ("--force", "--keep-going", "--offline")] == words
    assert command.argv[-4:] == ("--only", "a.gguf", "--only", "b.gguf")
    assert dict(command.env).get("HF_HOME") == "/models" and "OMP_NUM_THREADS" not in dict(command.env)
