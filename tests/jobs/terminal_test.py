"""A run on a terminal as a person sees it: what is waited for is named on any width, and Ctrl-C ends it at once."""

from __future__ import annotations

import contextlib
import os
import re
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.folders import remains

if sys.platform == "win32":
    pytest.skip("there are no such terminals on Windows", allow_module_level=True)

import fcntl
import pty
import termios

Job = Callable[..., Path]
CTRL_C = b"\x03"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DEADLINE_SECONDS, ANSWER_SECONDS = 600.0, 30.0  # of a busy machine, which may have to make the environment first
# The terminal becomes that of the program's own session, and sends the signal as it does for a shell.
OWN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
# A module that is asked for before the program is there, and stopped in the middle of that.
STOPPED = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from llamacpp_orchestrator.__main__ import entry
entry()
"""


def on_terminal(columns: int, *argv: object, stop_at: str = "") -> tuple[int, str]:
    """The exit code of a command on a terminal and all that was drawn; Ctrl-C is typed once `stop_at` stands there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm"}
    words = [sys.executable, "-m", "llamacpp_orchestrator", *map(str, argv)]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    child = subprocess.Popen([sys.executable, "-c", OWN, *words], **streams, env=environ, start_new_session=True)
    os.close(theirs)
    drawn, typed, deadline = b"", False, time.monotonic() + DEADLINE_SECONDS
    with contextlib.suppress(OSError):  # Linux says so when the other side has gone
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                chunk = os.read(ours, 65536)
                if not chunk:
                    break
                drawn += chunk
            if stop_at and not typed and stop_at in plain(drawn):
                typed = bool(os.write(ours, CTRL_C))
                deadline = time.monotonic() + ANSWER_SECONDS
    os.close(ours)
    child.kill() if time.monotonic() >= deadline else None
    return child.wait(), plain(drawn)


def plain(drawn: bytes) -> str:
    """What a terminal was sent, without colours and without moves of its cursor."""
    return CONTROL.sub("", drawn.decode(errors="replace"))


@pytest.mark.parametrize("columns", [60, 200])
def test_what_is_waited_for_is_named(columns: int, python: Path, job: Job, data: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "name": "a-model-whose-name-is-not-short", "outtype": "f16"})
    code, drawn = on_terminal(columns, "run", file)
    assert code == 0, drawn
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", drawn)]
    steps = [line for line in lines if re.match(r"(.\s)?(convert|verify) a-model", line)]
    assert all(len(line) <= columns for line in lines if "/" not in line), max(lines, key=len)
    for step, words in (("convert", "importing"), ("verify", "comparing weights")):
        assert any(step in line and words in line for line in steps), steps
    done = [line for line in lines if line.startswith(("done", "current"))]
    assert any("convert" in line for line in done) and "built" in lines[-2], lines


@pytest.mark.parametrize("step", ["environment", "importing", "reading", "verify"])
def test_ctrl_c_ends_it(step: str, job: Job, data: Path, world: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "name": "m", "outtype": "f16"}, binaries={"backend": "none"})
    code, drawn = on_terminal(100, "run", file, stop_at=step)
    assert code == 130 and drawn.rstrip().endswith("stopped; run the same command again to go on"), drawn
    assert "Traceback" not in drawn and not list(world.glob("dist/*.gguf")) and remains(world, also=("dist/.*",)) == []


@pytest.mark.parametrize("module", ["click", "llamacpp_orchestrator.cli.app", "llamacpp_orchestrator.errors"])
def test_ctrl_c_before_the_program_is_loaded(module: str) -> None:
    child = subprocess.run([sys.executable, "-c", STOPPED.format(name=module)], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "")
