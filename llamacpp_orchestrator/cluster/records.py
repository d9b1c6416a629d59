"""What driver and workers tell each other: small records, sent as JSON, so that neither needs the other's classes."""

from __future__ import annotations

import msgspec

from llamacpp_orchestrator.lock.records import Lock


class Handshake(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker must have for a run: this program's `version`, and the output folder.

    `probe` is a file in that folder that holds `run`, the run's own name: whoever reads it there sees the folder. It is "" where
    no folder need be seen.
    """

    run: str
    version: str
    probe: str = ""


class Content(msgspec.Struct, frozen=True):
    """What a file holds: its size in bytes and its sha256."""

    size: int
    sha256: str


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A folder or file on the driver's machine that a job names with `text`: the contents that count, by names below `place`.

    Of a file that name is "."
    """

    text: str
    place: str
    files: dict[str, Content]


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """Outputs, by name, that one task makes, and the chains by key whose outputs must be there before.

    `memory` is about how many bytes it takes, 0 while the headers that tell are not on the driver's machine; `gpu` tells that
    a program of it computes on one.
    """

    key: str
    outputs: tuple[str, ...]
    after: tuple[str, ...] = ()
    memory: int = 0
    gpu: bool = False


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What all tasks of a run have in common: the job (`text`) of the file `job`, its lock, and how they are worked on.

    That file need not be where a worker sees it.
    """

    handshake: Handshake
    job: str
    text: bytes
    lock: Lock
    sources: tuple[Source, ...] = ()
    force: bool = False
    keep_going: bool = False
    offline: bool = False


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's child is to do: some outputs of an order; `folders` say where lies what the job names, by its texts."""

    order: Order
    outputs: tuple[str, ...]
    folders: dict[str, str] = {}


class Part(msgspec.Struct, frozen=True):
    """A file that a worker lacks: the source by its text, the name below it, and the path there that its bytes are put to."""

    text: str
    name: str
    path: str


class News(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a step as data; `turn` tells the first run of a chain from the next, of a worker that was lost meanwhile.

    `error` is a failure's message and hint; `log` is a path on the machine of the worker, which `by` names (Dask itself adds
    a key `worker`, an address). With the status "lacks" a worker asks for the `parts` of sources, or without any for the order.
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
    parts: tuple[Part, ...] = ()
    address: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How a chain ended: the exit code, the last event of each step, and what kept it from beginning.

    `full` tells that a disk of the worker, which has `address`, had no room: what failed of that has not been told as news.
    """

    code: int
    worker: str
    address: str = ""
    news: tuple[News, ...] = ()
    error: tuple[str, str] | None = None
    full: bool = False
