"""An adapter merged into a model of 2 GB: time and memory against PEFT, and time against a copy of the files."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.util.store import Store
from tests.bench import overhead
from tests.bench import world as worlds
from tests.bench.clock import orchestrate
from tests.bench.clock import settled
from tests.bench.table import Row
from tests.bench.table import compared
from tests.support import scratch
from tests.support.scratch import Failed
from tests.support.scratch import World

RANK, ALPHA = 16, 32
MEGABYTE = 1_000_000
# As PEFT's own guide has it; bfloat16 is what the files hold.
THEIRS = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, dest = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(dest)
"""
COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
HOW = (
    "all after a sync, files in the page cache, with fsync; anonymous memory of all processes, seen every 20 ms (no mapped files)"
)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a command took until its files were on the disk, and megabytes that it and its children had at most."""

    seconds: float
    peak: float


def rows(world: World) -> Iterator[Row]:
    """LoRA against PEFT and against a copy, then DoRA against PEFT."""
    folder = world.folder("merge")
    base = folder / "base"
    size = overhead.write_model(scratch.data(world.scratch) / "tiny-llama", base)
    ours, theirs = pythons(world, folder, base)
    env = world.env(HF_HUB_OFFLINE="1", PYTHONPYCACHEPREFIX=str(world.scratch / "bytecode"))
    dest = folder / "merged"
    # Of DoRA only the figures count: its norms are two more passes over every weight.
    # PEFT takes a minute for it, so once is enough.
    for kind, turns, time_goal, memory_goal, copy_goal in (("LoRA", 3, 0.4, 0.15, 1.5), ("DoRA", 1, 1.0, 1.0, 3.0)):
        adapter = folder / kind
        write_adapter(adapter, base, kind == "DoRA")
        (folder / "asked.json").write_text(json.dumps(plan(base, adapter) | {"dest": str(dest)}), encoding="utf-8")
        mine = [str(ours), str(inside.path("merge_weights")), str(folder / "asked.json"), str(folder / "answer.json")]
        other = [str(theirs), "-c", THEIRS, str(base), str(adapter), str(dest)]
        copy = [str(ours), "-c", COPY, str(base), str(dest)]
        costs = [tuple(cost(argv, env, dest) for argv in (mine, other, copy)) for _ in range(turns)]
        what = f"merge: {kind} of rank {RANK} into {size / 1e9:.1f} GB"
        pairs = [(one.seconds, two.seconds) for one, two, _ in costs]
        yield compared(f"{what} against PEFT's load, merge and save", pairs, unit="s", goal=time_goal, note=HOW)
        peaks = [(one.peak, two.peak) for one, two, _ in costs]
        yield compared(f"{what}, memory against PEFT's", peaks, unit="MB", goal=memory_goal, note=HOW)
        pairs = [(one.seconds, three.seconds) for one, _, three in costs]
        yield compared(f"{what} against a copy of the files", pairs, unit="s", goal=copy_goal, note=HOW)
    shutil.rmtree(folder)


def pythons(world: World, folder: Path, base: Path) -> tuple[Path, Path]:
    """The scripts' interpreter, and the one that has PEFT; both as a job has them."""
    file = worlds.write_job(folder, {"source": str(base), "verify": "logits"})
    file.write_text(file.read_text(encoding="utf-8").replace("backend: none", "backend: source"), encoding="utf-8")
    orchestrate("lock", file, env=world.env())
    config = settings.load(world.env())
    context = Context(job=loader.load(file), file=file, settings=config, store=Store(config.cache))
    lock = lock_file.read(lock_file.path_for(file))
    if not (lock and lock.environment and lock.reference):
        raise Failed("the lock lacks an environment")
    for pin in (lock.environment, lock.reference):
        setup.build_environment(context, pin, reference.TITLE, folder / "environment.log", lambda text: None)
    pinned = PinnedJob(context, lock)
    return pinned.python, pinned.python_of(lock.reference)


def cost(argv: list[str], env: Mapping[str, str], dest: Path) -> Cost:
    """Run a command that fills a folder, and wait until it is on the disk."""
    shutil.rmtree(dest, ignore_errors=True)
    settled()
    peak = 0
    with (dest.parent / "command.log").open("w+b") as log:
        began = time.perf_counter()
        with subprocess.Popen(argv, env=dict(env), stdout=log, stderr=log) as process:
            while process.poll() is None:
                peak = max(peak, memory(process.pid))
                time.sleep(0.02)
        for path in dest.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            raise Failed(f"`{' '.join(argv)[:200]}` ended with {process.returncode}:\n{log.read().decode()[-2000:]}")
    return Cost(seconds=seconds, peak=peak / MEGABYTE)


def memory(pid: int) -> int:
    """Bytes that a process and its children have for themselves now; pages of files, which Linux can drop, are left out."""
    total = 0
    try:
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            figures = process.memory_info()
            total += figures.rss - getattr(figures, "shared", 0)
    except psutil.Error:
        pass
    return total


def header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, as the records of a plan name them."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return {
        name: {
            "file": str(path),
            "offset": 8 + length + entry["data_offsets"][0],
            "dtype": entry["dtype"],
            "shape": entry["shape"],
        }
        for name, entry in entries.items()
    }


def plan(base: Path, adapter: Path) -> dict[str, Any]:
    """The plan of this merge."""
    tensors, factors = [], header(adapter / "adapter_model.safetensors")
    for name, stored in header(base / "model.safetensors").items():
        tensor = {"name": name, "dtype": stored["dtype"], "shape": stored["shape"], "base": stored}
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in factors:
            update = {"kind": "lora", "scale": ALPHA / RANK}
            update |= {"a": factors[f"{module}.lora_A.weight"], "b": factors[f"{module}.lora_B.weight"]}
            if f"{module}.lora_magnitude_vector" in factors:
                update |= {"kind": "dora", "magnitude": factors[f"{module}.lora_magnitude_vector"]}
            tensor["updates"] = [update]
        tensors.append(tensor)
    return {"files": [{"path": "model.safetensors", "metadata": {"format": "pt"}, "tensors": tensors}]}


def write_adapter(folder: Path, base: Path, dora: bool) -> None:
    """An adapter for all linear modules of a model but its head, as PEFT saves it, the same numbers each time."""
    folder.mkdir()
    shapes: dict[str, list[int]] = {}
    for name, stored in header(base / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            module, (out, into) = f"base_model.model.{name.removesuffix('.weight')}", stored["shape"]
            shapes |= {f"{module}.lora_A.weight": [RANK, into], f"{module}.lora_B.weight": [out, RANK]}
            shapes |= {f"{module}.lora_magnitude_vector": [out]} if dora else {}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(1)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            halves = overhead.numbers(rng, tuple(shape))
            content = bytearray(2 * len(halves))
            content[2::4], content[3::4] = halves[0::2], halves[1::2]  # bfloat16 is the upper half of float32
            file.write(content)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "use_dora": dora}
    config |= {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", "bias": "none", "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
