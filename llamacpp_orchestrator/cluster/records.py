"""What driver and workers tell each other: small records, sent as JSON, so that neither needs the other's classes."""

from __future__ import annotations

import msgspec


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """Outputs, by name, that one task makes, and the chains by key whose outputs must be there before.

    `memory` is about how many bytes it takes, 0 while the headers that tell are not on the driver's machine.
    """

    key: str
    outputs: tuple[str, ...]
    after: tuple[str, ...] = ()
    memory: int = 0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What all tasks of a run have in common: the job and its lock as they are, by path and digest, and how they are worked on.

    `probe` is a file in the output folder that holds `run`, the run's own name: whoever reads it there sees that folder.
    """

    run: str
    job: str
    job_sha256: str
    lock_sha256: str
    probe: str
    version: str
    force: bool = False
    keep_going: bool = False
    offline: bool = False


class News(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a step as data; `turn` tells the first run of a chain from the next, of a worker that was lost meanwhile.

    `error` is a failure's message and hint; `log` is a path on the machine of the worker, which `by` names (Dask itself adds
    a key `worker`, an address).
    """

    step: str
    status: str
    text: str = ""
    seconds: float = 0.0
    memory: int = 0
    error: tuple[str, str] | None = None
    log: str = ""
    chain: str = ""
    by: str = ""
    turn: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How a chain ended: the exit code of the child, the last event of each step, and what kept it from beginning.

    It is `blocked` where what it needs was not made, which has been told already.
    """

    code: int
    worker: str
    news: tuple[News, ...] = ()
    error: tuple[str, str] | None = None
    blocked: bool = False
