"""Many adapters on one model: one warm interpreter against a process each."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import world as worlds
from tests.bench.clock import ours
from tests.bench.clock import turns
from tests.bench.table import Row
from tests.bench.table import compared
from tests.support import scratch
from tests.support.scratch import World

ADAPTERS, BY_HAND = 100, 3


def rows(world: World) -> Iterator[Row]:
    """The whole job anew against scripts by hand."""
    env = world.env()
    job = worlds.write_job(world.folder("fleet"), worlds.fleet(scratch.data(world.scratch), ADAPTERS))
    ours("run", job, env=env)
    asked = worlds.commands(job, env)[: BY_HAND + 1]
    base, adapters = worlds.by_hand(world, asked[:1]), worlds.by_hand(world, asked[1:])
    pairs = turns(1, lambda: ours("run", job, "--force", env=env), lambda: base() + adapters() / BY_HAND * ADAPTERS)
    note = f"scripts: the base's and {BY_HAND} adapters' runs, the latter reckoned up to {ADAPTERS}; "
    note += "ours also checks every output against its source; the scripts find their bytecode compiled, as pip leaves it"
    name = f"fleet: 1 base + {ADAPTERS} adapters in one run against {ADAPTERS + 1} script runs"
    yield compared(name, pairs, unit="s", goal=0.025, note=note)
