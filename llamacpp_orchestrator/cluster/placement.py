"""Which workers a run takes, and what its chains claim of them: what can never be had is told at once."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import msgspec

from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.util.units import size

MEMORY, GPU = "MEMORY", "GPU"  # Dask's usual names for these resources; memory in bytes


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the scheduler knows it: how many `threads`, which are tasks at a time, it has, and what it offers."""

    address: str
    name: str
    host: str = ""
    threads: int = 1
    memory: float = 0
    gpus: float = 0


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """The workers that a run may take; with `all` also those that come later."""

    machines: tuple[Machine, ...]
    all: bool = True

    @property
    def number(self) -> int:
        """How many they are."""
        return len(self.machines)

    @property
    def tasks(self) -> int:
        """How many tasks they do at a time."""
        return sum(machine.threads for machine in self.machines)

    @property
    def alone(self) -> list[str] | None:
        """The addresses of those that may take a task; None for all."""
        return None if self.all else [machine.address for machine in self.machines]

    @property
    def memory(self) -> float:
        """What the largest offers of memory, in bytes; 0 where none offers any."""
        return max((machine.memory for machine in self.machines), default=0)

    @property
    def gpus(self) -> float:
        """The most GPUs that one of them offers."""
        return max((machine.gpus for machine in self.machines), default=0)


def machine(address: str, known: Mapping[str, Any]) -> Machine:
    """A worker out of what the scheduler says of it."""
    offered = known.get("resources") or {}
    return Machine(
        address=address,
        name=str(known.get("name", address)),
        host=str(known.get("host", "")),
        threads=int(known.get("nthreads", 1)),
        memory=float(offered.get(MEMORY, 0)),
        gpus=float(offered.get(GPU, 0)),
    )


def placed(machines: Iterable[Machine], most: int) -> Workers:
    """So many of the workers of each host that at most `most` tasks run there at a time, 0 for all of them.

    JobError where each of them alone has more threads than that.
    """
    machines, chosen = tuple(machines), list[Machine]()
    if not most:
        return Workers(machines=machines)
    for each in machines:
        taken = sum(other.threads for other in chosen if other.host == each.host)
        chosen += [each] if taken + each.threads <= most else []
    if not chosen:
        least = min(machine.threads for machine in machines)
        message = f"--workers-per-node {most}: each worker does {least} tasks at a time, or more"
        raise JobError(message, "start workers with fewer: dask worker ADDRESS --nthreads 1")
    return Workers(machines=tuple(chosen), all=False)


def claims(chain: Chain, workers: Workers) -> dict[str, float]:
    """What a chain claims of the worker that takes it, of what workers offer at all."""
    memory = {MEMORY: float(chain.memory)} if workers.memory and chain.memory else {}
    return memory | ({GPU: 1.0} if workers.gpus and chain.gpu else {})


def check(chains: Sequence[Chain], workers: Workers) -> None:
    """Raise JobError for what no worker can ever take: Dask would wait for one that can, and say nothing."""
    for chain in chains:
        claimed = claims(chain, workers)
        fitting = [each for each in workers.machines if each.gpus >= claimed.get(GPU, 0)]
        most = max(each.memory for each in fitting)
        if claimed.get(MEMORY, 0) > most:
            kind = " with a GPU" if len(fitting) < workers.number else ""
            message = f"{chain.outputs[0]} takes about {size(chain.memory)} of memory, and no worker{kind} offers more than"
            way = "start a worker with more: dask worker ADDRESS --resources MEMORY=64e9"
            raise JobError(f"{message} {size(int(most))} (its resource {MEMORY})", way)
