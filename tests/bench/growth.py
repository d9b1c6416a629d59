"""`make growth`: time and memory over the number of adapters, the size of a model and the entries of a cache, as a page."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.store import write_atomically
from tests.bench import table
from tests.bench import world as worlds
from tests.bench.clock import Probe
from tests.bench.clock import orchestrate
from tests.bench.clock import probed
from tests.support import ROOT
from tests.support import scratch
from tests.support.scratch import World

PAGE = ROOT / "benchmarks" / "growth.md"
ADAPTERS = (1, 10, 100, 300, 1000)
GIGABYTES = (0.1, 0.5, 2.0, 8.0)
ENTRIES = (1, 10, 100, 1000, 10_000)
MEGABYTE = 1_000_000
HEADING = "| {} | seconds | of them the driver's own processor time | the driver's memory, MB |\n|---:|---:|---:|---:|\n"


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that grows: what it is, what was run, how it is to grow, and what each size took."""

    name: str
    unit: str
    command: str
    expected: str
    points: tuple[tuple[float, Probe], ...]


def adapters(world: World) -> Series:
    """A job with so many adapters, made anew as a whole."""
    env, points = world.env(), []
    for count in ADAPTERS:
        scratch.data(world.scratch)
        job = worlds.write_job(world.folder(f"adapters-{count}"), worlds.fleet("../data", count))
        orchestrate("run", job, env=env)
        points.append((float(count), probed(job.parent / "probe.json", "run", job, "--force", env=env)))
        shutil.rmtree(job.parent)
    expected = "In proportion to the adapters; memory stays."
    return Series(name="adapters", unit="adapters", command="run JOB --force", expected=expected, points=tuple(points))


def sizes(world: World) -> Series:
    """A model of so many bytes is pinned by its content for the first time; its weights are a hole."""
    env, points = world.env(), []
    for gigabytes in GIGABYTES:
        folder = world.folder("size")
        shutil.copytree(scratch.data(world.scratch) / "tiny-llama", folder / "model", dirs_exist_ok=True)
        hole(folder / "model" / "model.safetensors", int(gigabytes * 1e9))
        job = worlds.write_job(folder, {"source": "./model", "outtype": "f16"})
        points.append((gigabytes, probed(folder / "probe.json", "lock", job, env=env)))
        shutil.rmtree(folder)
    expected = "In proportion to the bytes, which are hashed once; memory stays."
    return Series(name="size", unit="GB", command="lock JOB", expected=expected, points=tuple(points))


def hole(file: Path, count: int) -> None:
    """A file of safetensors with one tensor of zeros that takes no room on the disk."""
    header = json.dumps({"weight": {"dtype": "F16", "shape": [count // 2], "data_offsets": [0, count // 2 * 2]}}).encode()
    file.unlink()
    with file.open("wb") as written:
        written.write(struct.pack("<Q", len(header)) + header)
        written.truncate(written.tell() + count // 2 * 2)


def entries(world: World) -> Series:
    """One adapter is made anew beside so many entries that other jobs have left in the cache, and as many logs and memos."""
    env, points = world.env(ORCHESTRATE_CACHE_DIR=str(world.scratch / "cache")), []
    scratch.data(world.scratch)
    job = worlds.write_job(world.folder("entries"), worlds.fleet("../data", 1))
    orchestrate("run", job, env=env)
    cache, made = Store(world.scratch / "cache"), 0
    for count in ENTRIES:
        for number in range(made, count):
            cache.ensure("views", f"{number:032x}", entry)
            for kind in ("memo", "logs", "locks"):
                (cache.folder(kind) / f"{number:032x}").write_text("of another job", encoding="utf-8")
        made = count
        points.append((float(count), probed(job.parent / "probe.json", "run", job, "--force", env=env)))
    expected = "Not at all: no run looks through the cache."
    return Series(name="entries", unit="entries", command="run JOB --force", expected=expected, points=tuple(points))


def entry(folder: Path) -> None:
    """What another job's entry holds."""
    (folder / "config.json").write_text("{}", encoding="utf-8")


def section(series: Series) -> str:
    """One series as text for the page."""
    rows = "".join(
        f"| {size:g} | {probe.seconds:.2f} | {probe.cpu:.2f} | {probe.peak / MEGABYTE:.0f} |\n" for size, probe in series.points
    )
    picture = f"![{series.name}](growth-{series.name}.svg)"
    return f"## {series.unit}: `{series.command}`\n\n{series.expected}\n\n{HEADING.format(series.unit)}{rows}\n{picture}\n"


def draw(series: Series) -> str:
    """One series as a picture: both axes in powers of ten, so that what grows in proportion is a line of one slope."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "growth"
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes, sizes = figure.add_subplot(), [size for size, _ in series.points]
    axes.loglog(sizes, [probe.seconds for _, probe in series.points], "o-", label="seconds")
    axes.loglog(sizes, [probe.cpu for _, probe in series.points], "s-", label="the driver's own processor time, seconds")
    axes.loglog(sizes, [probe.peak / 1e9 for _, probe in series.points], "^--", label="the driver's memory, GB")
    axes.set_xlabel(series.unit)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def main(wanted: list[str]) -> int:
    """Measure the series that are named, or all; each replaces its former self in the page, as soon as it is there.

    2 for a series that there is not.
    """
    groups: dict[str, Callable[[World], Series]] = {"adapters": adapters, "size": sizes, "entries": entries}
    if complaint := table.unknown(wanted, groups):
        print(complaint, file=sys.stderr)
        return 2
    kept = PAGE.with_suffix(".json")
    found = msgspec.json.decode(kept.read_bytes(), type=dict[str, Series]) if kept.is_file() else {}
    how = f"one run each, on {os.cpu_count()} cores; the tiny Llama of the demo, and holes for weights"
    with tempfile.TemporaryDirectory(prefix="orchestrate-growth-", ignore_cleanup_errors=True) as folder:
        for name in wanted or groups:
            found[name] = groups[name](World(scratch=Path(folder)))
            print(section(found[name]), flush=True)
            sections = [section(found[name]) for name in groups if name in found]
            write_atomically(PAGE, f"# How it grows\n\nMade by `make growth`: {how}.\n\n" + "\n".join(sections))
            write_atomically(PAGE.with_name(f"growth-{name}.svg"), draw(found[name]))
            write_atomically(kept, msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
