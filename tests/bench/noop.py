"""A second run of a finished job: how little nothing costs, with outputs of 10 GB."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import yaml

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.last_result import RESTED_SECONDS
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.util.store import Store
from tests.bench import world as worlds
from tests.bench.clock import ENTRY
from tests.bench.clock import orchestrate
from tests.bench.clock import ours
from tests.bench.clock import timed
from tests.bench.clock import turns
from tests.bench.table import Row
from tests.bench.table import compared
from tests.support import scratch
from tests.support.scratch import Failed
from tests.support.scratch import World
from tests.support.scratch import run

ADAPTERS = 9
EACH = 1 << 30
PAIRS, DVC_PAIRS = 15, 5
LARGE = 1000  # adapters, of two types each
DVC = "dvc==3.67.1"
BARE = "import click, yaml"


def rows(world: World) -> Iterator[Row]:
    """Against the two libraries that reading a job takes, and against DVC over the same pipeline."""
    env = world.env(DVC_NO_ANALYTICS="1")
    job, outputs = finished(world, env)
    again = [*ENTRY, "run", str(job)]
    bare = turns(PAIRS, lambda: timed(again, env), lambda: timed([sys.executable, "-c", BARE], env))
    size = f"{len(outputs)} sparse outputs of {EACH >> 30} GiB"
    yield compared(f"noop: second run against `python -c '{BARE}'`", bare, unit="s", goal=1.4, note=size)
    dvc = pipeline(world, job, outputs, env)
    pairs = turns(DVC_PAIRS, lambda: timed(again, env), lambda: timed([dvc, "repro", "--quiet"], env, job.parent))
    note = f"{size}; {DVC}, one stage an output, not in its cache"
    yield compared("noop: second run against `dvc repro` of the same pipeline", pairs, unit="s", goal=0.12, note=note)
    fresh(job, env)
    yield from large(world, job, dvc, env)


def finished(world: World, env: dict[str, str]) -> tuple[Path, list[Path]]:
    """A job that is done, with its data beside it, and its outputs blown up to a real job's size."""
    folder = world.folder("noop")
    shutil.copytree(scratch.data(world.scratch), folder / "data")
    job = worlds.write_job(folder, worlds.fleet("./data", ADAPTERS))
    ours("run", job, env=env)
    outputs = pipeline_receipt.outputs(folder / "dist")
    for output in outputs:
        grow(output)
    time.sleep(RESTED_SECONDS)
    fresh(job, env)
    return job, outputs


def large(world: World, finished_job: Path, dvc: str, env: dict[str, str]) -> Iterator[Row]:
    """The same with 2,000 outputs, which are copies: each with its own receipt, and its own stage of DVC."""
    folder = world.folder("noop-large")
    shutil.copytree(scratch.data(world.scratch), folder / "data")
    shutil.copytree(folder / "data" / "lora-a", folder / "a")
    loras = [{"source": "./a", "name": f"l{number}", "outtype": ["f16", "f32"]} for number in range(LARGE)]
    job = worlds.write_job(folder, {"source": "./data/tiny-llama", "outtype": "f16", "loras": loras})
    orchestrate("lock", job, env=env)
    outputs = copies(job, pipeline_receipt.outputs(finished_job.parent / "dist"), env)
    stages = {
        output.stem.replace(".", "-"): {"cmd": "true", "deps": ["a"], "outs": [{f"dist/{output.name}": {"cache": False}}]}
        for output in outputs
    }
    first, *others = stages
    file, lock = folder / "dvc.yaml", folder / "dvc.lock"
    file.write_text(yaml.safe_dump({"stages": {first: stages[first]}}), encoding="utf-8")
    for words in (["init", "--no-scm", "--quiet"], ["config", "core.analytics", "false"], ["commit", "--force", "--quiet"]):
        run([dvc, *words], env, folder)
    # Each is a copy of the first, so what DVC has found of that holds for it; to commit them all would take minutes.
    locked = yaml.safe_load(lock.read_text(encoding="utf-8"))
    entry = locked["stages"][first]
    for name in others:
        locked["stages"][name] = entry | {"outs": [entry["outs"][0] | {"path": next(iter(stages[name]["outs"][0]))}]}
    file.write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    lock.write_text(yaml.safe_dump(locked), encoding="utf-8")
    if (count := run([dvc, "repro"], env, folder).count("didn't change, skipping")) != len(outputs):
        raise Failed(f"dvc knew {count} of {len(outputs)} outputs")
    again = [*ENTRY, "run", str(job)]
    run(again, env)
    pairs = turns(1, lambda: timed(again, env), lambda: timed([dvc, "repro", "--quiet"], env, folder))
    name = f"noop: second run with {len(outputs):,} outputs against `dvc repro`"
    yield compared(name, pairs, unit="s", goal=0.05, note=f"{DVC}; small files, one stage an output, not in its cache")


