"""Steps and the one function that runs them: whatever is ready runs, and a failure blocks only what needs it."""

from __future__ import annotations

import graphlib
import hashlib
import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import of_system
from llamacpp_orchestrator.util.units import size

Tell = Callable[[str], None]
TELL_SECONDS = 0.2
GRACE_SECONDS = 2.0
LONGEST_LOG = 120  # bytes
NOTE = "note: "  # what a step says in these words is for everybody, not only for who watches
Action = Callable[[Tell], str]
ENDED = ("done", "current", "failed", "blocked")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One unit of work: `action(tell)` does it, tells its progress, and answers "done" or "current".

    `memory` is how many bytes it takes, or a function that knows it once all that the step needs has ended.
    """

    name: str
    action: Action
    needs: tuple[str, ...] = ()
    heavy: bool = False
    memory: Callable[[], int] | int = 0
    log: Path | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a step takes of the machine, while it waits and while it runs; `number` tells which of two was there first."""

    number: int
    heavy: bool = True
    memory: int = 0


class Event(msgspec.Struct, frozen=True):
    """What happened to a step: started, progress, note, done, current, failed or blocked; `seconds` since it started."""

    step: str
    status: str
    text: str = ""
    seconds: float = 0.0
    error: BaseException | None = None
    log: Path | None = None


Reporter = Callable[[Event], None]


def log_of(step: str, folder: Path) -> Path:
    """The log file of a step. A long name is cut where a file system would refuse it, and told apart by a digest."""
    name = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in step)
    if len(name.encode()) > LONGEST_LOG:
        name = f"{name.encode()[:LONGEST_LOG].decode(errors='ignore')}-{hashlib.sha256(step.encode()).hexdigest()[:8]}"
    return folder / f"{name}.log"


def run(
    steps: Iterable[Step],
    jobs: int,
    keep_going: bool,
    report: Reporter,
    memory: int = 0,
    halt: Callable[[], None] | None = None,
) -> list[Event]:
    """Run all steps, at most `jobs` heavy ones at a time and within `memory` bytes, 0 for any number.

    Answers the last event of each step, in the order in which they ended. Raises whatever a signal handler raises in the
    calling thread, once `halt` has told the workers to end and they have had a moment to clean up behind them; they are
    daemons, so that none can hold us back.
    """
    workers: list[threading.Thread] = []
    try:
        return _run(steps, jobs, keep_going, report, memory, workers)
    except BaseException:
        if halt:
            halt()
            late = time.monotonic() + GRACE_SECONDS
            for worker in workers:
                worker.join(max(0.0, late - time.monotonic()))
        raise


def _run(
    steps: Iterable[Step],
    jobs: int,
    keep_going: bool,
    report: Reporter,
    memory: int,
    workers: list[threading.Thread],
) -> list[Event]:
    by_name = {step.name: step for step in steps}
    order = graphlib.TopologicalSorter({step.name: step.needs for step in by_name.values()})
    order.prepare()
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ended: dict[str, Event] = {}
    waiting: dict[str, Claim] = {}
    running: dict[str, Claim] = {}
    failed, numbers, bound = "", itertools.count(), memory or sys.maxsize
    while order.is_active():
        for step in map(by_name.__getitem__, order.get_ready()):
            if blocker := next((need for need in step.needs if ended[need].status in ("failed", "blocked")), failed):
                events.put(Event(step.name, "blocked", f"by {blocker}"))
            else:
                waiting[step.name] = _claim(step, next(numbers))
        for name in admitted(waiting, running.values(), jobs, bound):
            running[name] = waiting.pop(name)
            workers.append(_start(by_name[name], running[name].memory, bound, events.put))
        while (event := _next(events)).status not in ENDED:
            report(event)
        report(event)
        ended[event.step] = event
        running.pop(event.step, None)
        order.done(event.step)
        if event.status == "failed" and not keep_going:
            failed = failed or event.step
            for name in waiting:
                events.put(Event(name, "blocked", f"by {failed}"))
            waiting.clear()
    return list(ended.values())


def _claim(step: Step, number: int) -> Claim:
    return Claim(number=number, heavy=step.heavy, memory=step.memory if isinstance(step.memory, int) else step.memory())


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
    for name, claim in waiting.items():
        if first and claim.heavy and (slots <= 0 or places <= 0):
            continue
        if _fits(claim, min(slots, places), min(memory - used if used else sys.maxsize, left)):
            chosen.append(name)
            slots, used = slots - claim.heavy, used + claim.memory
            places, left = places - claim.heavy, left - claim.memory
        elif first is None:
            first, passed = claim, [each for each in running if each.number > claim.number]
            places = jobs - claim.heavy - sum(each.heavy for each in passed)
            left = memory - claim.memory - sum(each.memory for each in passed)
    return chosen


def _fits(claim: Claim, slots: int, room: int) -> bool:
    return (slots > 0 or not claim.heavy) and (room >= claim.memory or not claim.memory)


def _start(step: Step, need: int, bound: int, put: Callable[[Event], None]) -> threading.Thread:
    if need > bound:
        said = f"{step.name} takes about {size(need)} of memory, more than the {size(bound)} that may be used; it runs alone"
        put(Event(step.name, "note", said))
    worker = threading.Thread(target=_work, args=(step, put), name=step.name, daemon=True)
    worker.start()
    return worker


def _next(events: queue.SimpleQueue[Event]) -> Event:
    # A wait without end cannot be interrupted on Windows; half a second can.
    while True:
        try:
            return events.get(timeout=0.5)
        except queue.Empty:
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


def _work(step: Step, put: Callable[[Event], None]) -> None:
    began = time.monotonic()
    put(Event(step.name, "started", log=step.log))
    try:
        status = step.action(_teller(step.name, put))
    except OrchestrateError as error:
        put(Event(step.name, "failed", error.message, time.monotonic() - began, error, error.log or step.log))
    except Exception as error:
        told = of_system(error) or error
        said = told.message if isinstance(told, OrchestrateError) else f"{type(error).__name__}: {error}"
        put(Event(step.name, "failed", said, time.monotonic() - began, told, step.log))
    except BaseException as error:
        put(Event(step.name, "failed", f"{type(error).__name__}: {error}", time.monotonic() - began, error, step.log))
    else:
        put(Event(step.name, status, "", time.monotonic() - began, None, step.log))
