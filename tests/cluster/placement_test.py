"""Which workers a run takes, and what is claimed of them."""

from __future__ import annotations

import pytest

from llamacpp_orchestrator.cluster import placement
from llamacpp_orchestrator.cluster.placement import Machine
from llamacpp_orchestrator.cluster.placement import Workers
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.errors import JobError


def machine(name: str, host: str = "h", threads: int = 1, memory: float = 0, gpus: float = 0) -> Machine:
    return Machine(address=f"tcp://{name}", name=name, host=host, threads=threads, memory=memory, gpus=gpus)


def test_what_the_scheduler_says_of_a_worker() -> None:
    known = {"name": "one", "host": "10.0.0.1", "nthreads": 2, "resources": {"MEMORY": 8e9, "GPU": 1}}
    assert placement.machine("tcp://one", known) == machine("one", "10.0.0.1", 2, 8e9, 1)
    assert placement.machine("tcp://x", {}) == Machine(address="tcp://x", name="tcp://x")


@pytest.mark.parametrize("most, names", [(0, "abcde"), (1, "ad"), (2, "abd"), (3, "abcd"), (4, "abcde")])
def test_at_most_so_many_tasks_run_on_one_machine(most: int, names: str) -> None:
    machines = [machine("a", "x"), machine("b", "x"), machine("c", "x"), machine("d", "y"), machine("e", "y", threads=3)]
    workers = placement.placed(machines, most)
    assert "".join(each.name for each in workers.machines) == names
    assert workers.alone == (None if most == 0 else [f"tcp://{name}" for name in names])


def test_a_worker_that_does_more_at_a_time_is_told() -> None:
    with pytest.raises(JobError, match="--workers-per-node 2: each worker does 4 tasks at a time") as caught:
        placement.placed([machine("a", threads=4), machine("b", threads=8)], 2)
    assert "--nthreads 1" in caught.value.hint


@pytest.mark.parametrize(
    "memory, gpu, offered, gpus, claimed",
    [
        (0, False, 8e9, 1, {}),
        (5, False, 0, 0, {}),
        (5, False, 8e9, 0, {"MEMORY": 5.0}),
        (5, True, 8e9, 1, {"MEMORY": 5.0, "GPU": 1.0}),
        (0, True, 0, 1, {"GPU": 1.0}),
        (0, True, 0, 0, {}),
    ],
)
def test_a_chain_claims_what_workers_offer(
    memory: int, gpu: bool, offered: float, gpus: float, claimed: dict[str, float]
) -> None:
    chain = Chain(key="c", outputs=("m.gguf",), memory=memory, gpu=gpu)
    workers = Workers(machines=(machine("a", memory=offered, gpus=gpus), machine("b")))
    assert placement.claims(chain, workers) == claimed


@pytest.mark.parametrize(
    "memory, offered, gpu, message",
    [
        (0, 10, False, ""),
        (10, 0, False, ""),
        (10, 10, False, ""),
        (11, 10, False, "m.gguf takes about 11.0 GB of memory, and no worker offers more than 10.0 GB"),
        (9, 10, True, "and no worker with a GPU offers more than 4.0 GB"),
        (3, 10, True, ""),
    ],
)
def test_what_no_worker_can_ever_take_is_told_at_once(memory: int, offered: int, gpu: bool, message: str) -> None:
    chains = [Chain(key="c", outputs=("m.gguf",), memory=memory * 10**9, gpu=gpu)]
    machines = machine("a", memory=offered * 1e9), machine("b", memory=4e9 if offered else 0, gpus=1)
    if not message:
        return placement.check(chains, Workers(machines=machines))
    with pytest.raises(JobError, match=message):
        placement.check(chains, Workers(machines=machines))
    return None


def test_a_worker_does_as_many_tasks_at_a_time_as_it_has_threads() -> None:
    assert placement.placed([machine("a"), machine("b", threads=4)], 0).tasks == 5
    assert placement.placed([machine("a", "x"), machine("b", "y", threads=4)], 1).tasks == 1