def copies(job: Path, done: list[Path], env: dict[str, str]) -> list[Path]:
    """The adapters' outputs of a job as copies of one that is done, with the receipts that the job's own would have."""
    machine = settings.load(env)
    context = Context(job=loader.load(job), file=job, settings=machine, store=Store(machine.cache))
    lock = lock_file.read(lock_file.path_for(job))
    if lock is None:
        raise Failed(f"{job} has no lock")
    (job.parent / "dist").mkdir()
    outputs = []
    for build in pipeline_build.builds(PinnedJob(context, lock)):
        of = next(output for output in done if ("lora" in output.name) == bool(build.output.lora))
        receipt = pipeline_receipt.read(of)
        if receipt is None:
            raise Failed(f"{of} has no receipt")
        with build.output.path.open("wb") as file:
            file.write(b"GGUF")
        found = build.output.path.stat()
        known = {"name": build.output.path.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
        files = (msgspec.structs.replace(receipt.files[0], **known),)
        own = msgspec.structs.replace(receipt, path=build.output.path.name, recipe=build.recipe, inputs=build.inputs, files=files)
        pipeline_receipt.write(build.output.path, own)
        outputs.append(build.output.path)
    time.sleep(RESTED_SECONDS)
    return outputs


def grow(output: Path) -> None:
    """Make an output larger by a hole, and let its receipt say so; the digest is not looked at by a second run."""
    os.truncate(output, EACH)
    receipt, found = pipeline_receipt.read(output), output.stat()
    if receipt is None:
        raise Failed(f"{output} has no receipt")
    files = tuple(msgspec.structs.replace(file, size=found.st_size, mtime_ns=found.st_mtime_ns) for file in receipt.files)
    pipeline_receipt.write(output, msgspec.structs.replace(receipt, files=files))


def fresh(job: Path, env: dict[str, str]) -> None:
    """What is measured is a run with nothing to do: anything else is told."""
    said = msgspec.json.decode(orchestrate("run", job, "--json", env=env))
    if {output["status"] for output in said["outputs"]} != {"current"} or len(said["outputs"]) != ADAPTERS + 1:
        raise Failed(f"a second run did something: {said['steps']}")


def pipeline(world: World, job: Path, outputs: list[Path], env: dict[str, str]) -> str:
    """The program of DVC, out of an environment of its own, and the finished pipeline written down for it."""
    home = world.scratch / "dvc"
    own = {**env, **dict(indexes.uv_env(settings.load(os.environ).index, None))}
    run([indexes.uv(), "venv", "--quiet", "--no-project", "--python", sys.executable, str(home)], own)
    run([indexes.uv(), "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python_in(home)), DVC], own)
    program = str(python_in(home).with_name("dvc" + python_in(home).suffix))
    stages = {}
    for output, command in zip(outputs, commands(job, outputs, env), strict=True):
        inputs = ["data/tiny-llama", *(["data/lora-a"] if "lora" in output.name else [])]
        place = output.relative_to(job.parent).as_posix()
        stages[output.stem.replace(".", "-")] = {"cmd": command, "deps": inputs, "outs": [{place: {"cache": False}}]}
    (job.parent / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    run([program, "init", "--no-scm", "--quiet"], env, job.parent)
    run([program, "config", "core.analytics", "false"], env, job.parent)
    run([program, "config", "core.check_update", "false"], env, job.parent)
    run([program, "commit", "--force", "--quiet"], env, job.parent)
    said = run([program, "repro"], env, job.parent)
    if said.count("didn't change, skipping") != len(outputs):
        raise Failed(f"dvc did something:\n{said[-500:]}")
    return program


def commands(job: Path, outputs: list[Path], env: dict[str, str]) -> list[str]:
    """What makes each output, as `plan` shows it."""
    asked = worlds.commands(job, env, "dist")
    return [shlex.join(next(words for words in asked if str(output) in words)) for output in outputs]
