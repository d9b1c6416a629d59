"""The command of a worker's child: chain after chain of a cluster's run, with one interpreter that stays warm for all of them."""

from __future__ import annotations

import sys
from collections.abc import Collection
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.cli import running
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import first
from llamacpp_orchestrator.errors import of_system

if TYPE_CHECKING:
    from llamacpp_orchestrator.cluster.records import Work
    from llamacpp_orchestrator.commands.run import Lend
    from llamacpp_orchestrator.results import Result
    from llamacpp_orchestrator.system.scheduler import Reporter
    from llamacpp_orchestrator.system.settings import Settings


@click.command(hidden=True)
def work() -> None:
    """Make the outputs that come as lines of JSON on stdin, and tell on stdout what happens, as lines of JSON, too."""
    from llamacpp_orchestrator import console

    with running.ending():
        follow(sys.stdin.buffer, cli_options.here({"quiet": True}), console.as_data)


def follow(lines: Iterable[bytes], machine: Settings, report: Reporter) -> None:
    """Make the chains of which a line comes, and tell after each how it ended; a bug of ours ends it all.

    As in a run without a cluster, what all chains need is looked at once: by the first, and after each that fails.
    """
    import msgspec

    from llamacpp_orchestrator.cluster.child import OVER
    from llamacpp_orchestrator.cluster.records import Work
    from llamacpp_orchestrator.convert import warm_worker
    from llamacpp_orchestrator.pipeline import setup
    from llamacpp_orchestrator.system.scheduler import Event

    ready = frozenset[str]()
    with warm_worker.shelf() as lend:
        for line in lines:
            asked, code = msgspec.json.decode(line, type=Work), 0
            try:
                result = _made(asked, machine, report, lend, ready)
                code = first(result.errors).exit_code if result.errors else 0
                ready |= setup.SHARED & {step.name for step in result.steps}
            except (OrchestrateError, OSError) as error:
                told = error if isinstance(error, OrchestrateError) else of_system(error)
                if told is None:
                    raise
                code = told.exit_code
                report(Event("", "error", error=told))
            if code:
                ready = frozenset()
            report(Event("", OVER, str(code)))


def _made(asked: Work, machine: Settings, report: Reporter, lend: Lend, ready: Collection[str]) -> Result:
    from llamacpp_orchestrator.cluster import sources
    from llamacpp_orchestrator.commands import disk
    from llamacpp_orchestrator.commands import run
    from llamacpp_orchestrator.context import Options
    from llamacpp_orchestrator.lock import resolve
    from llamacpp_orchestrator.remote_outputs import mirror

    order = asked.order
    pinned = sources.pinned(order, asked.outputs, machine, asked.folders)
    disk.check_place(pinned.context)
    if reasons := resolve.unpinned_reasons(pinned):
        message = f"the lock of {pinned.context.file.name} does not do on this machine: {'; '.join(reasons)}"
        raise LockError(message, "run the job on a machine like it first, which completes the lock")
    force, keep_going = order.force, order.keep_going
    options = Options(locked=True, write_lock=False, only=asked.outputs, jobs=1, force=force, keep_going=keep_going)
    with mirror.using(pinned.context):
        mirror.look(pinned.context)
        return run.make_pinned(pinned, options, report, lend, ready)
