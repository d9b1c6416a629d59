"""A worker's child makes chain after chain of a run, and looks once at what all of them need."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import msgspec

import llamacpp_orchestrator
from llamacpp_orchestrator.cli import options
from llamacpp_orchestrator.cli import work
from llamacpp_orchestrator.cluster.child import OVER
from llamacpp_orchestrator.cluster.records import Handshake
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.records import Work
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.system.scheduler import Event
from tests.support.answer import Answer

BASE, FIRST, SECOND = "tiny-llama-f16.gguf", "tiny-llama-lora-a-lora-f16.gguf", "tiny-llama-lora-b-lora-f16.gguf"


def test_a_look_for_all_chains_and_another_after_a_failure(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "f16", "loras": [str(data / "lora-a"), str(data / "lora-b")]}
    file = job(model, output="gguf", binaries={"backend": "none"})
    assert orchestrate("lock", file).code == 0
    lock, handshake = lock_file.read(lock_file.path_for(file)), Handshake(run="r", version=llamacpp_orchestrator.__version__)
    assert lock is not None
    order, events = Order(handshake=handshake, job=str(file), text=file.read_bytes(), lock=lock), list[Event]()
    output = world / "gguf"

    def lines() -> Iterator[bytes]:
        for number, name in enumerate((BASE, FIRST, SECOND, SECOND)):
            if number == 2:
                (output / SECOND).write_text("not ours")
            yield msgspec.json.encode(Work(order=order, outputs=(name,)))
            if number == 2:
                (output / SECOND).unlink()

    work.follow(lines(), options.here({"quiet": True}), events.append)
    ends = [0, *(number + 1 for number, event in enumerate(events) if event.status == OVER)]
    chains = [events[begin:end] for begin, end in itertools.pairwise(ends)]
    looks = [sorted(setup.SHARED & {event.step for event in chain}) for chain in chains]
    assert [chain[-1].text for chain in chains] == ["0", "0", "2", "0"]
    assert looks == [["environment", "source"], [], [], ["environment", "source"]]
    assert all((output / name).is_file() for name in (BASE, FIRST, SECOND))
