"""`make bench`: what the driver costs and saves, as ratios of medians over paired runs, never as times alone."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAIRS = 3
ADAPTERS = 10
CLI = [sys.executable, "-m", "llamacpp_orchestrator"]


def timed(*argv: str, **environment: str) -> float:
    """Seconds that a command takes; its failure is ours."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, **environment}, cwd=ROOT)
    return time.perf_counter() - began


def ratio(name: str, goal: float, ours: Callable[[], float], theirs: Callable[[], float], pairs: int = PAIRS) -> dict[str, Any]:
    """One row: medians of A B A B runs, and how the first compares with the second."""
    measured = [(ours(), theirs()) for _ in range(pairs)]
    mine, other = (statistics.median(column) for column in zip(*measured, strict=True))
    row = {
        "name": name,
        "ours_s": round(mine, 3),
        "theirs_s": round(other, 3),
        "ratio": round(mine / other, 3),
        "goal": goal,
        "pairs": pairs,
    }
    print(f"{name:<58}{mine:8.2f} s {other:8.2f} s   ratio {mine / other:6.3f}   goal {goal}", flush=True)
    return row


def fleet_job(folder: Path) -> Path:
    """One base and its adapters as a job, the environment of which is ready."""
    data = folder / "data"
    subprocess.run([sys.executable, "configs/demo_data.py", str(data)], check=True, cwd=ROOT)
    loras = [{"source": str(data / "lora-a"), "name": f"lora-{number}"} for number in range(ADAPTERS)]
    model = {"source": str(data / "tiny-llama"), "outtype": "f16", "loras": loras}
    job = {"version": 1, "llama_cpp": {"tag": "b11434"}, "environment": {"overrides": ["torch==2.13.0"]}, "models": [model]}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    timed(*CLI, "run", str(path))
    return path


def by_hand(job: Path) -> Callable[[], float]:
    """The same outputs by upstream's scripts, one process each, as everyone does it."""
    said = subprocess.run([*CLI, "plan", str(job), "--force", "--json"], check=True, capture_output=True, text=True).stdout
    commands = [
        shlex.split(step["command"].replace("/dist/", "/by-hand/")) for step in json.loads(said)["steps"] if step["command"]
    ]
    (job.parent / "by-hand").mkdir()
    return lambda: sum(timed(*command, HF_HUB_OFFLINE="1") for command in commands)


def main() -> None:
    """Measure all rows, print them, and write them to benchmarks/results.json."""
    os.environ.setdefault("ORCHESTRATE_LLAMA_CPP_FROM", "pypi")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ORCHESTRATE_CACHE_DIR"] = f"{scratch}/cache"
        job = fleet_job(Path(scratch))
        rows = [
            ratio(
                f"fleet: 1 base + {ADAPTERS} adapters against {ADAPTERS + 1} script runs",
                0.2,
                lambda: timed(*CLI, "run", str(job), "--force"),
                by_hand(job),
                1,
            ),
            ratio(
                "no-op run against `python -c 'import click, yaml'`",
                2.5,
                lambda: timed(*CLI, "run", str(job)),
                lambda: timed(sys.executable, "-c", "import click, yaml"),
            ),
            ratio(
                "orchestrate --help against `python -c 'import click'`",
                2.0,
                lambda: timed(*CLI, "--help"),
                lambda: timed(sys.executable, "-c", "import click"),
                9,
            ),
        ]
    results = ROOT / "benchmarks" / "results.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(
        json.dumps({"python": sys.version.split()[0], "cores": os.cpu_count(), "rows": rows}, indent=2) + "\n", encoding="utf-8"
    )
    if missed := [row["name"] for row in rows if row["ratio"] > row["goal"]]:
        print(f"goals missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
