"""A question to a script in `inside/`, and its answer: JSON in files of which none stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import UNLIMITED
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import Limits

T = TypeVar("T")
Run = Callable[[Command, Path, Callable[[str], None]], int | None]  # answers with the bytes that were written, if known


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """The Python of an environment, and how and where a script of ours runs in it: in a fence, or not.

    `tell` hears what is waited for meanwhile.
    """

    python: str
    run: Run
    env: tuple[tuple[str, str], ...] = ()
    limits: Limits = UNLIMITED
    fenced: bool = True
    scratch: Path
    log: Path
    tell: Callable[[str], None] = lambda line: None


def ask(interpreter: Interpreter, script: str, question: object, answer: type[T], seen: Iterable[Path] = (), hint: str = "") -> T:
    """A script's answer, for which it may read what is `seen`; CommandFailed, with the `hint`, when it has none."""
    scratch = interpreter.scratch
    files = [scratch / name for name in ("asked.json", "answer.json")]
    files[0].write_text(json.dumps(question), encoding="utf-8")
    try:
        argv = (interpreter.python, str(inside.path(script)), *map(str, files))
        command = Command(argv, cwd=str(scratch), env=interpreter.env)
        if interpreter.fenced:
            command = sandbox.around(command, interpreter.limits, seen, (scratch,))
        interpreter.run(command, interpreter.log, interpreter.tell)
        return _read(files[1], answer, script, interpreter.log)
    except CommandFailed as error:
        raise error.retold(error.message, hint or error.hint) from error
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _read(file: Path, answer: type[T], script: str, log: Path) -> T:
    try:
        return msgspec.convert(json.loads(file.read_text(encoding="utf-8")), answer)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        message = f"{script} ended well, and left no answer that can be read ({type(error).__name__})"
        raise CommandFailed(message, code=0, hint="run the same command again; is the disk full?", log=log) from error
