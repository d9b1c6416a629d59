"""What the driver sends of the user's own files: piece by piece, straight to the worker that asks, beside all else."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.cluster import arrivals
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order

LACKS = "lacks"  # the status of the news by which a worker asks
AT_A_TIME = 4  # workers
Send = Callable[[News], None]


@contextmanager
def sender(client: Any, order: Order) -> Iterator[Send]:
    """A function that sends what some news asks for, in the background; what is not sent when the block ends never will be."""
    pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="send")

    def send(news: News) -> None:
        pool.submit(_send, client, order, news)

    try:
        yield send
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _send(client: Any, order: Order, news: News) -> None:
    """Send the parts that a worker lacks; that is told by way of the scheduler, which reaches it in any case."""
    places, error = {source.text: source for source in order.sources}, ""
    try:
        for part in news.parts:
            source = places[part.text]
            path = Path(source.place) / part.name
            for offset, data in arrivals.pieces(path, source.files[part.name].size):
                piece = arrivals.receive, news.turn, part.path, offset, data
                if not client.sync(arrivals.call, client, news.address, *piece):
                    return
    except Exception as failure:  # whatever it is, a worker waits
        error = f"{type(failure).__name__}: {failure}"
    with suppress(Exception):
        client.run(arrivals.end, news.turn, error, workers=[news.address])
