"""What is printed: plain lines, colours, and a terminal that is redrawn."""

from __future__ import annotations

import io
import os
import shutil
import sys

import pytest

from llamacpp_orchestrator import console
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.results import ModelfileResult
from llamacpp_orchestrator.results import Result
from llamacpp_orchestrator.system.scheduler import Event


def test_plain_lines_and_colours(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Event("convert x", "failed", "broke\nbadly", 1.25)
    for manner in (console.Voice(), console.Voice(colour=True), console.Voice(quiet=True), console.Voice(verbose=True)):
        with console.reporting(manner) as show:
            for event in (
                Event("s", "started"),
                Event("s", "progress", "1%"),
                Event("s", "done", "", 2.0),
                Event("l", "note", "moved"),
                failed,
            ):
                show(event)
    err = capsys.readouterr().err
    assert err.count("failed  convert x (1.2 s)\n") == 3 and "broke" not in err  # that is told once, at the end
    assert "\x1b[31mfailed  \x1b[0mconvert x" in err
    assert err.count("done    s (2.0 s)\n") == 2 and err.count("note: moved") == 3 and err.count("s: 1%") == 1


def test_a_terminal_is_redrawn(capsys: pytest.CaptureFixture[str]) -> None:
    with console.reporting(console.Voice(live=True)) as show:
        for status in ("started", "progress", "done", "ended"):
            show(Event("fetch m", status, "12 of 24 MB"))
        show(Event("lock", "note", "moved"))
    assert "done    fetch m" in capsys.readouterr().err


@pytest.mark.parametrize(("environ", "colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_the_voice_fits_the_stream(environ: dict[str, str], colour: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert console.voice(Terminal(), environ, quiet=False, verbose=False, progress=True).colour is colour
    assert not console.voice(io.StringIO(), environ, quiet=False, verbose=False, progress=True).live


def test_a_note_of_several_steps_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with console.reporting(console.Voice()) as show:
        for step in ("a", "b"):
            show(Event(step, "note", "PyTorch's index cannot be reached"))
    assert capsys.readouterr().err.count("PyTorch's index") == 1


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_words_are_whole_on_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *fallback, **named: os.terminal_size((columns, 24)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    path = "/a/very/long/path/that/no/terminal/of/forty/columns/can/hold/in/one/line"
    said = OrchestrateError("the machine's own words are several, and there are quite a few", f"look at {path}")
    console.complain(said, console.Voice())
    lines = capsys.readouterr().err.splitlines()
    assert " ".join(" ".join(lines).split()) == f"error: {said.message} hint: look at {path}"
    assert all(len(line) <= columns or path in line for line in lines)


def test_a_command_that_is_done_is_not_told_as_left() -> None:
    modelfile = ModelfileResult(name="m", path="m.Modelfile", create="ollama create m", run="ollama run m")
    result = Result(status="ok", seconds=0.0, steps=(), outputs=(), ollama=(modelfile,))
    assert [line.split(maxsplit=1)[1] for line in result.lines()] == ["ollama create m", "ollama run m"]
    assert [line.split(maxsplit=1)[1] for line in result.lines(created=True)] == ["ollama run m"]


@pytest.mark.parametrize(
    ("step", "now", "columns", "line"),
    [
        ("convert m-f16.gguf", "", 60, "convert m-f16.gguf"),
        ("convert m-f16.gguf", "45%", 60, "convert m-f16.gguf 45%"),
        ("convert m-f16.gguf", "importing", 30, "convert m… importing"),
        ("fetch m", "1034.5 of 20480.0 MB", 30, "… 1034.5 of 20480.0 MB"),
        ("convert m-f16.gguf", "", 20, "convert m-f16.gguf"),  # the terminal's own mark stands at its end then
    ],
)
def test_what_is_waited_for_is_kept_where_a_line_is_too_long(step: str, now: str, columns: int, line: str) -> None:
    assert console.running(step, now, columns) == line
