"""The record of a job's last run: when it began, what each step took, how it ended; a small file beside the logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.errors import masked
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.scheduler import ENDED
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.util.store import write_atomically

NAME = "run.json"  # in the folder of the job's logs
FORMAT = 1
SHOWN = ("started", "ended", *ENDED)


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step: `begin` in seconds since the run began, the bytes it was reckoned with, its log in the folder of logs.

    `status` is done, current, failed, blocked, or stopped for one that had not ended with the run.
    """

    name: str
    status: str
    begin: float = 0.0
    seconds: float = 0.0
    memory: int = 0
    log: str = ""
    error: tuple[str, ...] = ()


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run: `began` in UTC (ISO 8601), `status` ok, failed or stopped, `largest` the bytes of its largest child process.

    `error` is a failure outside of all steps.
    """

    began: str
    status: str
    seconds: float
    steps: tuple[StepRecord, ...]
    error: tuple[str, ...] = ()
    largest: int = 0
    format: int = FORMAT

    @property
    def has_worked(self) -> bool:
        """Tell whether the run has made anything."""
        return any(step.status == "done" for step in self.steps)


def read(path: Path) -> RunRecord | None:
    """The record at a place; one that is absent, damaged or of a later format counts as none."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=RunRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record if record.format == FORMAT else None


@contextmanager
def recording(place: Callable[[bool], Path | None], report: Reporter) -> Iterator[Reporter]:
    """A reporter that also gathers what becomes of each step; the record is written when the block ends, however it does.

    `place` tells where, given whether there was any step: None where nothing is to be written of a run that was refused.
    """
    clock, began, events = time.monotonic(), datetime.now(timezone.utc), list[Event]()

    def show(event: Event) -> None:
        if event.status in SHOWN:
            events.append(event)
        report(event)

    failure: BaseException | None = None
    try:
        yield show
    except BaseException as error:
        failure = error
        raise
    finally:
        steps = records(events, clock, time.monotonic())
        record = RunRecord(
            began=began.isoformat(timespec="seconds"),
            status=_status(steps, failure),
            seconds=round(time.monotonic() - clock, 3),
            steps=steps,
            error=_lines(failure) if isinstance(failure, Exception) else (),
            largest=host.largest_child(),
        )
        try:
            if path := place(bool(steps)):
                keep(path, record)
        except (OSError, OrchestrateError) as error:
            if failure is None:  # else what is in the way is told already
                report(Event("record", "note", f"`orchestrate report` will not know of this run: {error}"))


def keep(path: Path, record: RunRecord) -> None:
    """Write a record; that of a run with nothing to do leaves alone what is known of one that has worked."""
    old = read(path)
    if record.status != "ok" or record.has_worked or not (old and old.has_worked):
        write_atomically(path, msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n")


def records(events: Iterable[Event], clock: float, now: float) -> tuple[StepRecord, ...]:
    """The steps of a run by their events, in the order in which they began; `clock` and `now` are its begin and end."""
    last: dict[tuple[str, float], StepRecord] = {}
    for event in events:
        status = event.outcome.status if event.outcome else event.status
        running = status == "started"
        last[event.step, event.began] = StepRecord(
            # What is done in silence resolves the job for its lock; a step of the same name may follow.
            name=masked(f"lock: {event.step}" if event.status == "ended" else event.step),
            status="stopped" if running else status,
            begin=round(max(event.began - clock, 0.0), 3) if event.began else 0.0,
            seconds=round(now - event.began if running else event.seconds, 3),
            memory=event.memory,
            log=event.log.name if event.log else "",
            error=_lines(event.error) if event.error else ((masked(event.text),) if status == "blocked" else ()),
        )
    return tuple(sorted(last.values(), key=lambda step: step.begin))


def _status(steps: Iterable[StepRecord], failure: BaseException | None) -> str:
    if isinstance(failure, Stopped | KeyboardInterrupt):
        return "stopped"
    return "failed" if failure or any(step.status == "failed" for step in steps) else "ok"


def _lines(error: BaseException) -> tuple[str, ...]:
    """A failure as its user has read it, without the way to its log."""
    if not isinstance(error, OrchestrateError):
        return (masked(f"{type(error).__name__}: {error}"),)
    lines = error.lines()
    return tuple("\n".join(lines[:-1] if error.log else lines).split("\n"))
