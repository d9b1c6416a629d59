"""What follows from what workers tell: which chain begins when, what is done again elsewhere, and when a run ends."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.cluster import progress
from llamacpp_orchestrator.cluster.placement import Machine
from llamacpp_orchestrator.cluster.placement import Workers
from llamacpp_orchestrator.cluster.progress import Progress
from llamacpp_orchestrator.cluster.records import Answer
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import Handshake
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.screen import Screen
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.source.pin import SourcePin
from llamacpp_orchestrator.system.scheduler import Event

FULL = News(step="fetch m", status="failed", chain="one", by="a", turn="1", error=("no space left", "free some"))
LOCK = Lock(llama_cpp=SourcePin(tag="b1", repo="", tree="", commit="0" * 40), models=())
MACHINES = (Machine(address="tcp://a", name="a"), Machine(address="tcp://b", name="b"))


class Cluster:
    """A client whose tasks end as soon as they are submitted, with what a function says of the chain and the workers."""

    status = "running"

    def __init__(self, ends: Any) -> None:
        self.ends = ends
        self.calls: list[tuple[str, Any]] = []

    def map(self, function: Any, orders: Any, chains: list[bytes], workers: Any = None, **more: Any) -> list[Any]:
        return [self.future(msgspec.json.decode(chain, type=Chain).key, workers) for chain in chains]

    def future(self, key: str, workers: Any) -> Any:
        self.calls.append((key, workers))
        data = self.ends(key, workers)
        status = "error" if isinstance(data, Exception) else "cancelled" if data is None else "finished"
        return SimpleNamespace(
            status=status,
            data=data,
            done=lambda: True,
            cancelled=lambda: status == "cancelled",
            exception=lambda: data,
            add_done_callback=lambda call: call(None),
        )

    def gather(self, futures: list[Any]) -> list[bytes]:
        return [msgspec.json.encode(future.data) for future in futures]

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {machine.address: {} for machine in MACHINES}}


def followed(client: Any, *chains: Chain, keep_going: bool = False) -> tuple[Progress, list[Event]]:
    events: list[Event] = []
    order = Order(handshake=Handshake(run="r", version=""), job="/j.yaml", text=b"", lock=LOCK, keep_going=keep_going)
    run = Progress(
        client=client,
        order=order,
        workers=Workers(machines=MACHINES),
        inbox=queue.SimpleQueue(),
        screen=Screen(names=frozenset(), report=events.append),
        waiting=list(chains),
    )
    progress.follow(run)
    return run, events


def chain(key: str, *after: str) -> Chain:
    return Chain(key=key, outputs=(f"{key}.gguf",), after=after)


def answer(code: int = 0, address: str = "tcp://a", **more: Any) -> Answer:
    return Answer(code=code, worker=address[-1], address=address, **more)


def test_a_chain_begins_once_all_that_it_needs_has_ended() -> None:
    client = Cluster(lambda key, workers: answer())
    run, _ = followed(client, chain("two", "one"), chain("three", "two", "one"), chain("one"))
    assert [key for key, _ in client.calls] == ["one", "two", "three"] and not any(run.codes.values())


def test_what_needs_a_failed_chain_does_not_begin() -> None:
    client = Cluster(lambda key, workers: answer(1, error=("broken", "")))
    run, events = followed(client, chain("one"), chain("two", "one"), chain("three"), keep_going=True)
    assert [key for key, _ in client.calls] == ["one", "three"] and run.codes["two"] == 1
    assert [event.step for event in events if event.status == "blocked"] == ["task two"]


def test_the_first_failure_is_the_last_unless_told_to_keep_going() -> None:
    client = Cluster(lambda key, workers: answer(1, error=("broken", "")))
    _, events = followed(client, chain("one"), chain("two", "one"))
    assert [key for key, _ in client.calls] == ["one"] and "1 more tasks were stopped" in events[-1].text


def test_what_one_worker_has_no_room_for_another_one_makes() -> None:
    client = Cluster(lambda key, workers: answer(address="tcp://b") if workers else answer(1, full=True, news=(FULL,)))
    run, events = followed(client, chain("one"), chain("two", "one"))
    assert client.calls == [("one", None), ("one", ["tcp://b"]), ("two", None), ("two", ["tcp://b"])]
    assert not any(run.codes.values()) and not run.screen.last
    assert "worker a has no room for one.gguf, and another one makes it: no space left" in [event.text for event in events]


def test_what_no_worker_has_room_for_is_told() -> None:
    client = Cluster(lambda key, workers: answer(1, full=True, news=(FULL,)))
    run, events = followed(client, chain("one"))
    assert client.calls == [("one", None), ("one", ["tcp://b"])] and run.codes == {"one": 1}
    failed = [event.error for event in events if event.status == "failed"]
    assert len(failed) == 1 and isinstance(failed[0], OrchestrateError) and failed[0].message == "no space left"


def test_an_answer_of_a_worker_that_is_lost_just_now_is_looked_for_again() -> None:
    class Losing(Cluster):
        lost = True

        def gather(self, futures: list[Any]) -> list[bytes]:
            if self.lost:
                self.lost = False
                raise OSError("the worker has gone")
            return super().gather(futures)

    run, _ = followed(Losing(lambda key, workers: answer()), chain("one"))
    assert run.codes == {"one": 0}


def test_a_run_that_the_scheduler_has_let_go_of_ends() -> None:
    with pytest.raises(NetworkError, match="has gone, or has let go of this run"):
        followed(Cluster(lambda key, workers: None), chain("one"))
