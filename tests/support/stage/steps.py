"""Steps whose action is a function of a test."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping

from llamacpp_orchestrator.system.scheduler import Bounds
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import run

Act = Callable[[Tell], str]


def run_all(
    steps: Iterable[tuple[Step, Act]],
    bounds: Bounds,
    report: Reporter = lambda event: None,
    memory: Mapping[str, Callable[[], int]] | None = None,
) -> list[Event]:
    """Run steps by their functions, which answer with a status; `memory` by the names of steps."""
    steps = list(steps)
    acts = {step.name: act for step, act in steps}

    def perform(step: Step, outcomes: Outcomes, tell: Tell) -> Outcome:
        return Outcome(acts[step.name](tell))

    needs = memory or {}
    return run([step for step, _ in steps], perform, bounds, report, lambda step: needs.get(step.name, int)())
