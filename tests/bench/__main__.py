"""Measures the rows, or the groups of them that are named; prints each as it comes, and keeps them as JSON and as a picture."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.store import write_atomically
from tests.bench import afterwards
from tests.bench import cluster
from tests.bench import fleet
from tests.bench import many
from tests.bench import merge
from tests.bench import noop
from tests.bench import overhead
from tests.bench import picture
from tests.bench import release
from tests.bench import setup
from tests.bench import startup
from tests.bench import table
from tests.bench import traffic
from tests.bench.table import Row
from tests.support import ROOT
from tests.support.scratch import Failed
from tests.support.scratch import World

GROUPS: dict[str, Callable[[World], Iterator[Row]]] = {
    "startup": startup.rows,
    "noop": noop.rows,
    "fleet": fleet.rows,
    "many": many.rows,
    "after": afterwards.rows,
    "overhead": overhead.rows,
    "release": release.rows,
    "merge": merge.rows,
    "cluster": cluster.rows,
    "bytes": traffic.rows,
    "setup": setup.rows,
}
RESULTS = ROOT / "benchmarks" / "results.json"


def main(wanted: list[str]) -> int:
    """1 when a row could not be measured, 2 for a group that there is not; a missed goal is said, and no failure."""
    if complaint := table.unknown(wanted, GROUPS):
        print(complaint, file=sys.stderr)
        return 2
    rows: list[Row] = []
    failed: list[str] = []
    print(table.heading(), flush=True)
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-", ignore_cleanup_errors=True) as scratch:
        for name in wanted or GROUPS:
            found, reason = measured(name, World(scratch=Path(scratch)))
            rows += found
            failed += [f"{name}: {reason}"] if reason else []
    keep(rows)
    if missed := [row.name for row in rows if not row.met]:
        print("goals missed: " + "; ".join(missed), flush=True)
    for reason in failed:
        print(f"error: could not be measured: {reason}", file=sys.stderr)
    return 1 if failed else 0


def measured(name: str, world: World) -> tuple[list[Row], str]:
    """The rows of one group, each printed when it is there, and why there are not more."""
    rows: list[Row] = []
    began = time.monotonic()
    try:
        for row in GROUPS[name](world):
            rows.append(row)
            print(table.line(row), flush=True)
    except (Failed, OrchestrateError, OSError) as error:
        return rows, str(error)
    finally:
        print(f"{name}: measured in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows, ""


def keep(rows: list[Row]) -> None:
    """Put rows in place of their former selves; what another kind of machine has measured goes, and that is told."""
    old, now = table.read(RESULTS), table.here()
    if old and msgspec.structs.replace(old, rows=()) != now:
        print(f"note: the rows in {RESULTS.name} are of another machine or Python; they go", file=sys.stderr)
        old = None
    kept = table.joined(old or now, rows, list(GROUPS))
    if kept.rows:
        table.write(RESULTS, kept)
        write_atomically(RESULTS.with_suffix(".svg"), picture.svg(kept.rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
