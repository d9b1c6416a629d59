"""How the environment's Python runs scripts: one warm interpreter for all of them, or a process for each; and how they fail."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.convert import failures
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import Fence
from llamacpp_orchestrator.util import cancel

POLL_SECONDS = 0.2
# To fork copies the table of pages: with glibc's memory in large ones it takes a third less.
LARGE_PAGES = (("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),)
Answer = tuple[int, bool, int | None]  # how a child ended: its code, whether it was too late, and the bytes that it wrote
IMPORTS, READS = "importing", "reading"  # what is waited for before upstream counts
UNKNOWN = "read the log; pin a newer tag, take the model's files as they were published, or report it to llama.cpp with the log"


def failed(error: CommandFailed, memory: int = 0) -> CommandFailed:
    """The failure of a script with the likely cause in front, and never upstream's advice to load pickles unsafely.

    `memory` is how many bytes the script was allowed to take, 0 for all.
    """
    if error.hint:
        return error
    starved = sandbox.starved(error.tail, memory)
    known = starved if starved[0] else diagnose.machine(error.code, f"{error.message}\n{error.tail}")
    cause, remedy = known if known[1] else failures.explain(error.tail)
    hint = remedy or UNKNOWN
    message = f"{cause}: {error.message}" if cause else diagnose.pointed(error.message, error.tail, error.code)
    return error.retold(message, hint)


def progress_of(line: str) -> str:
    """What a line of upstream's output says about how far it is: "45%", or nothing."""
    percents = re.findall(r"(\d{1,3})%\|", line)
    return f"{percents[-1]}%" if percents else ""


def can_fork(system: str) -> bool:
    """Whether a warm interpreter may be forked: macOS can, but its numeric libraries do not survive it."""
    return system == "linux"


class Warm:
    """One interpreter that has torch and transformers loaded and forks a child for each conversion; started when first used.

    It loads what `scripts` import, which are those that it will be asked for; without any, all that the tree has.
    """

    def __init__(
        self, python: str, tree: Path, env: tuple[tuple[str, str], ...], log: Path, scripts: Iterable[Path] = ()
    ) -> None:
        paths = map(str, scripts or (tree / name for name in SCRIPTS.values()))
        argv = (python, str(inside.path("fork_server")), str(tree), *paths)
        self._command = Command(argv, cwd=str(tree), env=(*env, *LARGE_PAGES))
        self._log = log
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._answers: dict[int, queue.SimpleQueue[Answer]] = {}
        self._count = 0

    def start(self) -> None:
        """Begin to import, ahead of the first conversion; if that fails, the first conversion will say so."""
        with self._lock, contextlib.suppress(OrchestrateError):
            self._begin()

    def load(self, command: Command, log: Path, tell: Callable[[str], None], limit: float = 0.0) -> None:
        """Begin with a script of ours in the interpreter itself: what that imports is there for all that is asked for later.

        CommandFailed when Python ends in it, or has not ended with it after `limit` seconds; its words are in `log`. Where the
        interpreter works already, the script is a child as any other.
        """
        with self._lock:
            if begins := self._child is None or self._child.poll() is not None:
                self._log = log
                child, ready = self._begin("--", *command.argv[1:]), self._ready
        if not begins:
            self.convert(command, log, tell)
            return
        end = time.monotonic() + (limit or math.inf)
        while not ready.wait(POLL_SECONDS) and child.poll() is None:
            cancel.look_for_stop()
            if time.monotonic() > end:
                process.stop(child)
        if not ready.is_set():
            code = child.wait()
            how = f"{diagnose.LATE} {process.shown_seconds(limit)}" if time.monotonic() > end else process.ended(code)
            raise CommandFailed(f"`{Path(command.argv[1]).name}` {how}", code=code, tail=process.words_of(log), log=log)

    def convert(self, command: Command, log: Path, tell: Callable[[str], None]) -> int | None:
        """Run one script as a child of the warm interpreter; CommandFailed as if it had been a process of its own.

        Answers with the bytes that it has written to anything, where the system counts them.
        """
        answer: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a+b") as output:
            begin = process.begun(output, command)
            self._ask(command, log, answer)
            code, late, wrote = _followed(answer, self._ready, lambda: process.tail_of(output, begin), tell)
            tail = process.tail_of(output, begin)
        if code:
            limits = command.fence or Fence()
            allowed = process.shown_seconds(limits.seconds)
            how, hint = (f"{diagnose.LATE} {allowed}", sandbox.LONGER) if late else (process.ended(code), "")
            message = f"`{Path(command.argv[1]).name}` {how}"
            raise failed(CommandFailed(message, code=code, tail=tail, hint=hint, log=log), limits.memory)
        return wrote

    def _ask(self, command: Command, log: Path, answer: queue.SimpleQueue[Answer]) -> None:
        with self._lock:
            child = self._begin()
            self._count += 1
            self._answers[self._count] = answer
            request = {"id": self._count, "argv": command.argv[1:], "cwd": command.cwd, "env": dict(command.env), "log": str(log)}
            request["fence"] = msgspec.to_builtins(command.fence)
            try:
                assert child.stdin is not None
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
            except OSError as error:
                raise self._gone(error) from error

    def _begin(self, *first: str) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            command = msgspec.structs.replace(self._command, argv=(*self._command.argv, *first))
            self._child, self._ready = process.start(command, stderr=self._log), threading.Event()
            threading.Thread(target=self._listen, args=(self._child, self._ready), daemon=True).start()
        return self._child

    def _listen(self, child: subprocess.Popen[bytes], ready: threading.Event) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if "ready" in (message := json.loads(line)):
                ready.set()
            else:
                self._answers.pop(message["id"]).put((message["code"], message["late"], message["wrote"]))
        code = child.wait()
        with self._lock:
            for answer in self._answers.values():
                answer.put((code or -1, False, None))
            self._answers.clear()

    def _gone(self, error: Exception) -> OrchestrateError:
        message = diagnose.pointed(f"the environment's Python did not start ({error})", process.words_of(self._log))
        return OrchestrateError(message, "run again with --force", self._log)

    def close(self) -> None:
        """End the interpreter and all of its children."""
        with self._lock:
            if self._child is not None:
                process.stop(self._child)
                self._child = None


