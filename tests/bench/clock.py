"""Commands with the time that they take, alone or in turns; one that fails ends the measurement with its own words."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.support import ROOT
from tests.support.scratch import run

# What the console script does; the folder comes first on the path of `python -c` as well, so both sides look there.
ENTRY = (sys.executable, "-c", "import sys; from llamacpp_orchestrator.__main__ import entry; sys.exit(entry())")


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What one command of the driver took: seconds by the clock and of its own processor time, bytes of memory at most."""

    seconds: float
    cpu: float
    peak: int


def timed(argv: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> float:
    """Seconds that a command takes by the clock."""
    began = time.perf_counter()
    run(argv, env, cwd)
    return time.perf_counter() - began


def orchestrate(*argv: object, env: Mapping[str, str]) -> str:
    """stdout of a command of the driver."""
    return run([*ENTRY, *map(str, argv)], env)


def ours(*argv: object, env: Mapping[str, str]) -> float:
    """Seconds that a command of the driver takes."""
    return timed([*ENTRY, *map(str, argv)], env)


def probed(file: Path, *argv: object, env: Mapping[str, str]) -> Probe:
    """A command of the driver, its time and what its own process has used, children left out."""
    seconds = timed([sys.executable, "-m", "tests.bench.probe", str(file), *map(str, argv)], env)
    return Probe(seconds=seconds, **msgspec.json.decode(file.read_bytes()))


def turns(pairs: int, mine: Callable[[], float], other: Callable[[], float]) -> list[tuple[float, float]]:
    """A B A B: what changes on the machine meanwhile meets both."""
    return [(mine(), other()) for _ in range(pairs)]


def settled() -> None:
    """Wait until what was written so far is on the disk, so that nobody pays for another's bytes."""
    if hasattr(os, "sync"):
        os.sync()
