"""Run steps, which are data, by a registry of actions: whatever is ready runs, and a failure blocks only what needs it."""

from __future__ import annotations

import hashlib
import itertools
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeVar

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import of_system
from llamacpp_orchestrator.util.units import size

if TYPE_CHECKING:  # what steps are told with is loaded also where there are none to be run
    import queue
    from pathlib import Path

T = TypeVar("T")
Tell = Callable[[str], None]
TELL_SECONDS = 0.2
GRACE_SECONDS = 2.0
LONGEST_LOG = 120  # bytes
NOTE = "note: "  # what a step says in these words is for everybody, not only for who watches
ENDED = ("done", "current", "failed", "blocked")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One unit of work as data: what is done (`kind`), to what (`key`), and after which other steps, by their names."""

    kind: str
    key: str = ""
    needs: tuple[str, ...] = ()
    heavy: bool = False
    log: Path | None = None

    @property
    def name(self) -> str:
        """What a step is called in every report."""
        return f"{self.kind} {self.key}" if self.key else self.kind


class Outcome(msgspec.Struct, frozen=True):
    """How a step ended, "done" or "current", and what it has learned for those that need it."""

    status: str = "done"
    value: Any = None


DONE, CURRENT = Outcome("done"), Outcome("current")
Outcomes = Mapping[str, Outcome]  # of the steps that have ended well so far, by name
Perform = Callable[[Step, Outcomes, Tell], Outcome]


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much may run at a time: `jobs` heavy steps within `memory` bytes, 0 for any number. `keep_going` after a failure."""

    jobs: int = 1
    memory: int = 0
    keep_going: bool = False


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a step takes of the machine, while it waits and while it runs; `number` tells which of two was there first."""

    number: int
    heavy: bool = True
    memory: int = 0


class Event(msgspec.Struct, frozen=True):
    """What happened to a step: started, progress, note, done, current, failed or blocked; `seconds` since it started.

    `began` is when that was (time.monotonic()), `memory` the bytes that it was reckoned with; both are 0 of a step without work.
    """

    step: str
    status: str
    text: str = ""
    seconds: float = 0.0
    error: BaseException | None = None
    log: Path | None = None
    outcome: Outcome | None = None
    began: float = 0.0
    memory: int = 0


Reporter = Callable[[Event], None]


def log_of(step: str, folder: Path) -> Path:
    """The log file of a step. A long name is cut where a file system would refuse it, and told apart by a digest."""
    name = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in step)
    if len(name.encode()) > LONGEST_LOG:
        name = f"{name.encode()[:LONGEST_LOG].decode(errors='ignore')}-{hashlib.sha256(step.encode()).hexdigest()[:8]}"
    return folder / f"{name}.log"


def performing(actions: Mapping[str, Callable[[T, str, Outcomes, Tell], Outcome]], subject: T) -> Perform:
    """How steps are done by a registry: the action of a step's kind, given the subject of all of them and the step's key."""

    def perform(step: Step, outcomes: Outcomes, tell: Tell) -> Outcome:
        return actions[step.kind](subject, step.key, outcomes, tell)

    return perform


def run(
    steps: Iterable[Step],
    perform: Perform,
    bounds: Bounds,
    report: Reporter,
    need: Callable[[Step], int] = lambda step: 0,
    halt: Callable[[], None] | None = None,
) -> list[Event]:
    """Run all steps; the last event of each, in the order in which they ended.

    `need` tells how many bytes of memory a step takes, once all that it needs has ended. Raises whatever a signal handler raises
    in the calling thread, once `halt` has told the workers to end and they have had a moment to clean up behind them; they are
    daemons, so that none can hold us back.
    """
    workers: list[threading.Thread] = []
    try:
        return _run(steps, perform, bounds, report, need, workers)
    except BaseException:
        if halt:
            halt()
            late = time.monotonic() + GRACE_SECONDS
            for worker in workers:
                worker.join(max(0.0, late - time.monotonic()))
        raise


def _run(
    steps: Iterable[Step],
    perform: Perform,
    bounds: Bounds,
    report: Reporter,
    need: Callable[[Step], int],
    workers: list[threading.Thread],
) -> list[Event]:
    import graphlib
    import queue

    from llamacpp_orchestrator.util import tempfiles

    by_name = {step.name: step for step in steps}
    for log in {step.log for step in by_name.values() if step.log}:  # a check goes on in the log of what it checks
        tempfiles.renew(log)
    order = graphlib.TopologicalSorter({step.name: step.needs for step in by_name.values()})
    order.prepare()
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ended: dict[str, Event] = {}
    waiting: dict[str, Claim] = {}
    running: dict[str, Claim] = {}
    outcomes: dict[str, Outcome] = {}
    failed, numbers, bound = "", itertools.count(), bounds.memory or sys.maxsize
    while order.is_active():
        for step in map(by_name.__getitem__, order.get_ready()):
            if blocker := next((need for need in step.needs if ended[need].status in ("failed", "blocked")), failed):
                events.put(Event(step.name, "blocked", f"by {blocker}"))
            else:
                waiting[step.name] = Claim(number=next(numbers), heavy=step.heavy, memory=need(step))
        for name in admitted(waiting, running.values(), bounds.jobs, bound):
            running[name] = waiting.pop(name)
            step, memory = by_name[name], running[name].memory
            if memory > bound:
                events.put(Event(name, "note", _alone(name, memory, bound)))
            # A copy, for what ends meanwhile is not for this one.
            work = (step, memory, perform, dict(outcomes), events.put)
            worker = threading.Thread(target=_work, args=work, name=name, daemon=True)
            worker.start()
            workers.append(worker)
        while (event := _next(events)).status not in ENDED:
            report(event)
        report(event)
        ended[event.step] = event
        if event.outcome:
            outcomes[event.step] = event.outcome
        running.pop(event.step, None)
        order.done(event.step)
        if event.status == "failed" and not bounds.keep_going:
            failed = failed or event.step
            for name in waiting:
                events.put(Event(name, "blocked", f"by {failed}"))
            waiting.clear()
    return list(ended.values())


def admitted(waiting: Mapping[str, Claim], running: Iterable[Claim], jobs: int, memory: int) -> list[str]:
    """The names of those that may start, first come first served; what needs more than all of the memory runs alone.

    When the first does not fit, others pass it only while all that have passed it fit beside it: however many small ones
    come, it starts at the latest when those have ended that ran when it became the first.
    """
    running = list(running)
    slots, used = jobs - sum(claim.heavy for claim in running), sum(claim.memory for claim in running)
    chosen: list[str] = []
    first: Claim | None = None
    places, left = sys.maxsize, sys.maxsize  # what the first that does not fit leaves to those who pass it
    free, room = slots, memory - used if used else sys.maxsize
    for name, claim in waiting.items():
        if (free > 0 or not claim.heavy) and (room >= claim.memory or not claim.memory):
            chosen.append(name)
            slots, used = slots - claim.heavy, used + claim.memory
            places, left = places - claim.heavy, left - claim.memory
        elif first is None:
            first, passed = claim, [each for each in running if each.number > claim.number]
            places = jobs - claim.heavy - sum(each.heavy for each in passed)
            left = memory - claim.memory - sum(each.memory for each in passed)
        else:
            continue
        free, room = min(slots, places), min(memory - used if used else sys.maxsize, left)
    return chosen


def _alone(name: str, memory: int, bound: int) -> str:
    return f"{name} takes about {size(memory)} of memory, more than the {size(bound)} that may be used; it runs alone"


def _next(events: queue.SimpleQueue[Event]) -> Event:
    from queue import Empty

    # A wait without end cannot be interrupted on Windows; half a second can.
    while True:
        try:
            return events.get(timeout=0.5)
        except Empty:
            continue


def _teller(name: str, put: Callable[[Event], None]) -> Tell:
    last = ("", 0.0)

    def tell(text: str) -> None:
        # A download speaks with every chunk; nobody can read that, and 300 steps at once must not drown in it.
        nonlocal last
        if text.startswith(NOTE):
            put(Event(name, "note", text.removeprefix(NOTE)))
            return
        now, counting = time.monotonic(), text[:1].isdigit()
        if text != last[0] and not (counting and now - last[1] < TELL_SECONDS):
            last = (text, now)
            put(Event(name, "progress", text))

    return tell


def _work(step: Step, memory: int, perform: Perform, outcomes: Outcomes, put: Callable[[Event], None]) -> None:
    from llamacpp_orchestrator.util import cancel

    began, tell = time.monotonic(), _teller(step.name, put)
    put(Event(step.name, "started", log=step.log, began=began, memory=memory))
    cancel.tell.set(tell)
    try:
        outcome = perform(step, outcomes, tell)
    except BaseException as caught:
        error = (of_system(caught) or caught) if isinstance(caught, Exception) else caught
        text, log = f"{type(error).__name__}: {error}", step.log
        if isinstance(error, OrchestrateError):
            text, log = error.message, error.log or step.log
        put(Event(step.name, "failed", text, time.monotonic() - began, error, log, began=began, memory=memory))
    else:
        put(Event(step.name, outcome.status, "", time.monotonic() - began, None, step.log, outcome, began, memory))
