"""What the driver shows of many workers: each step once, by the name that it has on one machine."""

from __future__ import annotations

from typing import Any

import pytest

from llamacpp_orchestrator.cluster import progress
from llamacpp_orchestrator.cluster import screen as screens
from llamacpp_orchestrator.cluster.records import Answer
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.scheduler import Event

NAMES = frozenset(["convert m.gguf", "verify m.gguf"])


def news(step: str, status: str, text: str = "", turn: str = "1", by: str = "w1", **more: Any) -> News:
    return News(step=step, status=status, text=text, chain="c", by=by, turn=turn, **more)


def told(*items: News) -> tuple[list[tuple[str, str, str]], screens.Screen]:
    events: list[Event] = []
    screen = screens.Screen(names=NAMES, report=events.append)
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
    event = screens.as_event(news("convert m.gguf", "failed", error=("broken", "mend it"), log="/x/y.log"), NAMES)
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
    ],
)
def test_how_a_chain_ended(ended: Any, failed: bool, words: str) -> None:
    _, screen = told()
    assert bool(progress.outcome("c", ended, screen)) == failed
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
    screen = screens.Screen(names=NAMES, report=events.append)
    for item in (news("convert m.gguf", "started"), news("convert m.gguf", "done", seconds=9.0)):
        screen.show(item)
    assert events[0].began == events[1].began > 0
