"""What the driver shows of many workers: each step once, by the name that it has on one machine."""

from __future__ import annotations

import time
from collections.abc import Collection

import msgspec

from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.scheduler import ENDED
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Reporter


class Screen(msgspec.Struct, kw_only=True):
    """The events of all chains as one run's: those of outputs go by the `names` of their steps, others with their worker.

    `turns` and `running` are of each chain: which run of it is on, and its steps that have not ended, with the time at which
    they began; `last` has the last event of each step that has ended, with its chain.
    """

    names: frozenset[str]
    report: Reporter
    turns: dict[str, str] = {}
    running: dict[str, dict[str, float]] = {}
    last: dict[str, tuple[str, Event]] = {}

    def show(self, news: News) -> None:
        """Report an event, and an end once, unless it is worse than the one before.

        Where a chain begins anew, what a lost worker had running is ended first, and what it had ended counts no more.
        """
        if self.turns.setdefault(news.chain, news.turn) != news.turn:
            self.forget(news.chain)
            self.turns[news.chain] = news.turn
            self.report(Event(news.step, "note", f"a worker was lost; {news.by} takes over what it did"))
        running = self.running.setdefault(news.chain, {})
        event = as_event(news, self.names)
        event = msgspec.structs.replace(event, began=running.get(event.step, event.began))
        before = self.last[event.step][1].status if event.step in self.last else ""
        worse = event.status == "failed" and before != "failed"
        if event.status != "note" and not worse and (before or (event.status == "progress" and event.step not in running)):
            return
        if event.status in ENDED:
            running.pop(event.step, None)
            self.last[event.step] = news.chain, event
        elif event.status == "started":
            running[event.step] = event.began
        self.report(event)

    def end(self, chain: str) -> None:
        """Take what a chain had running from the screen."""
        for name, began in self.running.pop(chain, {}).items():
            self.report(Event(name, "blocked", "by the end of its worker", began=began))

    def forget(self, chain: str) -> None:
        """Begin anew with a chain, for it is made by another worker."""
        self.end(chain)
        self.turns.pop(chain, None)
        self.last = {step: ended for step, ended in self.last.items() if ended[0] != chain}

    def has_failed(self, chain: str) -> bool:
        """Tell whether a step of a chain has failed."""
        return any(key == chain and event.status == "failed" for key, event in self.last.values())

    def fail(self, chain: str, error: OrchestrateError) -> None:
        """Report the failure of a chain of which no step tells why."""
        event = Event(f"task {chain}", "failed", error=error)
        self.last[event.step] = chain, event
        self.report(event)


def as_event(news: News, names: Collection[str]) -> Event:
    """What a worker tells as an event of this run; `names` are steps that are called alike wherever they run."""
    error = None
    if news.error:
        log = f"\nits log is there: {news.log}" if news.log else ""
        error = OrchestrateError(news.error[0], f"{news.error[1]}\nit was on worker {news.by}{log}".lstrip("\n"))
    alike = news.step in names
    text = f"{news.text} on {news.by}" if alike and news.status == "progress" else news.text
    began = time.monotonic() - news.seconds
    return Event(
        news.step if alike else f"{news.step} on {news.by}",
        news.status,
        text,
        news.seconds,
        error,
        memory=news.memory,
        began=began,
    )
