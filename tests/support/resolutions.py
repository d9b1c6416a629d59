"""What uv resolves, asked once for a session: three seconds at a package index, for every job that has no lock yet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment.pin import Pin
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.store import write_atomically

Resolve = Callable[..., Pin]


class Answer(msgspec.Struct):
    """A resolution, and what was said on the way to it."""

    pin: Pin
    said: list[str]


def remembering(resolve: Resolve, folder: Path) -> Resolve:
    """The same as `resolve`, which ends (question, settings, scratch, tell, ...): what it has answered before it answers again.

    A server that a test has started is asked each time.
    """

    def answer(*question: Any) -> Pin:
        at = next(number for number, word in enumerate(question) if isinstance(word, Settings))
        (settings, _, tell), lines = question[at : at + 3], list[str]()
        if any("127.0.0.1" in url for url in indexes.pages(settings.index)):
            return resolve(*question)
        variables = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_"))}
        words = (resolve.__name__, question[:at], question[at + 3 :], settings.index, settings.torch_index, settings.offline)
        known = folder / f"{hashlib.sha256(repr((words, sorted(variables.items()))).encode()).hexdigest()}.json"
        if known.exists():
            kept = msgspec.json.decode(known.read_bytes(), type=Answer)
            for line in kept.said:
                tell(line)
            return kept.pin

        def hear(line: str) -> None:
            lines.append(line)
            tell(line)

        pin = resolve(*question[: at + 2], hear, *question[at + 3 :])
        folder.mkdir(exist_ok=True)
        write_atomically(known, msgspec.json.encode(Answer(pin=pin, said=lines)).decode())
        return pin

    return answer
