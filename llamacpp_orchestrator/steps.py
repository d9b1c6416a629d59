"""Steps and the one function that runs them: whatever is ready runs, and a failure blocks only what needs it."""

from __future__ import annotations

import graphlib
import hashlib
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError

Tell = Callable[[str], None]
TELL_SECONDS = 0.2
LONGEST_LOG = 120  # bytes
NOTE = "note: "  # what a step says in these words is for everybody, not only for who watches
Action = Callable[[Tell], str]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One unit of work: `action(tell)` does it, tells its progress, and answers "done" or "current"."""

    name: str
    action: Action
    needs: tuple[str, ...] = ()
    heavy: bool = False
    log: Path | None = None


class Event(msgspec.Struct, frozen=True):
    """What happened to a step: started, progress, note, done, current, failed or blocked; `seconds` since it started."""

    step: str
    status: str
    text: str = ""
    seconds: float = 0.0
    error: BaseException | None = None
    log: Path | None = None


def log_of(step: str, folder: Path) -> Path:
    """The log file of a step. A long name is cut where a file system would refuse it, and told apart by a digest."""
    name = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in step)
    if len(name.encode()) > LONGEST_LOG:
        name = f"{name.encode()[:LONGEST_LOG].decode(errors='ignore')}-{hashlib.sha256(step.encode()).hexdigest()[:8]}"
    return folder / f"{name}.log"


def run(steps: Iterable[Step], jobs: int, keep_going: bool, report: Callable[[Event], None]) -> list[Event]:
    """Run all steps, at most `jobs` heavy ones at a time; the last event of each step, in the order in which they ended.

    Raises whatever a signal handler raises in the calling thread; workers are daemons, so that none can hold us back.
    """
    by_name = {step.name: step for step in steps}
    order = graphlib.TopologicalSorter({step.name: step.needs for step in by_name.values()})
    order.prepare()
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ended: dict[str, Event] = {}
    waiting: list[Step] = []
    running: set[str] = set()
    while order.is_active():
        waiting += [by_name[name] for name in order.get_ready()]
        for step in _startable(waiting, running, by_name, jobs):
            waiting.remove(step)
            blocker = next((need for need in step.needs if ended[need].status in ("failed", "blocked")), None)
            failed = next((name for name, event in ended.items() if event.status == "failed"), None)
            blocker = blocker or (None if keep_going else failed)
            running.add(step.name)
            if blocker:
                events.put(Event(step.name, "blocked", f"by {blocker}"))
            else:
                threading.Thread(target=_work, args=(step, events.put), name=step.name, daemon=True).start()
        event = _next(events)
        report(event)
        if event.status in ("done", "current", "failed", "blocked"):
            ended[event.step] = event
            running.discard(event.step)
            order.done(event.step)
    return list(ended.values())


def _startable(waiting: list[Step], running: set[str], by_name: dict[str, Step], jobs: int) -> list[Step]:
    room = jobs - sum(by_name[name].heavy for name in running)
    chosen = []
    for step in waiting:
        if not step.heavy:
            chosen.append(step)
        elif room > 0:
            room -= 1
            chosen.append(step)
    return chosen


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
    except BaseException as error:
        put(Event(step.name, "failed", f"{type(error).__name__}: {error}", time.monotonic() - began, error, step.log))
    else:
        put(Event(step.name, status, "", time.monotonic() - began, None, step.log))
