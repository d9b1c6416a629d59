"""How soon the program answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.bench.clock import ours
from tests.bench.clock import timed
from tests.bench.clock import turns
from tests.bench.table import Row
from tests.bench.table import compared
from tests.support.scratch import World

PAIRS = 15


def rows(world: World) -> Iterator[Row]:
    """The help against the library that prints it."""
    env = world.env()
    theirs = [sys.executable, "-c", "import click"]
    ours("--help", env=env)
    pairs = turns(PAIRS, lambda: ours("--help", env=env), lambda: timed(theirs, env))
    yield compared("startup: `orchestrate --help` against `python -c 'import click'`", pairs, unit="s", goal=1.3)
