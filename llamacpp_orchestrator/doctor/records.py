"""What was looked at on this machine, one line each, and the questions that lead to them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from llamacpp_orchestrator.doctor import causes
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import masked


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: whether it will do, what was seen, and whether the job cannot do without.

    What does not do has a `cause` (one word, the same for all that share it) and a `remedy`, which `said` ends with. `place` is
    the server that was asked; `within` names the line that says it for all of its cause.
    """

    name: str
    ok: bool
    said: str
    needed: bool = True
    cause: str = ""
    remedy: str = ""
    place: str = ""
    within: str = ""

    def line(self) -> str:
        """The same as text."""
        return f"{'ok' if self.ok else 'problem':<9}{self.name:<13} {self.said}"


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One question: of what, which setting could name another place, whom it asks, and how; the answer is text or lines."""

    name: str
    ask: Callable[[], str | tuple[Line, ...]]
    setting: str = ""
    place: str = ""
    needed: bool = True


def problem(name: str, cause: str, what: str, remedy: str = "", needed: bool = True, place: str = "") -> Line:
    """The line of something that does not do: what happened, and the way out behind it."""
    what, remedy = masked(what), masked(remedy)
    said = "; ".join(filter(None, (what, remedy)))
    return Line(name=name, ok=False, said=said, needed=needed, cause=cause, remedy=remedy, place=place)


def answered(probe: Probe) -> tuple[Line, ...]:
    """The lines of one question; whatever goes wrong with it, ours too, is one of them."""
    try:
        said = probe.ask()
    except OrchestrateError as error:
        cause, what = causes.of(error), "; ".join(error.message.splitlines())
        remedy = causes.remedy(cause, probe.setting, error.hint)
        return (problem(probe.name, cause, what, remedy, probe.needed, probe.place),)
    except Exception as error:  # a doctor that falls ill tells nothing of all the rest
        cause = causes.of(error)
        words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return (problem(probe.name, cause, words, causes.remedy(cause, probe.setting, causes.REPORT), probe.needed, probe.place),)
    if isinstance(said, str):
        return (Line(name=probe.name, ok=True, said=said, needed=probe.needed, place=probe.place),)
    return said