@contextlib.contextmanager
def lent(python: str, tree: Path, env: tuple[tuple[str, str], ...], log: Path, scripts: Iterable[Path] = ()) -> Iterator[Warm]:
    """An interpreter for one run, with which it ends."""
    with contextlib.closing(Warm(python, tree, env, log, scripts)) as warm:
        yield warm


@contextlib.contextmanager
def shelf() -> Iterator[Callable[..., contextlib.AbstractContextManager[Warm]]]:
    """The same for several runs one after the other: an interpreter is lent again where a run asks for no more than it has.

    Asked for one of a tree's scripts it gets both: a base and its adapters may come in different runs.
    """
    with contextlib.ExitStack() as stack:
        kept: list[tuple[tuple[object, ...], frozenset[Path], Warm]] = []

        @contextlib.contextmanager
        def lend(
            python: str, tree: Path, env: tuple[tuple[str, str], ...], log: Path, scripts: Iterable[Path] = ()
        ) -> Iterator[Warm]:
            place, wanted, both = (python, tree, env), frozenset(scripts), {tree / name for name in SCRIPTS.values()}
            wanted |= both if wanted & both else set()
            have = next((warm for other, loaded, warm in kept if other == place and loaded >= wanted), None)
            if have is None:
                have = stack.enter_context(lent(python, tree, env, log, sorted(wanted)))
                kept.append((place, wanted, have))
            yield have

        yield lend


def _followed(
    answer: queue.SimpleQueue[Answer], ready: threading.Event, tail: Callable[[], str], tell: Callable[[str], None]
) -> Answer:
    """How a child ended, with what is waited for told meanwhile."""
    shown = ""
    while True:
        now = (progress_of(tail().rsplit("\n", 1)[-1]) or READS) if ready.is_set() else IMPORTS
        if now != shown:
            shown = now
            tell(now)
        with contextlib.suppress(queue.Empty):
            return answer.get(timeout=POLL_SECONDS)


def run_alone(command: Command, log: Path, tell: Callable[[str], None]) -> None:
    """Run one script in a process of its own, where there is no fork."""
    seen = time.monotonic()

    def on_line(line: str) -> None:
        nonlocal seen
        if (now := progress_of(line)) and time.monotonic() - seen > POLL_SECONDS:
            seen = time.monotonic()
            tell(now)

    tell(IMPORTS)
    try:
        process.stream(command, log, on_line)
    except CommandFailed as error:
        raise failed(error, (command.fence or Fence()).memory) from error
