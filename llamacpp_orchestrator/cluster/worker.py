"""What runs on a worker: this program as a child, which makes one chain after the other, and whose events go to the driver."""

from __future__ import annotations

import functools
import os
import threading
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import llamacpp_orchestrator
from llamacpp_orchestrator.cluster import arrivals
from llamacpp_orchestrator.cluster import child as cluster_child
from llamacpp_orchestrator.cluster import sending
from llamacpp_orchestrator.cluster import sources
from llamacpp_orchestrator.cluster.child import Child
from llamacpp_orchestrator.cluster.records import Answer
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.cluster.records import Handshake
from llamacpp_orchestrator.cluster.records import News
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.records import Part
from llamacpp_orchestrator.cluster.records import Source
from llamacpp_orchestrator.cluster.records import Work
from llamacpp_orchestrator.errors import FULL
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import of_system
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.util.disk import need_room
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.store import draft
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.tempfiles import sweep_folder

LOOK_SECONDS = 0.5
UNFIT = "the output folder must be on storage that all workers see, and the program the same on all of them"
RUNNING = ("executing", "long-running")  # of a task that somebody still waits for
ENDED = ("failed", "blocked")


def unfit(handshake_json: bytes) -> str:
    """Why nothing of a run can be done on this worker; "" where it can."""
    handshake = msgspec.json.decode(handshake_json, type=Handshake)
    if handshake.version != llamacpp_orchestrator.__version__:
        return f"it has llamacpp-orchestrator {llamacpp_orchestrator.__version__}, and {handshake.version} was asked"
    if handshake.probe and text_of(Path(handshake.probe)) != handshake.run:
        return f"it does not see the folder {Path(handshake.probe).parent}"
    return ""


def given(order_json: bytes) -> bytes:
    """An order as the result of a task: Dask brings it once to each worker that needs it, also to one that comes later."""
    return order_json


def run_chain(order_json: bytes, chain_json: bytes) -> bytes:
    """Make the outputs of a chain, whatever comes of it: how it ended is data, for an exception is no answer to a user."""
    from distributed import get_worker

    worker, order = get_worker(), _order(order_json)
    chain, turn = msgspec.json.decode(chain_json, type=Chain), uuid.uuid4().hex
    key, name = worker.get_current_task(), str(worker.name)
    who: dict[str, Any] = {"worker": name, "address": worker.address}

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state in RUNNING and worker.status.name in ("running", "paused")

    def tell(item: News) -> News:
        item = msgspec.structs.replace(item, chain=chain.key, by=name, turn=turn, address=worker.address)
        worker.log_event(order.handshake.run, msgspec.to_builtins(item))
        return item

    try:
        if reason := unfit(msgspec.json.encode(order.handshake)):
            raise OrchestrateError(f"worker {name} cannot do it: {reason}", UNFIT)
        folders = _folders(order, chain, turn, tell, is_wanted)
        return msgspec.json.encode(_made(Work(order=order, outputs=chain.outputs, folders=folders), tell, is_wanted, who))
    except (OrchestrateError, OSError) as error:
        told = error if isinstance(error, OrchestrateError) else of_system(error) or OrchestrateError(str(error))
        words = (told.message, f"{told.hint}\nit was on worker {name}".lstrip("\n"))
        return msgspec.json.encode(Answer(code=told.exit_code, error=words, full=FULL in told.hint, **who))


@functools.lru_cache(maxsize=2)
def _order(order_json: bytes) -> Order:
    return msgspec.json.decode(order_json, type=Order)


def _made(work: Work, tell: Callable[[News], News], is_wanted: Callable[[], bool], who: dict[str, Any]) -> Answer:
    """What a child makes of a chain; where a disk has no room, that is kept for the driver, who may ask another worker."""
    news, error, full = dict[str, News](), None, False
    with cluster_child.at_work(work.order.handshake.run) as child, _tied_to_task(child, is_wanted):
        for item in cluster_child.events(child, work):
            full |= bool(item.error and FULL in item.error[1])
            if item.status == "error":
                error = item.error
            elif full and item.status in ENDED:
                news[item.step] = msgspec.structs.replace(item, by=who["worker"])
            else:
                news[item.step] = tell(item)
        code, words = child.code, child.words()
    if code and not error and not any(item.status == "failed" for item in news.values()):
        message = f"orchestrate {process.ended(code)} on worker {who['worker']}: {words}"
        error = (message, "run the same command again")
    return Answer(code=code, news=tuple(news.values()), error=error, full=full, **who)


def _folders(
    order: Order, chain: Chain, turn: str, tell: Callable[[News], News], is_wanted: Callable[[], bool]
) -> dict[str, str]:
    """Where on this machine lies what the outputs of a chain are made of, by the job's texts; what is not here is sent.

    OrchestrateError for what does not come as it should.
    """
    pinned = sources.pinned(order, chain.outputs, settings.load(os.environ))
    store = pinned.store
    texts = sources.texts(pinned.context.job)
    needed = [source for source in order.sources if source.text in texts and not sources.is_here(pinned, source)]
    for source in needed:
        with store.lock(f"{sources.FOLDER}-{sources.kept(store, source).parent.name}"):
            _bring(store, source, turn, tell, is_wanted)
    return {source.text: str(sources.kept(store, source)) for source in needed}


def _bring(store: Store, source: Source, turn: str, tell: Callable[[News], News], is_wanted: Callable[[], bool]) -> None:
    """Let the driver send what is lacking of a source."""
    place = sources.kept(store, source)
    names = sources.lacking(store, source, place)
    if not names:
        return
    folder = store.folder(sources.FOLDER)
    sweep_folder(folder)
    need_room(folder, sum(source.files[name].size for name in names), f"for {source.place}")
    parts = [Part(source.text, name, str(draft(folder / "part"))) for name in names]
    step = f"send {source.text}"
    try:
        with arrivals.awaited(turn) as arrived:
            tell(News(step=step, status=sending.LACKS, parts=tuple(parts)))
            arrivals.wait(arrived, is_wanted)
        for part in parts:
            sources.take(store, source, part.name, Path(part.path))
    finally:
        for part in parts:
            remove(Path(part.path))
    tell(News(step=step, status="done"))


@contextmanager
def _tied_to_task(child: Child, is_wanted: Callable[[], bool]) -> Iterator[None]:
    """End a child once nobody waits for its task any more: Dask lets a task that it has cancelled go on to its end."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            if not is_wanted():
                process.stop(child.process)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
