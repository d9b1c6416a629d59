"""Who may start: places and memory, first come first served, and nobody waits for ever."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import Bounds
from llamacpp_orchestrator.system.scheduler import Claim
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import admitted
from llamacpp_orchestrator.system.scheduler import log_of
from llamacpp_orchestrator.system.scheduler import run
from tests.support.stage.steps import Act
from tests.support.stage.steps import run_all


def claims(text: str) -> dict[str, Claim]:
    """Claims by their numbers: "1:5 2:3- 3" are two heavy ones, of 5 bytes and of none, and one of 3 bytes that is not."""
    found = {}
    for word in text.split():
        number, _, memory = word.rstrip("-").partition(":")
        found[number] = Claim(number=int(number), heavy=not word.endswith("-"), memory=int(memory or 0))
    return found


@pytest.mark.parametrize(
    ("running", "waiting", "jobs", "expected"),
    [
        ("", "", 2, ""),
        ("", "1:5 2:5 3:5", 2, "1 2"),
        ("", "1:5 2:5 3:5", 9, "1 2"),
        ("", "1:6 2:6", 9, "1"),
        # What alone does not fit runs alone: it waits until nothing runs, and then all others wait.
        ("", "1:99 2:1", 9, "1"),
        ("1:99", "2:1 3:1", 9, ""),
        ("1:1", "2:99 3:1", 9, ""),
        ("1:1", "2:99 3 4-", 9, "3 4"),
        # Small ones pass the first only while they fit beside it with those who passed before.
        ("1:8", "2:7 3:2 4:2", 9, "3"),
        ("1:8 3:2", "2:7 4:1 5:2", 9, ""),
        ("1:6 3:2", "2:7 4:1 5:2", 9, "4"),
        ("1:6", "2:7 3:4 4:3 5:1", 9, "4"),
        ("1:8", "2:9 3:2 4:1", 9, "4"),
        # One that came later and runs already counts as well; those that ran before need not.
        ("1:2 2:2 4:4", "3:7 5:1", 9, ""),
        ("1:2 2:2 4:2", "3:7 5:1 6:1", 9, "5"),
        # Places: the first keeps one, and what takes none passes.
        ("1:1 2:1", "3:1 4:1- 5- 6:1", 2, "4 5"),
        ("1:9 2:0", "3:9 4:1", 3, "4"),
        ("1:9 2:0 4:0", "3:9 5:1", 3, ""),
        ("1:9", "2:9 3:1- 4:1-", 1, "3"),
        ("", "1:9 2:9 3:9-", 1, "1"),
    ],
)
def test_who_may_start(running: str, waiting: str, jobs: int, expected: str) -> None:
    assert admitted(claims(waiting), claims(running).values(), jobs, 10) == expected.split()


class Room:
    """What runs now, as the steps themselves see it."""

    def __init__(self) -> None:
        self.lock, self.now, self.most, self.alone = threading.Lock(), dict[str, int](), 0, dict[str, set[str]]()
        self.memory: dict[str, Callable[[], int]] = {}

    def step(self, name: str, memory: int, seconds: float = 0.01, heavy: bool = True) -> tuple[Step, Act]:
        """A step that looks around while it is at work."""

        def act(tell: Tell) -> str:
            with self.lock:
                self.now[name] = memory
                self.most = max(self.most, sum(self.now.values()))
                for other in self.now:
                    self.alone.setdefault(other, set()).update(self.now)
            time.sleep(seconds)
            with self.lock:
                del self.now[name]
            return "done"

        self.memory[name] = lambda: memory
        return Step(kind=name, heavy=heavy), act


def test_what_does_not_fit_waits_and_what_never_fits_runs_alone() -> None:
    room, seen = Room(), list[Event]()
    steps = [room.step(f"small {number}", 3) for number in range(6)]
    steps += [room.step("huge", 25), room.step("large", 9), *(room.step(f"late {number}", 2) for number in range(6))]
    ended = run_all(steps, Bounds(jobs=8, memory=10), seen.append, room.memory)
    assert {event.status for event in ended} == {"done"} and len(ended) == 14
    assert room.alone["huge"] == {"huge"} and room.most == 25
    (note,) = [event for event in seen if event.status == "note"]
    assert (
        note.step == "huge" and note.text == "huge takes about 25 B of memory, more than the 10 B that may be used; it runs alone"
    )


def test_a_large_one_is_not_starved_by_small_ones() -> None:
    room, order = Room(), list[str]()
    steps = [room.step("first", 6, 0.05), room.step("large", 8), *(room.step(f"small {number}", 2) for number in range(50))]
    started = lambda event: order.append(event.step) if event.status == "started" else None  # noqa: E731
    run_all(steps, Bounds(jobs=4, memory=10), started, room.memory)
    # Beside the large one only one small one fits, so one passes while the first is at work.
    assert order.index("large") <= 8 and room.most <= 10


def test_without_a_bound_only_the_places_count() -> None:
    room = Room()
    run_all([room.step(str(number), 1 << 50, 0.05) for number in range(4)], Bounds(jobs=4), memory=room.memory)
    assert room.most > 1 << 50


def test_a_need_is_asked_for_once_what_it_depends_on_has_ended() -> None:
    known: list[int] = []

    def fetch(tell: Tell) -> str:
        known.append(7)
        return "done"

    steps = [
        (Step(kind="convert", needs=("fetch",), heavy=True), lambda tell: "done"),
        (Step(kind="fetch"), fetch),
    ]
    asked: list[int] = []
    needs = {"convert": lambda: asked.append(known[0]) or 7}
    assert [event.status for event in run_all(steps, Bounds(memory=10), memory=needs)] == ["done", "done"] and asked == [7]


def test_what_a_step_learns_is_there_for_those_that_come_after() -> None:
    def perform(step: Step, outcomes: Outcomes, tell: Tell) -> Outcome:
        return Outcome("done", sorted(outcome.value for outcome in outcomes.values()) if step.needs else step.key)

    steps = [Step(kind="look", key=key) for key in "ba"] + [Step(kind="join", needs=("look a", "look b"))]
    assert run(steps, perform, Bounds(jobs=2), lambda event: None)[-1].outcome == Outcome("done", ["a", "b"])


@pytest.mark.parametrize("keep_going", [True, False])
def test_a_failure_ends_the_waiting_unless_told_to_go_on(keep_going: bool) -> None:
    def fail(tell: Tell) -> str:
        raise OrchestrateError("broke", "mend it")

    room = Room()
    steps = [(Step(kind="bad", heavy=True), fail), *(room.step(str(number), 9) for number in range(3))]
    bounds = Bounds(jobs=8, memory=10, keep_going=keep_going)
    ended = {event.step: (event.status, event.text) for event in run_all(steps, bounds, memory=room.memory | {"bad": lambda: 9})}
    assert ended["bad"] == ("failed", "broke")
    assert {ended[str(number)] for number in range(3)} == {("done", "") if keep_going else ("blocked", "by bad")}


@pytest.mark.no_cover
def test_three_thousand_steps_cost_little() -> None:
    steps = [Step(kind="environment")]
    for number in range(1000):
        needs = ("environment", f"fetch {number}")
        steps.append(Step(kind="fetch", key=str(number)))
        steps.append(Step(kind="convert", key=str(number), needs=needs, heavy=True))
        steps.append(Step(kind="verify", key=str(number), needs=(f"convert {number}",)))
    began = time.process_time()
    ended = run(steps, lambda step, outcomes, tell: DONE, Bounds(jobs=2, memory=10), lambda event: None, lambda step: 3)
    assert len(ended) == 3001 and {event.status for event in ended} == {"done"}
    assert (time.process_time() - began) / len(steps) < 0.003


def steps_of(order: list[str], **needs: tuple[str, ...]) -> list[tuple[Step, Act]]:
    def action(name: str) -> tuple[Step, Act]:
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

        return Step(kind=name, needs=needs[name], heavy=name.startswith("heavy")), act

    return [action(name) for name in needs]


def test_steps_run_in_order_and_report(tmp_path: Path) -> None:
    order: list[str] = []
    seen: list[Event] = []
    ended = run_all(steps_of(order, c=("b", "old"), b=("a",), a=(), old=()), Bounds(), seen.append)
    assert order.index("a") < order.index("b") < order.index("c")
    assert {event.step: event.status for event in ended} == {"a": "done", "b": "done", "c": "done", "old": "current"}
    assert [event.text for event in seen if event.step == "a"] == ["", "working", ""]
    assert [(event.step, event.text) for event in seen if event.status == "note"] == [("old", "old is special")]


@pytest.mark.parametrize(("keep_going", "free"), [(True, "done"), (False, "blocked")])
def test_a_failure_blocks_what_needs_it(keep_going: bool, free: str) -> None:
    ended = {
        event.step: event
        for event in run_all(
            steps_of([], bad=(), after=("bad",), late=("after",), first=(), free=("slow",), slow=("first",)),
            Bounds(keep_going=keep_going),
        )
    }
    assert ended["bad"].status == "failed" and ended["after"].text == "by bad" and ended["late"].status == "blocked"
    assert isinstance(ended["bad"].error, OrchestrateError) and (not keep_going or ended["free"].status == free)


def test_a_bug_in_a_step_is_an_event_with_its_error() -> None:
    (event,) = run_all(steps_of([], bug=()), Bounds())
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

    run_all([(Step(kind=str(number), heavy=True), act) for number in range(8)], Bounds(jobs=2))
    assert most[0] == 2


def test_logs_have_names_that_fit_and_that_no_two_steps_share(tmp_path: Path) -> None:
    assert log_of("convert tiny/a b-f16.gguf", tmp_path) == tmp_path / "convert-tiny-a-b-f16.gguf.log"
    # The longest names that outputs may have, in letters of one byte and of three, for two types.
    steps = [f"convert {name}-{kind}.gguf" for name in ("x" * 236, "模" * 78) for kind in ("f16", "q8_0")]
    logs = [log_of(step, tmp_path) for step in steps]
    assert len(set(logs)) == len(steps)
    for log in logs:
        log.touch()


def test_a_step_begins_its_log_anew_and_its_commands_go_on_in_it(tmp_path: Path) -> None:
    log = tmp_path / "convert-x.log"
    step = Step(kind="convert", key="x", log=log)

    def perform(step: Step, outcomes: Outcomes, tell: Tell) -> Outcome:
        for word in ("one", "two"):
            process.stream(Command((sys.executable, "-c", f"print('{word}')")), log)
        return DONE

    for _ in range(2):
        run([step], perform, Bounds(jobs=1, memory=0, keep_going=False), lambda event: None)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["convert-x.1.log", "convert-x.log"]
    assert [line for line in log.read_text(encoding="utf-8").splitlines() if line[0] != "$"] == ["one", "two"]
