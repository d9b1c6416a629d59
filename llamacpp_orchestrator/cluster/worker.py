"""What runs on a worker: this program as a child, which makes one chain after the other, and whose events go to the driver."""

from __future__ import annotations

import functools
import os
import queue
import threading
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path

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
from llamacpp_orchestrator.system.scheduler import ENDED
from llamacpp_orchestrator.util.disk import need_room
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.store import draft
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.tempfiles import sweep_folder

LOOK_SECONDS = 0.5
UNFIT = "the output folder must be on storage that all workers see, and the program the same on all of them"
RUNNING = ("executing", "long-running")  # of a task that somebody still waits for
UNMADE = ("failed", "blocked")
PASSING = ("started", "progress")


def unfit(handshake_json: bytes) -> str:
    """Why nothing of a run can be done on this worker; "" where it can."""
    handshake = msgspec.json.decode(handshake_json, type=Handshake)
    if handshake.version != llamacpp_orchestrator.__version__:
        return f"it has llamacpp-orchestrator {llamacpp_orchestrator.__version__}, and {handshake.version} was asked"
    if handshake.probe and text_of(Path(handshake.probe)) != handshake.run:
        return f"it does not see the folder {Path(handshake.probe).parent}"
    return ""


def run_chain(handshake_json: bytes, chain_json: bytes) -> bytes:
    """Make the outputs of a chain, whatever comes of it: how it ended is data, for an exception is no answer to a user."""
    from distributed import get_worker

    worker, run = get_worker(), msgspec.json.decode(handshake_json, type=Handshake).run
    chain, key, name = msgspec.json.decode(chain_json, type=Chain), worker.get_current_task(), str(worker.name)

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state in RUNNING and worker.status.name in ("running", "paused")

    def send(news: Sequence[News]) -> None:
        worker.log_event(run, {"news": msgspec.json.encode(news)})  # Dask measures each part of what it sees

    who = News(step="", status="", chain=chain.key, by=name, turn=uuid.uuid4().hex, address=worker.address)
    desk = Desk(send=send, is_wanted=is_wanted, who=who)
    try:
        if reason := unfit(handshake_json):
            raise OrchestrateError(f"worker {name} cannot do it: {reason}", UNFIT)
        order = _order(arrivals.order(run) or asked(run, desk))
        answer = _made(Work(order=order, outputs=chain.outputs, folders=_folders(order, chain, desk)), desk)
    except (OrchestrateError, OSError) as error:
        told = error if isinstance(error, OrchestrateError) else of_system(error) or OrchestrateError(str(error))
        full = FULL in told.hint
        answer = Answer(code=told.exit_code, worker=name, error=(told.message, told.hint), full=full, address=worker.address)
    words = answer.error and (answer.error[0], f"{answer.error[1]}\nit was on worker {name}".lstrip("\n"))
    return msgspec.json.encode(msgspec.structs.replace(answer, news=(*desk.taken(), *answer.news), error=words))


class Desk(msgspec.Struct, kw_only=True):
    """What a chain at work tells: news wait in `pending` until the next look, for each message costs the scheduler as much.

    `who` has what all of its news have in common; `is_wanted` tells whether anybody still waits for its task.
    """

    send: Callable[[Sequence[News]], None]
    is_wanted: Callable[[], bool]
    who: News
    pending: queue.SimpleQueue[News] = msgspec.field(default_factory=queue.SimpleQueue)

    def tell(self, item: News) -> News:
        """Have an event told soon."""
        who = self.who
        item = msgspec.structs.replace(item, chain=who.chain, by=who.by, turn=who.turn, address=who.address)
        self.pending.put(item)
        return item

    def taken(self) -> list[News]:
        """What waits, and waits no more; what a step was at is no news once it has ended."""
        news: list[News] = []
        with suppress(queue.Empty):
            while True:
                news.append(self.pending.get_nowait())
        ended = {item.step for item in news if item.status in ENDED}
        return [item for item in news if not (item.step in ended and item.status in PASSING)]

    def flush(self) -> None:
        """Tell what waits; what comes meanwhile waits for the next time."""
        if news := self.taken():
            self.send(news)


def asked(run: str, desk: Desk) -> bytes:
    """The order of a run, for which the first of its chains on a worker asks."""
    _await(desk, "order")
    return arrivals.order(run)


def _await(desk: Desk, step: str, parts: Sequence[Part] = ()) -> None:
    """Ask the driver for something, and wait for it."""
    with arrivals.awaited(desk.who.turn) as arrived:
        desk.tell(News(step=step, status=sending.LACKS, parts=tuple(parts)))
        desk.flush()
        arrivals.wait(arrived, desk.is_wanted)


@functools.lru_cache(maxsize=2)
def _order(order_json: bytes) -> Order:
    return msgspec.json.decode(order_json, type=Order)


def _made(work: Work, desk: Desk) -> Answer:
    """What a child makes of a chain; where a disk has no room, that is kept for the driver, who may ask another worker."""
    news, error, full = dict[str, News](), None, False
    with cluster_child.at_work(work.order.handshake.run) as child, _tied_to_task(child, desk):
        for item in cluster_child.events(child, work):
            full |= bool(item.error and FULL in item.error[1])
            if item.status == "error":
                error = item.error
            elif full and item.status in UNMADE:
                news[item.step] = msgspec.structs.replace(item, chain=desk.who.chain, by=desk.who.by, turn=desk.who.turn)
            else:
                news[item.step] = desk.tell(item)
        code, words = child.code, child.words()
    if code and not error and not any(item.status == "failed" for item in news.values()):
        error = (f"orchestrate {process.ended(code)}: {words}", "run the same command again")
    return Answer(code=code, worker=desk.who.by, address=desk.who.address, news=tuple(news.values()), error=error, full=full)


def _folders(order: Order, chain: Chain, desk: Desk) -> dict[str, str]:
    """Where on this machine lies what the outputs of a chain are made of, by the job's texts; what is not here is sent.

    OrchestrateError for what does not come as it should.
    """
    pinned = sources.pinned(order, chain.outputs, settings.load(os.environ))
    store, probe = pinned.store, Path(order.handshake.probe)
    if order.handshake.probe and (folder := pinned.context.folder(pinned.context.job.output)) != probe.parent:
        raise OrchestrateError(f"the output folder would be {folder} there, and is {probe.parent}", "write `output` without ~")
    texts = sources.texts(pinned.context.job)
    needed = [source for source in order.sources if source.text in texts and not sources.is_here(pinned, source)]
    for source in needed:
        with store.lock(f"{sources.FOLDER}-{sources.kept(store, source).parent.name}"):
            _bring(store, source, desk)
    return {source.text: str(sources.kept(store, source)) for source in needed}


def _bring(store: Store, source: Source, desk: Desk) -> None:
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
        _await(desk, step, parts)
        for part in parts:
            sources.take(store, source, part.name, Path(part.path))
    finally:
        for part in parts:
            remove(Path(part.path))
    desk.tell(News(step=step, status="done"))


@contextmanager
def _tied_to_task(child: Child, desk: Desk) -> Iterator[None]:
    """Tell what a child does, and end it once nobody waits for its task any more: Dask lets a cancelled task go on to its end."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            desk.flush()
            if not desk.is_wanted():
                process.stop(child.process)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
