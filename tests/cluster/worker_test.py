"""What a worker says of itself, what it asks for, and what it is sent."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.cluster import arrivals
from llamacpp_orchestrator.cluster import child
from llamacpp_orchestrator.cluster import driver
from llamacpp_orchestrator.cluster import sending
from llamacpp_orchestrator.cluster import worker
from llamacpp_orchestrator.cluster.records import Handshake
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.worker import Desk
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.source.pin import SourcePin

PIN = SourcePin(tag="b1", repo="", tree="0" * 64, commit="0" * 40)
ORDER = Order(handshake=Handshake(run="r", version=""), job="/j.yaml", text=b"", lock=Lock(llama_cpp=PIN, models=()))


def test_why_a_worker_is_unfit(tmp_path: Path) -> None:
    probe = tmp_path / ".probe"
    probe.write_text("run-1")
    handshake = Handshake(run="run-1", probe=str(probe), version=worker.llamacpp_orchestrator.__version__)

    def reason(**changes: str) -> str:
        return worker.unfit(msgspec.json.encode(msgspec.structs.replace(handshake, **changes)))

    assert reason() == reason(probe="") == ""
    assert "and 9.9 was asked" in reason(version="9.9")
    assert reason(run="run-2") == f"it does not see the folder {tmp_path}"


@pytest.mark.parametrize("address", ["", "s3://bucket/x"])
def test_an_output_folder_must_be_seen_and_an_address_need_not(address: str, tmp_path: Path) -> None:
    job = SimpleNamespace(output="dist")
    pinned: Any = SimpleNamespace(context=SimpleNamespace(address=address, job=job, folder=lambda text: tmp_path / text))
    with driver._handshake(pinned) as handshake:
        assert bool(handshake.probe) == (tmp_path / "dist").is_dir() == (not address)
        assert worker.unfit(msgspec.json.encode(handshake)) == ""
    assert not list(tmp_path.rglob("*.new"))


def test_news_wait_and_go_together() -> None:
    sent: list[list[str]] = []
    who = News(step="", status="", chain="c", by="w", turn="t", address="tcp://w")
    desk = Desk(send=lambda news: sent.append([item.step for item in news]), is_wanted=lambda: True, who=who)
    desk.flush()
    told = desk.tell(News(step="one", status="done"))
    assert (told.chain, told.by, told.turn, told.address) == ("c", "w", "t", "tcp://w")
    desk.tell(News(step="two", status="done"))
    desk.flush()
    desk.tell(News(step="three", status="done"))
    assert sent == [["one", "two"]] and [item.step for item in desk.taken()] == ["three"] and not desk.taken()


def test_what_a_step_was_at_is_no_news_once_it_has_ended() -> None:
    desk = Desk(send=lambda news: None, is_wanted=lambda: True, who=News(step="", status=""))
    for step, status in [("a", "started"), ("a", "progress"), ("b", "started"), ("a", "note"), ("a", "done"), ("b", "progress")]:
        desk.tell(News(step=step, status=status))
    desk.tell(News(step="send x", status=sending.LACKS))
    left = [("b", "started"), ("a", "note"), ("a", "done"), ("b", "progress"), ("send x", "lacks")]
    assert [(item.step, item.status) for item in desk.taken()] == left


def test_an_order_comes_to_all_that_ask_for_it_and_is_kept_until_its_run_is_over() -> None:
    calls: list[tuple[list[str], list[str]]] = []

    class Client:
        """A client whose workers are all this process."""

        def run(self, function: Any, *words: Any, workers: list[str], **how: Any) -> None:
            calls.append((sorted(words[2]), sorted(workers)))
            asyncio.run(function(*words))

    asked = [News(step="order", status=sending.LACKS, turn=turn, address=f"tcp://{turn[0]}") for turn in ("a1", "a2", "b1")]
    with arrivals.awaited("a1") as first, arrivals.awaited("b1") as second, sending.sender(Client(), ORDER) as send:
        send(asked)
        arrivals.wait(first, lambda: True)
        arrivals.wait(second, lambda: True)
    assert calls == [(["a1", "a2", "b1"], ["tcp://a", "tcp://b"])]
    assert msgspec.json.decode(arrivals.order("r"), type=Order) == ORDER
    asyncio.run(child.end_all("r"))
    assert arrivals.order("r") == b""


def test_an_order_that_cannot_be_sent_ends_the_waiting() -> None:
    class Client:
        """A client that reaches workers with little."""

        def run(self, function: Any, *words: Any, **how: Any) -> None:
            if function is arrivals.take_order:
                raise OSError("too much")
            asyncio.run(function(*words))

    with arrivals.awaited("t") as arrived, sending.sender(Client(), ORDER) as send:
        send([News(step="order", status=sending.LACKS, turn="t", address="tcp://a")])
        with pytest.raises(OrchestrateError, match="could not send it: OSError: too much"):
            arrivals.wait(arrived, lambda: True)


def test_orders_of_runs_that_were_lost_are_not_kept_for_ever() -> None:
    for number in range(arrivals.KEPT + 2):
        asyncio.run(arrivals.take_order(f"lost-{number}", b"x", ()))
    kept = [number for number in range(arrivals.KEPT + 2) if arrivals.order(f"lost-{number}")]
    assert kept == list(range(2, arrivals.KEPT + 2))
    for number in kept:
        arrivals.forget(f"lost-{number}")


@pytest.mark.parametrize("size", [0, 1, arrivals.PIECE, arrivals.PIECE + 1])
def test_a_file_goes_in_pieces_and_comes_whole(size: int, tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(bytes(range(251)) * (size // 251) + b"x" * (size % 251))
    with arrivals.awaited("turn") as arrived:
        pieces = list(arrivals.pieces(tmp_path / "from", size))
        assert len(pieces) == max(1, -(-size // arrivals.PIECE))
        for offset, data in pieces:
            assert asyncio.run(arrivals.receive("turn", str(tmp_path / "to"), offset, data))
        asyncio.run(arrivals.end("turn", ""))
        arrivals.wait(arrived, lambda: True)
    assert (tmp_path / "to").read_bytes() == (tmp_path / "from").read_bytes()


def test_what_keeps_a_file_from_coming_is_told(tmp_path: Path) -> None:
    with arrivals.awaited("turn") as arrived:
        assert not asyncio.run(arrivals.receive("turn", str(tmp_path / "none" / "to"), 0, b"x"))
        with pytest.raises(OSError, match="none") as caught:
            arrivals.wait(arrived, lambda: True)
        assert caught.value.errno == errno.ENOENT
        asyncio.run(arrivals.end("turn", "it has gone"))
        with pytest.raises(OrchestrateError, match="the driver could not send it: it has gone"):
            arrivals.wait(arrived, lambda: True)
        with pytest.raises(OrchestrateError, match="nobody waits"):
            arrivals.wait(arrived, lambda: False)
    assert not asyncio.run(arrivals.receive("turn", str(tmp_path / "to"), 0, b"x")) and not (tmp_path / "to").exists()
    asyncio.run(arrivals.end("turn", ""))


def test_a_child_has_the_surroundings_of_its_worker_but_for_limits_of_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HOME", "/models")
    command = child.command(Path("/tmp/x"))
    assert command.argv[1:] == ("-m", "llamacpp_orchestrator", "work") and command.cwd == str(Path("/tmp/x"))
    assert dict(command.env).get("HF_HOME") == "/models" and "OMP_NUM_THREADS" not in dict(command.env)
