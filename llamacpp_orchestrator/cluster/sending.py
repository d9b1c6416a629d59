"""What the driver sends to a worker that asks: the order of the run, and the user's own files piece by piece, beside all else."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.cluster import arrivals
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order

LACKS = "lacks"  # the status of the news by which a worker asks
AT_A_TIME = 4  # workers
Send = Callable[[Sequence[News]], None]


@contextmanager
def sender(client: Any, order: Order) -> Iterator[Send]:
    """A function that sends what some news asks for, in the background; what is not sent when the block ends never will be."""
    pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="send")
    orders = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="order")  # none is to wait for it behind another's gigabytes
    data = msgspec.json.encode(order)

    def send(asking: Sequence[News]) -> None:
        if beginning := [news for news in asking if not news.parts]:
            orders.submit(_send_order, client, order.handshake.run, data, beginning)
        for news in (news for news in asking if news.parts):
            pool.submit(_send, client, order, news)

    try:
        yield send
    finally:
        for each in (pool, orders):
            each.shutdown(wait=False, cancel_futures=True)


def _send_order(client: Any, run: str, order: bytes, asking: Sequence[News]) -> None:
    """Send the order to all who ask for it, in one call."""
    turns, workers = [news.turn for news in asking], list({news.address for news in asking})
    try:
        client.run(arrivals.take_order, run, order, turns, workers=workers, on_error="ignore")
    except Exception as failure:
        for news in asking:
            _end(client, news, failure)


def _end(client: Any, news: News, failure: Exception | None = None) -> None:
    """Tell a worker that all has been sent, by way of the scheduler, which reaches it in any case."""
    error = f"{type(failure).__name__}: {failure}" if failure else ""
    with suppress(Exception):
        client.run(arrivals.end, news.turn, error, workers=[news.address])


def _send(client: Any, order: Order, news: News) -> None:
    """Send the parts that a worker lacks."""
    places = {source.text: source for source in order.sources}
    try:
        for part in news.parts:
            source = places[part.text]
            path = Path(source.place) / part.name
            for offset, data in arrivals.pieces(path, source.files[part.name].size):
                piece = arrivals.receive, news.turn, part.path, offset, data
                if not client.sync(arrivals.call, client, news.address, *piece):
                    return
    except Exception as failure:  # whatever it is, a worker waits
        _end(client, news, failure)
    else:
        _end(client, news)
