"""The one door to child processes: a Command is a value, and every child dies with us."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.system import child_guard
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.util.cancel import STOP
from llamacpp_orchestrator.util.cancel import look_for_stop

TAIL_LINES, BEFORE_TRACEBACK = 20, 3
TRACEBACK, LONGEST_TRACEBACK = "Traceback (most recent call last)", 300
GRACE_SECONDS, TICK = 3.0, 0.2
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_children: set[subprocess.Popen[bytes]] = set()
_children_lock = threading.Lock()


def capture(command: Command, timeout: float = 60.0) -> str:
    """The standard output of a short command; CommandFailed on any other end."""
    with known(_start(command, stderr=subprocess.PIPE)) as child:
        out, err = answer(child, command.argv[0], timeout)
    if child.returncode:
        tail = last_lines(err.decode(errors="replace") or out.decode(errors="replace"))
        message = diagnose.pointed(f"`{command}` {ended(child.returncode)}", tail)
        raise CommandFailed(message, code=child.returncode, tail=tail)
    return out.decode(errors="replace")


def answer(child: subprocess.Popen[bytes], name: str, timeout: float) -> tuple[bytes, bytes]:
    """All that a child says on its two pipes until it ends; CommandFailed where that takes longer, Stopped on a stop."""
    late = time.monotonic() + timeout
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=min(TICK, timeout))
        look_for_stop()
        if time.monotonic() > late:
            raise CommandFailed(f"`{name}` gave no answer in {timeout:.0f} s", code=-1)


def stream(command: Command, log: Path, on_line: Callable[[str], None] | None = None, limit: float = 0.0) -> None:
    """Run long work: both streams go to `log` and line by line to `on_line`; CommandFailed carries the last lines.

    After `limit` seconds, or without one those of its fence, the work is ended and has failed.
    """
    allowed = command.fence.seconds if command.fence else 0.0
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+b") as sink, known(_start(command, stderr=subprocess.STDOUT)) as child:
        begin = begun(sink, command)
        assert child.stdout is not None
        with _limited(child, limit or allowed) as late:
            for raw in child.stdout:
                sink.write(raw)
                sink.flush()
                if on_line:
                    on_line(raw.decode(errors="replace").rstrip())
            code = child.wait()
        tail = tail_of(sink, begin) if code or late.is_set() else ""
    if late.is_set():
        message = f"`{Path(command.argv[0]).name}` {diagnose.LATE} {shown_seconds(limit or allowed)}"
        raise CommandFailed(message, code=code, tail=tail, hint="" if limit else sandbox.LONGER, log=log)
    if code:
        raise CommandFailed(f"`{Path(command.argv[0]).name}` {ended(code)}", code=code, tail=tail, log=log)


def shown_seconds(seconds: float) -> str:
    """A time limit for people: 90 s, 5 min."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


@contextmanager
def _limited(child: subprocess.Popen[bytes], limit: float) -> Iterator[threading.Event]:
    late = threading.Event()

    def end() -> None:
        late.set()
        stop(child)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    if limit:
        timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def start(command: Command, *, stderr: Path) -> subprocess.Popen[bytes]:
    """A child to talk with over its pipes; `stop` ends it, as does our own end."""
    with stderr.open("ab") as sink:
        return _start(command, stdin=subprocess.PIPE, stderr=sink)


