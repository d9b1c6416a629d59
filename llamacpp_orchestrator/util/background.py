"""Work that goes on beside other work, in a thread that cannot hold us back when a signal ends us."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_loading = threading.RLock()


def load(*names: str) -> None:
    """Import libraries, one thread at a time, before a function imports what it needs of them.

    Threads that enter a package of circular imports by different doors may wait for each other; importlib ends one of them
    with _DeadlockError.
    """
    with _loading:
        for name in names:
            importlib.import_module(name)


def begin(work: Callable[[], T]) -> Callable[[], T]:
    """Start some work; what is answered waits for its end, and gives its result or raises its failure."""
    results: list[T] = []
    failures: list[BaseException] = []

    def carry_out() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=carry_out, daemon=True)
    thread.start()

    def end() -> T:
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    return end
