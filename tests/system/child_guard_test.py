"""Children die with a driver that was killed: by the guard on POSIX, by a job object on Windows."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.system import child_guard

posix = pytest.mark.skipif(sys.platform == "win32", reason="groups of processes")
DRIVER = """
import subprocess, sys, time
from pathlib import Path
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
sleep = Command(("sh", "-c", "sleep 300 & echo $! $$; wait"))
talk = process.start(sleep, stderr=Path(sys.argv[1]))
print(talk.stdout.readline().decode(), flush=True)
with process.known(subprocess.Popen(["sleep", "300"], start_new_session=True)) as _:
    print(sorted(child.pid for child in process._children)[-1], process._guard().pid, flush=True)
    process.capture(Command(("true",)))
    if sys.argv[2] == "stop":
        process.stop_all()
    else:
        time.sleep(300)
"""


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # Whoever takes in orphans may not have asked yet how this one ended.
    stat = Path(f"/proc/{number}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def gone(numbers: list[int], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, numbers)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_all_that_was_started_ends_with_a_driver_that_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "log"), "wait"], stdout=subprocess.PIPE)
    assert driver.stdout
    said = driver.stdout.readline() + driver.stdout.readline() + driver.stdout.readline()
    children = [int(word) for word in said.split()]
    assert len(children) == 4 and all(map(alive, children))
    time.sleep(0.5)  # until the guard listens
    os.kill(children[3], signal.SIGTERM)  # whoever ends us politely may ask the guard, too
    driver.send_signal(number)
    driver.wait()
    assert gone(children)
    driver.stdout.close()


@posix
def test_the_guard_ends_with_a_driver_that_ends_in_good_order(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DRIVER, str(tmp_path / "log"), "stop"], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert gone([int(word) for word in done.stdout.split()])


@posix
def test_a_group_that_has_ended_is_left_alone() -> None:
    one, two = (subprocess.Popen(["sleep", "300"], start_new_session=True) for _ in range(2))
    guard = subprocess.Popen(child_guard.guard(), stdin=subprocess.PIPE)
    guard.communicate(f"+{one.pid}\n+{two.pid}\n-{one.pid}\n+{2**22 + 5}\n".encode(), timeout=10)
    assert (guard.returncode, two.wait(5), one.poll()) == (0, -signal.SIGKILL, None)
    one.kill()
    one.wait()


@posix
def test_without_any_child_there_is_no_guard() -> None:
    asked = "from llamacpp_orchestrator.system import process; process.stop_all(); print(process._guard.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True).stdout.split() == [b"0"]


@posix
def test_where_no_guard_can_be_started_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = """
import sys
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
sys.executable = "/no/such/python"
print(process.capture(Command(("echo", "done"))), process._guard())
"""
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True).stdout.split() == [b"done", b"None"]


class Kernel:
    """The four calls that we make of Windows."""

    def __init__(self, refuses: str) -> None:
        self.refuses, self.flags, self.tied = refuses, list[int](), list[int | None]()
        self.CreateJobObjectW = self.answer(lambda security, name: 7)
        self.GetCurrentProcess = self.answer(lambda: 2**64 - 1)

    def answer(self, call: Callable[..., Any]) -> Any:
        def function(*given: Any) -> Any:
            return call(*given)

        return function

    def SetInformationJobObject(self, job: ctypes.c_void_p, kind: int, record: Any, size: int) -> int:
        assert (job.value, kind, size) == (7, 9, 144 if sys.maxsize > 1 << 32 else 112)
        self.flags.append(record._obj[4])
        return int(self.refuses != "limits")

    def AssignProcessToJobObject(self, job: ctypes.c_void_p, process: ctypes.c_void_p) -> int:
        self.tied.append(process.value)
        return int(self.refuses != "process")


@pytest.mark.parametrize(("refuses", "tied", "flags"), [("", 1, [0x2000, 0]), ("limits", 0, [0x2000]), ("process", 1, [0x2000])])
def test_on_windows_a_job_object_holds_the_driver_and_lets_go_at_its_end(
    refuses: str, tied: int, flags: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, at_end = Kernel(refuses), list[tuple[Any, ...]]()
    monkeypatch.setattr(ctypes, "windll", type("Windll", (), {"kernel32": kernel}), raising=False)
    monkeypatch.setattr(atexit, "register", lambda call, *given: at_end.append((call, *given)))
    child_guard.tie()
    for call, *given in at_end:
        call(*given)
    assert (len(kernel.tied), kernel.flags) == (tied, flags)