@contextmanager
def known(child: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Let a child end with us, and when it is not needed any more; one that another library has started leads a group."""
    with _children_lock:
        _remember(child)
    try:
        if STOP.is_set():
            stop(child)
        yield child
    finally:
        if child.poll() is None:
            stop(child)
        for pipe in (child.stdout, child.stderr):
            if pipe:
                pipe.close()
        _forget(child)


def attached(command: Command) -> int:
    """Run a program on our own terminal and answer its exit code, as a shell would; signals are passed on to it."""
    try:
        child = subprocess.Popen(command.argv, cwd=command.cwd, env=dict(command.env) if command.env else None)
    except OSError as error:
        raise CommandFailed(f"`{command.argv[0]}` could not be started: {error.strerror or error}", code=127) from error

    def pass_on(number: int, frame: object) -> None:
        # The terminal's own ^C has reached it already.
        if number != signal.SIGINT or not _in_front():
            child.send_signal(number)

    with _handled(pass_on):
        code = child.wait()
    return code if code >= 0 else 128 - code


def _in_front() -> bool:
    """Whether a terminal sends its ^C to our group, which an attached program shares; on Windows its console always does."""
    if sys.platform == "win32":
        return True
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:  # noqa: PTH123
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child and all of its own: politely first, then for certain."""
    _signal_group(child, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECONDS)
    _signal_group(child, getattr(signal, "SIGKILL", signal.SIGTERM))
    child.wait()
    _forget(child)


def stop_all() -> None:
    """End every child, and let no new one start; for the moment when a signal asks us to go."""
    STOP.set()
    with _children_lock:
        children = list(_children)
    for child in children:
        _signal_group(child, signal.SIGTERM)
    for child in children:
        stop(child)


def ended(code: int) -> str:
    """How a process ended, in words; a negative code is the signal that killed it."""
    if code in diagnose.KILLED_HARD:
        return "was killed (often the system running out of memory)"
    if code < 0:
        return f"was ended by signal {-code}"
    return f"ended with exit code {code}"


def begun(log: IO[bytes], command: Command) -> int:
    """Write a call into an open log; where its own words will begin, for neither the call nor those before it explain its end."""
    log.write(f"$ {command}\n".encode())
    log.flush()
    return log.seek(0, os.SEEK_END)


def tail_of(log: IO[bytes], begin: int = 0) -> str:
    """The last lines of an open log, those before byte `begin` left out; each redrawn progress bar counts once."""
    log.seek(max(begin, log.seek(0, os.SEEK_END) - 65536))
    return last_lines(log.read().decode(errors="replace"))


def words_of(log: Path) -> str:
    """The last lines of a log by its name; none where it cannot be read."""
    with suppress(OSError), log.open("rb") as file:
        return tail_of(file)
    return ""


def drawn(text: str) -> list[str]:
    """The lines of a text as a terminal shows them: of one that is drawn anew only its end."""
    return [line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]


def last_lines(text: str) -> str:
    """The last few lines of a text, with a whole traceback and what came before it; of a line drawn anew only its end."""
    lines = drawn(text.strip("\n"))
    traced = [number for number, line in enumerate(lines) if line.startswith(TRACEBACK)]
    begin = max(0, min(len(lines) - TAIL_LINES, *(number - BEFORE_TRACEBACK for number in traced[-1:]), len(lines)))
    return "\n".join(lines[max(begin, len(lines) - LONGEST_TRACEBACK) :])


def _start(command: Command, *, stdin: int = subprocess.DEVNULL, stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    # A group of its own lets us end a child together with whatever it starts, and keeps the terminal's ^C from it:
    # the driver decides what ends, and in which order.
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    if STOP.is_set():
        raise OrchestrateError("stopping")
    try:
        with _children_lock:
            _guard()  # before the child, so that as little time as can be lies between its start and word of it
            child = subprocess.Popen(
                sandbox.laid(command, sys.platform),
                cwd=command.cwd,
                env=dict(command.env) if command.env else None,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=sys.platform != "win32",
                creationflags=flags,
            )
            _remember(child)
    except OSError as error:
        raise CommandFailed(f"`{command.argv[0]}` could not be started: {error.strerror or error}", code=127) from error
    return child


def _remember(child: subprocess.Popen[bytes]) -> None:
    """Count a child as ours, once; the caller holds the lock."""
    if child not in _children:
        _children.add(child)
        _tell_guard(f"+{child.pid}\n")


def _forget(child: subprocess.Popen[bytes]) -> None:
    with _children_lock:
        if child in _children:
            _children.discard(child)
            _tell_guard(f"-{child.pid}\n")


def _tell_guard(line: str) -> None:
    guard = _guard()
    if guard and guard.stdin:
        with suppress(OSError):
            guard.stdin.write(line.encode())


@functools.cache
def _guard() -> subprocess.Popen[bytes] | None:
    """What ends our children if we are killed; started with the first of them. Without it, all else goes on."""
    if sys.platform == "win32":
        child_guard.tie()
        return None
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            child_guard.guard(), cwd="/", stdin=subprocess.PIPE, stdout=null, stderr=null, bufsize=0, start_new_session=True
        )
    except OSError:
        return None


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        if sys.platform == "win32":
            if child.poll() is None:
                child.terminate()
        else:
            os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


@contextmanager
def stoppable() -> Iterator[None]:
    """Let the signals that end a program end it in good order: children first, then what is half written."""

    def stop(number: int, frame: object) -> None:
        for name in ENDING:
            signal.signal(name, signal.SIG_IGN)
        raise Stopped(number)

    with _handled(stop):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = [(name, signal.signal(name, handler)) for name in ENDING]
    try:
        yield
    finally:
        for name, earlier in before:
            signal.signal(name, earlier)
