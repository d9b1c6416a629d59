"""What was measured, as records: one row compares two things, the table holds them all for people and for machines."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llamacpp_orchestrator.util.store import write_atomically

Pair = tuple[float, float]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison: medians of `ours` and `theirs` in a unit, and their ratio, which is to be `goal` or less.

    Where a goal is a number by itself, `theirs` is that number, and the goal of the ratio is 1.
    """

    group: str
    name: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    goal: float
    pairs: int
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio <= self.goal


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, and the kind of machine that they were measured on: rows of two kinds are never mixed."""

    python: str
    system: str
    cores: int
    rows: tuple[Row, ...] = ()


def compared(name: str, pairs: Sequence[Pair], *, unit: str, goal: float, note: str = "") -> Row:
    """A row out of paired measurements, ours first; the name begins with its group."""
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    figures = {"ours": float(f"{ours:.4g}"), "theirs": float(f"{theirs:.4g}"), "ratio": float(f"{ours / theirs:.3g}")}
    return Row(group=name.partition(":")[0], name=name, unit=unit, goal=goal, pairs=len(pairs), note=note, **figures)


def limited(name: str, values: Sequence[float], limit: float, *, unit: str, note: str = "") -> Row:
    """A row whose goal is a number: what was measured against it."""
    return compared(name, [(value, limit) for value in values], unit=unit, goal=1.0, note=note)


def here() -> Table:
    """An empty table for this machine."""
    system = f"{platform.system()} {platform.machine()}"
    return Table(python=f"{sys.version_info.major}.{sys.version_info.minor}", system=system, cores=os.cpu_count() or 1)


def joined(old: Table, rows: Iterable[Row], order: Sequence[str]) -> Table:
    """A table in which the groups that were measured anew replace their former rows."""
    fresh = tuple(rows)
    anew = {row.group for row in fresh}
    kept = [row for row in old.rows if row.group not in anew and row.group in order]
    return msgspec.structs.replace(old, rows=tuple(sorted((*kept, *fresh), key=lambda row: order.index(row.group))))


def read(path: Path) -> Table | None:
    """The table of a file; one that is absent or of another shape counts as none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Table)
    except (OSError, msgspec.DecodeError):
        return None


def write(path: Path, table: Table) -> None:
    """Keep a table as JSON."""
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(table), indent=2).decode() + "\n")


def line(row: Row) -> str:
    """A row for people."""
    verdict = "" if row.met else "  missed"
    figures = f"{row.ours:10.4g} {row.theirs:10.4g} {row.unit:<5} {row.ratio:8.3g} {row.goal:6g} {row.pairs:5}"
    return f"{row.name:<76} {figures}{verdict}"


def heading() -> str:
    """What stands over the rows."""
    return f"{'row: ours against theirs':<76} {'ours':>10} {'theirs':>10} {'unit':<5} {'ratio':>8} {'goal':>6} {'pairs':>5}"


def unknown(wanted: Iterable[str], groups: Iterable[str]) -> str:
    """What to say where one of some names is no group; "" where all are."""
    known = list(groups)
    strange = [name for name in wanted if name not in known]
    return f"error: no rows named {' '.join(strange)}\nhint: there are {' '.join(known)}" if strange else ""
