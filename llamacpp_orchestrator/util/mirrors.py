"""One thing that may be had at several places: the first that answers, and what is told of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import TypeVar

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous

T = TypeVar("T")
MOST_LINES = 3


def first_answer(places: Sequence[str], ask: Callable[[str], T], tell: Callable[[str], None]) -> T:
    """What the first place that can answers; that another must be tried is said aloud. The failures of all, when none can."""
    failures: list[OrchestrateError] = []
    for place, following in zip(places, (*places[1:], ""), strict=True):
        try:
            return ask(place)
        except OrchestrateError as error:
            failures.append(error)
            if following:
                tell(f"note: {error.message.splitlines()[0]}; trying {anonymous(following)}")
    worst = failures[-1]
    if len(failures) > 1:
        worst.message = "\n".join(_few([error.message.splitlines()[0] for error in failures]))
    raise worst


def _few(lines: list[str]) -> list[str]:
    """Not more lines than one reads at a glance, beside the one that says what to do."""
    lines = list(dict.fromkeys(lines))
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], f"and {len(lines) - MOST_LINES + 1} more places"]
