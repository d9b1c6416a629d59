"""What comes to a worker while a task waits for it: a run's order, and files, of which the driver sends pieces straight here."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.errors import OrchestrateError

PIECE = 16 << 20  # bytes: what driver and worker each hold a few times over while it is on its way
LOOK_SECONDS = 0.5
Arrived = queue.SimpleQueue[OSError | OrchestrateError | None]

KEPT = 4  # orders: one whose driver was lost is never taken away

_awaited: dict[str, Arrived] = {}
_orders: dict[str, bytes] = {}


@contextmanager
def awaited(turn: str) -> Iterator[Arrived]:
    """Let pieces come for the run of a chain; what ends it, well or not, is put into the queue."""
    _awaited[turn] = queue.SimpleQueue()
    try:
        yield _awaited[turn]
    finally:
        del _awaited[turn]


def wait(arrived: Arrived, is_wanted: Callable[[], bool]) -> None:
    """Wait until all has come; raises what kept it from coming, or that nobody wants it any more."""
    while is_wanted():
        with suppress(queue.Empty):
            if error := arrived.get(timeout=LOOK_SECONDS):
                raise error
            return
    raise OrchestrateError("nobody waits for it any more")


def order(run: str) -> bytes:
    """What the chains of a run have in common; b"" while it is not here."""
    return _orders.get(run, b"")


async def take_order(run: str, data: bytes, turns: Sequence[str]) -> None:
    """Keep the order of a run, for which some chains wait. It runs on the worker, beside its tasks, as all that follows."""
    _orders[run] = data
    for other in list(_orders)[:-KEPT]:
        del _orders[other]
    for turn in turns:
        await end(turn, "")


def forget(run: str) -> None:
    """Let go of the order of a run that is over."""
    _orders.pop(run, None)


async def receive(turn: str, path: str, offset: int, data: bytes) -> bool:
    """Put a piece where it belongs; whether more is wanted."""
    arrived = _awaited.get(turn)
    if arrived is None:
        return False
    try:
        await asyncio.to_thread(_write, Path(path), offset, data)
    except OSError as error:
        arrived.put(error)
        return False
    return True


async def end(turn: str, error: str) -> None:
    """Say that all has come, or why it does not."""
    way = "can the driver's machine read it, and reach the worker's? where it cannot, put it on storage that both see"
    if arrived := _awaited.get(turn):
        arrived.put(OrchestrateError(f"the driver could not send it: {error}", way) if error else None)


def _write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(data)


def pieces(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """The pieces of a file of so many bytes, each with its offset; an empty file has one."""
    with path.open("rb") as file:
        for offset in range(0, max(size, 1), PIECE):
            yield offset, file.read(min(PIECE, size - offset))


async def call(client: Any, address: str, function: Callable[..., Any], *words: Any) -> Any:
    """Let a worker run a coroutine of this module, straight from here: what goes by Dask's own calls goes by the scheduler."""
    from distributed.protocol import pickle

    dumps: Any = pickle.dumps
    answer = await client.rpc(address).run(function=dumps(function), args=dumps(words), kwargs=dumps({}), wait=True)
    if answer["status"] != "OK":
        raise OSError(f"{address}: {answer}")
    return answer["result"]
