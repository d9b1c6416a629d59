"""A question to a script: its answer in the type that is wanted, what it may touch, and nothing left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.system import interpreter as system_interpreter
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import UNLIMITED
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import Fence
from llamacpp_orchestrator.system.command import Limits
from llamacpp_orchestrator.system.interpreter import Interpreter

# What a script of the standard library alone is asked: which of these modules are there.
QUESTION = [["json", ["loads"]], ["no_such_module", []]]


class Trouble(msgspec.Struct, frozen=True):
    lacking: bool
    distribution: str


def interpreter(folder: Path, limits: Limits | None = None) -> Interpreter:
    return Interpreter(
        python=sys.executable,
        run=process.stream,
        limits=limits or UNLIMITED,
        fenced=limits is not None,
        scratch=folder,
        log=folder / "log",
    )


def test_an_answer_has_its_type_and_nothing_but_the_log_stays(tmp_path: Path) -> None:
    found = system_interpreter.ask(interpreter(tmp_path), "imports", QUESTION, list[Trouble | None])
    assert found == [None, Trouble(lacking=True, distribution="no_such_module")]
    assert [path.name for path in tmp_path.iterdir()] == ["log"] and "import json loads" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("hint", "shown"), [("", "its own"), ("do without", "do without")])
def test_a_failure_has_a_hint_and_nothing_stays(tmp_path: Path, hint: str, shown: str) -> None:
    def run(command: Command, log: Path, tell: Callable[[str], None]) -> None:
        assert Path(command.argv[2]).read_text(encoding="utf-8") == "{}"
        raise CommandFailed("it failed", code=3, tail="why", hint="its own", log=log)

    with pytest.raises(CommandFailed) as caught:
        system_interpreter.ask(msgspec.structs.replace(interpreter(tmp_path), run=run), "imports", {}, dict, hint=hint)
    error = caught.value
    assert (error.message, error.code, error.tail, error.hint, error.log) == ("it failed", 3, "why", shown, tmp_path / "log")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [None, "", "{", '"text"', "\udcff"])
def test_no_answer_is_a_failure_that_says_so(tmp_path: Path, answer: str | None) -> None:
    def run(command: Command, log: Path, tell: Callable[[str], None]) -> None:
        if answer is not None:
            (tmp_path / "answer.json").write_bytes(answer.encode(errors="surrogateescape"))

    with pytest.raises(CommandFailed, match="imports ended well, and left no answer that can be read") as caught:
        system_interpreter.ask(msgspec.structs.replace(interpreter(tmp_path), run=run), "imports", {}, dict)
    assert caught.value.hint and caught.value.log == tmp_path / "log" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("limits", [None, UNLIMITED, Limits(memory=5, seconds=7)])
def test_a_script_sees_what_it_is_shown_and_writes_beside_its_answer(tmp_path: Path, limits: Limits | None) -> None:
    commands = []

    def run(command: Command, log: Path, tell: Callable[[str], None]) -> None:
        commands.append(command)
        (tmp_path / "answer.json").write_text("NaN")

    answer = system_interpreter.ask(
        msgspec.structs.replace(interpreter(tmp_path, limits), run=run), "imports", {}, float, [Path("/model")]
    )
    assert answer != answer  # what is no number in Python is none in JSON, and all the same an answer
    question, reply = (str(tmp_path / name) for name in ("asked.json", "answer.json"))
    script = inside.path("imports")
    assert commands[0].argv == (sys.executable, str(script), question, reply) and commands[0].cwd == str(tmp_path)
    read = tuple(map(str, (script.parent, question, reply, "/model")))
    fence = limits and Fence(read=read, write=(str(tmp_path),), memory=limits.memory, seconds=limits.seconds)
    assert commands[0].fence == fence
