"""The record of a run: each step once with how it ended, also of a run that failed or was stopped, and never a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.report import run_record
from llamacpp_orchestrator.report.run_record import RunRecord
from llamacpp_orchestrator.report.run_record import StepRecord
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Outcome
from tests.support import pages

LOG = Path("/logs/convert-m.log")
BROKEN = OrchestrateError("it broke\nhttps://me:pw@host/x", "mend it", LOG)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (
            [Event("a", "started", began=102.0, memory=7)],
            [StepRecord(name="a", status="stopped", begin=2.0, seconds=8.0, memory=7)],
        ),
        (
            [Event("a", "started", log=LOG, began=102.0, memory=7), Event("a", "done", "", 3.5, None, LOG, DONE, 102.0, 7)],
            [StepRecord(name="a", status="done", begin=2.0, seconds=3.5, memory=7, log="convert-m.log")],
        ),
        (
            [Event("a", "failed", "it broke", 1.0, BROKEN, LOG, began=101.0)],
            [
                StepRecord(
                    name="a",
                    status="failed",
                    begin=1.0,
                    seconds=1.0,
                    log="convert-m.log",
                    error=("it broke", "https://host/x", "hint: mend it"),
                )
            ],
        ),
        (
            [Event("a", "failed", "", 1.0, ZeroDivisionError("ftp://u:p@h/ by zero"), began=101.0)],
            [StepRecord(name="a", status="failed", begin=1.0, seconds=1.0, error=("ZeroDivisionError: ftp://h/ by zero",))],
        ),
        ([Event("a", "blocked", "by b")], [StepRecord(name="a", status="blocked", error=("by b",))]),
        ([Event("a", "current")], [StepRecord(name="a", status="current")]),
        # What resolves the job for its lock ends in silence, and a step of the same name follows.
        (
            [
                Event("fetch m", "started", began=101.0),
                Event("fetch m", "ended", "", 1.0, None, None, Outcome("current"), 101.0),
                Event("fetch m", "started", began=103.0),
                Event("fetch m", "done", "", 2.0, None, None, DONE, 103.0),
            ],
            [
                StepRecord(name="lock: fetch m", status="current", begin=1.0, seconds=1.0),
                StepRecord(name="fetch m", status="done", begin=3.0, seconds=2.0),
            ],
        ),
        (
            [Event("b", "done", began=105.0, outcome=DONE), Event("a", "done", began=101.0, outcome=DONE)],
            [StepRecord(name="a", status="done", begin=1.0), StepRecord(name="b", status="done", begin=5.0)],
        ),
    ],
)
def test_the_steps_of_a_run(events: list[Event], expected: list[StepRecord]) -> None:
    assert list(run_record.records(events, 100.0, 110.0)) == expected


def recorded(path: Path, *events: Event, failure: BaseException | None = None) -> tuple[RunRecord | None, list[Event]]:
    shown = list[Event]()
    try:
        with run_record.recording(lambda has_steps: path, shown.append) as show:
            for event in events:
                show(event)
            if failure:
                raise failure
    except BaseException as error:
        assert error is failure
    return run_record.read(path), shown


@pytest.mark.parametrize(
    ("event", "failure", "status", "error"),
    [
        ("done", None, "ok", ()),
        ("failed", None, "failed", ()),
        ("done", JobError("no such type", "take another"), "failed", ("no such type", "hint: take another")),
        ("done", ValueError("a bug"), "failed", ("ValueError: a bug",)),
        ("started", Stopped(2), "stopped", ()),
        ("started", KeyboardInterrupt(), "stopped", ()),
    ],
)
def test_a_run_is_recorded_however_it_ends(
    event: str, failure: BaseException | None, status: str, error: tuple[str, ...], tmp_path: Path
) -> None:
    record, shown = recorded(tmp_path / "run.json", Event("s", "progress", "1%"), Event("s", event), failure=failure)
    assert record and (record.status, record.error) == (status, error) and record.began.endswith("+00:00")
    assert [step.name for step in record.steps] == ["s"] and [one.status for one in shown] == ["progress", event]


def test_what_cannot_be_written_is_said_and_hides_no_failure(tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "run.json"
    _, shown = recorded(nowhere, Event("s", "done"))
    assert [event.status for event in shown] == ["done", "note"] and "will not know of this run" in shown[-1].text
    _, shown = recorded(nowhere, Event("s", "done"), failure=JobError("x"))
    assert [event.status for event in shown] == ["done"]


DONE_STEP, CURRENT_STEP = StepRecord(name="s", status="done"), StepRecord(name="s", status="current")


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ({"steps": (DONE_STEP,)}, {"steps": (CURRENT_STEP,)}, "old"),
        ({"steps": (DONE_STEP,)}, {"steps": (DONE_STEP,)}, "new"),
        ({"steps": (CURRENT_STEP,)}, {"steps": (CURRENT_STEP,)}, "new"),
        ({"steps": (DONE_STEP,)}, {"steps": (CURRENT_STEP,), "status": "failed"}, "new"),
        ({"steps": (DONE_STEP,)}, {"steps": (), "status": "stopped"}, "new"),
        ({"steps": (), "status": "failed"}, {"steps": (CURRENT_STEP,)}, "new"),
    ],
)
def test_a_run_with_nothing_to_do_leaves_what_is_known_of_one_that_worked(
    old: dict[str, Any], new: dict[str, Any], kept: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    for began, how in (("old", old), ("new", new)):
        run_record.keep(path, pages.run(*how["steps"], began=began, status=how.get("status", "ok")))
    record = run_record.read(path)
    assert record and record.began == kept


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"began": 1}', b"\xff"])
def test_a_damaged_record_counts_as_none(content: str | bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert run_record.read(path) is None


def test_a_record_of_a_later_format_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run_record.keep(path, pages.run(DONE_STEP))
    assert run_record.read(path)
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert run_record.read(path) is None
