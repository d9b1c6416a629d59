"""What the checks of an output's words work with: the output, its source, and questions to scripts in the environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import fence
from llamacpp_orchestrator import inside
from llamacpp_orchestrator.command import UNLIMITED
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.command import Limits

Run = Callable[[Command, Path, Callable[[str], None]], None]


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """The environment's python, and how and where a script of ours runs in it; `run` writes a log anew."""

    python: str
    run: Run
    env: tuple[tuple[str, str], ...] = ()
    limits: Limits = UNLIMITED
    scratch: Path
    log: Path


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """An output whose words are checked: its files and metadata, and its source, as it is and as transformers is shown it."""

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    view: Path
    shown: Path
    interpreter: Interpreter
    log: Path


def ask(interpreter: Interpreter, script: str, question: dict[str, Any], seen: Iterable[Path]) -> Any:
    """A script's answer as JSON, for which it may read what is `seen`; CommandFailed when it has none."""
    scratch = interpreter.scratch
    asked, answer = scratch / "asked.json", scratch / "answer.json"
    asked.write_text(json.dumps(question), encoding="utf-8")
    try:
        argv = (interpreter.python, str(inside.path(script)), str(asked), str(answer))
        command = Command(argv, cwd=str(scratch), env=interpreter.env)
        interpreter.run(fence.around(command, interpreter.limits, seen, (scratch,)), interpreter.log, lambda line: None)
        return json.loads(answer.read_text(encoding="utf-8"))
    finally:
        asked.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
