"""Child processes: their answers, logs, limits and ends."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.util import cancel
from llamacpp_orchestrator.util import tempfiles


def python(code: str) -> Command:
    return Command((sys.executable, "-c", code), env=clean_env())


def test_short_questions() -> None:
    assert process.capture(python("print(5)")).strip() == "5"
    with pytest.raises(CommandFailed, match="ended with exit code 3: why") as failed:
        process.capture(python("import sys; sys.stderr.write('why'); sys.exit(3)"))
    assert failed.value.code == 3
    with pytest.raises(CommandFailed, match="no answer in 0 s"):
        process.capture(python("import time; time.sleep(30)"), timeout=0.2)
    with pytest.raises(CommandFailed, match="could not be started"):
        process.capture(Command(("/no/such/program",)))
    assert len(process.capture(python("print('x' * 300_000)"))) > 300_000


def test_a_short_question_ends_with_us() -> None:
    timer, began = threading.Timer(0.4, cancel.STOP.set), time.monotonic()
    timer.start()
    try:
        with pytest.raises(Stopped):
            process.capture(python("import time; time.sleep(30)"))
    finally:
        timer.join()
        cancel.STOP.clear()
    assert time.monotonic() - began < 10


def test_long_work_is_logged_line_by_line(tmp_path: Path) -> None:
    lines: list[str] = []
    process.stream(python("print('one'); print('two')"), tmp_path / "logs" / "x.log", lines.append)
    assert lines == ["one", "two"] and "two" in (tmp_path / "logs" / "x.log").read_text()
    with pytest.raises(CommandFailed) as failed:
        process.stream(python("print('a\\rb'); raise SystemExit(4)"), tmp_path / "y.log")
    assert failed.value.code == 4 and failed.value.tail.endswith("b") and failed.value.log == tmp_path / "y.log"


def test_long_work_may_have_a_limit(tmp_path: Path) -> None:
    process.stream(python("print('in time')"), tmp_path / "x.log", limit=60.0)
    began = time.monotonic()
    with pytest.raises(CommandFailed, match="took longer than 2 s") as late:
        process.stream(python("print('begun', flush=True); import time; time.sleep(60)"), tmp_path / "y.log", limit=1.5)
    assert time.monotonic() - began < 30 and late.value.tail.endswith("begun")


@pytest.mark.parametrize(("code", "words"), [(-9, "memory"), (-15, "signal 15"), (2, "exit code 2")])
def test_how_a_process_ended(code: int, words: str) -> None:
    assert words in process.ended(code)


def test_a_child_is_ended_with_all_of_its_own(tmp_path: Path) -> None:
    code = "import subprocess,sys,time; subprocess.Popen([sys.executable,'-c','import time; time.sleep(60)'])"
    code += "; print('up',flush=True); time.sleep(60)"
    child = process.start(python(code), stderr=tmp_path / "err")
    assert child.stdout and child.stdout.readline() == b"up" + os.linesep.encode()
    began = time.monotonic()
    process.stop(child)
    assert child.returncode and time.monotonic() - began < process.GRACE_SECONDS + 2
    child.stdout.close()
    assert child.stdin
    child.stdin.close()


def test_a_program_on_our_own_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert process.attached(python("print('seen'); raise SystemExit(5)")) == 5 and "seen" in capfd.readouterr().out
    with pytest.raises(CommandFailed):
        process.attached(Command(("/no/such/program",)))


def test_a_log_begins_anew_and_a_few_older_ones_stay_beside_it(tmp_path: Path) -> None:
    log = tmp_path / "a b-Q8_0.gguf.log"
    for number in range(6):
        tempfiles.renew(log)
        with pytest.raises(CommandFailed) as failed:
            process.stream(python(f"print('run {number}'); raise SystemExit(1)"), log)
        assert failed.value.tail.count("run") == 1
        process.stream(python(f"print('then {number}')"), log)  # several commands of one step
    assert re.findall(r"(?m)^(?:run|then) .*$", log.read_text()) == ["run 5", "then 5"]
    older = sorted(tmp_path.glob("*.log"))
    assert [path.name for path in older] == [f"a b-Q8_0.gguf.{number}.log" for number in (1, 2, 3)] + [log.name]
    assert ["run 4" in older[0].read_text(), "run 2" in older[2].read_text()] == [True, True]
    assert process.words_of(tmp_path / "none.log") == ""


def test_what_came_before_a_traceback_is_kept_with_it() -> None:
    lines = [f"INFO:{number}" for number in range(9)] + [process.TRACEBACK, *("  frame" for _ in range(40)), "KeyError: 'x'"]
    assert process.last_lines("\n".join(lines)).startswith("INFO:6\nINFO:7\nINFO:8\nTraceback")
