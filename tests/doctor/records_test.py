"""Questions and their answers: whatever goes wrong is one line."""

from __future__ import annotations

import errno

import pytest

from llamacpp_orchestrator.doctor.records import Line
from llamacpp_orchestrator.doctor.records import Probe
from llamacpp_orchestrator.doctor.records import answered
from llamacpp_orchestrator.errors import NetworkError


def failing(error: Exception) -> Line:
    def ask() -> str:
        raise error

    (line,) = answered(Probe(name="hub", setting="HF_ENDPOINT", place="https://h", ask=ask, needed=False))
    assert (line.name, line.ok, line.needed, line.place) == ("hub", False, False, "https://h")
    return line


def test_what_goes_well_is_a_line_or_some() -> None:
    assert answered(Probe(name="a", ask=lambda: "b"))[0].line() == "ok       a             b"
    lines = (Line(name="a", ok=True, said="b"),)
    assert answered(Probe(name="a", ask=lambda: lines)) == lines


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("x"), AssertionError()])
def test_a_failure_of_ours_is_a_line_too(error: Exception) -> None:
    line = failing(error)
    assert type(error).__name__ in line.said and "report it" in line.remedy


def test_a_failure_has_its_cause_and_remedy_and_no_login() -> None:
    line = failing(NetworkError("https://me:secret@h says\nno", "never https://me:secret@h", 404))
    assert line.cause == "missing" and line.said == "https://h says; no; never https://h" and line.remedy == "never https://h"
    assert failing(OSError(errno.ENOSPC, "No space left on device")).cause == "space"
