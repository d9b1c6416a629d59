"""Adapters that are merged into their base: what comes out is a model, and every way to it and back works."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from llamacpp_orchestrator.models.safetensors import safetensors_header
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.util.hashing import file_sha256
from tests.support import ROOT
from tests.support import makers
from tests.support.answer import Answer
from tests.support.folders import remains
from tests.support.folders import sums
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
QUICK = {"binaries": {"backend": "none"}}


def tensor(path: Path, name: str) -> Any:
    header = safetensors_header(path)
    begin, end = header[name]["data_offsets"]
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little") + begin)
        raw = file.read(end - begin)
    wide = {"F32": "<f4", "F16": "<f2"}.get(header[name]["dtype"])
    bits = numpy.frombuffer(raw, wide) if wide else (numpy.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return bits.reshape(header[name]["shape"]).astype("f8")


@pytest.fixture
def cache(orchestrate: Orchestrate) -> Path:
    return Path(orchestrate("cache", "dir").out.strip())


def test_two_adapters_become_one_model(orchestrate: Orchestrate, job: Job, data: Path, world: Path, cache: Path) -> None:
    adapters = [str(data / "lora-a"), {"source": str(data / "lora-b"), "weight": 0.5}]
    model = {
        "source": str(data / "tiny-llama"),
        "name": "both",
        "outtype": ["f32", "f16"],
        "merge": adapters,
        "keep_merged": True,
    }
    file = job(model, **QUICK)
    plan = orchestrate("plan", file)
    assert "merge both: lora-a, lora-b x 0.5 into tiny-llama" in plan.out and "the merged both" in plan.out
    answer = orchestrate("run", file)
    assert answer.code == 0, answer.err
    kept = world / "dist" / "both" / "model.safetensors"
    assert {path.name for path in (world / "dist").iterdir() if "receipt" not in path.name} == {
        "both",
        "both-f32.gguf",
        "both-f16.gguf",
    }
    config = json.loads((data / "lora-a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert json.loads((kept.parent / "config.json").read_text()) == json.loads((data / "tiny-llama" / "config.json").read_text())
    module = "model.layers.0.self_attn.q_proj"
    base = tensor(data / "tiny-llama" / "model.safetensors", f"{module}.weight")
    change = tensor(kept, f"{module}.weight") - base
    assert config["r"] and numpy.abs(change).max() > 0
    receipt = pipeline_receipt.read(world / "dist" / "both-f32.gguf")
    assert receipt and {item.name.partition("/")[0] for item in receipt.inputs} == {"tiny-llama", "lora-a", "lora-b"}
    # What is merged has gone with the end of what it was made for; the rest asks for nothing.
    assert not list((cache / "merged").glob("*/both"))
    before = sums(world / "dist")
    again = orchestrate("run", file)
    assert again.code == 0 and "merge" not in again.err and sums(world / "dist") == before
    assert orchestrate("verify", "dist", "--level", "content").code == 0 and orchestrate("verify", "dist", "--deep").code == 0
    for name in ("both-f16.gguf", "both/model.safetensors"):
        answer = orchestrate("reproduce", world / "dist" / name)
        assert answer.code == 0 and "identical" in answer.out, answer.err
    with kept.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"\x7f")
    assert orchestrate("verify", "dist").code == 1
    answer = orchestrate("run", file)
    assert answer.code == 2 and "was changed after orchestrate made it" in answer.err


def test_what_is_merged_is_the_sum(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    base = str(data / "tiny-llama")
    ways = {
        "a": [{"source": str(data / "lora-a")}],
        "twice": [{"source": str(data / "lora-a"), "weight": 2.0}],
        "none": [{"source": str(data / "lora-a")}, {"source": str(data / "lora-a"), "name": "back", "weight": -1.0}],
    }
    models = [
        {"source": base, "name": name, "outtype": "f32", "merge": adapters, "keep_merged": True}
        for name, adapters in ways.items()
    ]
    answer = orchestrate("run", job(*models, **QUICK))
    assert answer.code == 0, answer.err
    files = {name: world / "dist" / name / "model.safetensors" for name in ways}
    assert files["none"].read_bytes() == (data / "tiny-llama" / "model.safetensors").read_bytes()
    header = safetensors_header(files["a"])
    reached = 0
    for name in (name for name in header if name != "__metadata__"):
        start = tensor(data / "tiny-llama" / "model.safetensors", name)
        once, twice = tensor(files["a"], name) - start, tensor(files["twice"], name) - start
        step = numpy.maximum(numpy.abs(start), numpy.abs(twice)) / 128 + 1e-30
        assert (numpy.abs(2 * once - twice) <= 2 * step).all(), name
        reached += bool(once.any())
    assert reached


def test_adapters_that_are_called_alike(
    orchestrate: Orchestrate, job: Job, copy: Callable[..., Path], data: Path, world: Path
) -> None:
    copy("lora-a", "one/checkpoint")
    copy("lora-b", "two/checkpoint")
    merge = ["./one/checkpoint", "./two/checkpoint"]
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16", "merge": merge}, **QUICK))
    assert answer.code == 0, answer.err
    receipt = pipeline_receipt.read(world / "dist" / "tiny-llama-checkpoint-checkpoint-f16.gguf")
    assert receipt
    weights = [item for item in receipt.inputs if item.name == "checkpoint/adapter_model.safetensors"]
    sums_ = [file_sha256(world / name / "checkpoint" / "adapter_model.safetensors") for name in ("one", "two")]
    assert [item.sha256 for item in weights] == [item.digest for item in weights] == sums_


def test_outputs_of_a_merge_are_those_of_the_kept_model(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    model = {
        "source": str(data / "tiny-llama"),
        "name": "m",
        "outtype": "f32",
        "merge": str(data / "lora-b"),
        "keep_merged": True,
    }
    assert orchestrate("run", job(model, **QUICK)).code == 0
    first = (world / "dist" / "m-f32.gguf").read_bytes()
    answer = orchestrate("run", job({"source": "./dist/m", "outtype": "f32"}, name="second.yaml", output="again", **QUICK))
    assert answer.code == 0, answer.err
    assert (world / "again" / "m-f32.gguf").read_bytes() == first


def test_of_the_hub_by_the_command_line_and_offline(hub: Hub, orchestrate: Orchestrate, data: Path, world: Path) -> None:
    hub.files = {path.name: path.read_bytes() for path in (data / "tiny-llama").iterdir()}
    hub.files["README.md"] = b"Of this test alone, so that no other has shown its files in the shared cache."
    hub.others["org/adapter"] = {path.name: path.read_bytes() for path in (data / "lora-a").iterdir()}
    words = ("convert", "org/m", "--merge", "org/adapter@main", "--outtype", "f16", "--override", "torch==2.13.0")
    answer = orchestrate(*words, "--write-job", "merged.yaml")
    assert answer.code == 0, answer.err
    made = sums(world / "dist")
    assert [Path(name).name for name in made if "receipt" not in name] == ["m-adapter-f16.gguf"]
    order = [line.split(" (")[0].split(None, 1)[1] for line in answer.err.splitlines() if line.startswith("done")]
    assert order.index("fetch adapter") < order.index("fetch m") < order.index("merge m-adapter")
    shutil.rmtree(world / "dist")
    assert orchestrate("run", "merged.yaml", "--offline", "--locked").code == 0 and sums(world / "dist") == made


def test_an_adapter_of_another_base_is_told_before_the_weights_come(
    hub: Hub, orchestrate: Orchestrate, job: Job, data: Path
) -> None:
    hub.files = {path.name: path.read_bytes() for path in (data / "tiny-llama").iterdir()}
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps(config | {"hidden_size": 2 * config["hidden_size"]}).encode()
    answer = orchestrate("run", job({"source": "org/m", "merge": str(data / "lora-a"), "outtype": "f16"}, **QUICK))
    assert answer.code == 1 and "the adapter lora-a does not fit org/m: k_proj of layer 0 has 64" in answer.err, answer.err
    assert not [path for path in hub.seen if path.endswith("model.safetensors") and path.startswith("GET")]


PICKLED = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
base, count = Path(sys.argv[1]), int(sys.argv[2])
tensors = list(load_file(base / "model.safetensors").items())
(base / "model.safetensors").unlink()
names = [f"pytorch_model-{n + 1:05}-of-{count:05}.bin" for n in range(count)] if count > 1 else ["pytorch_model.bin"]
for n, name in enumerate(names):
    torch.save(dict(tensors[n::count]), base / name)
if count > 1:
    import json
    places = {key: names[n] for n in range(count) for key, _ in tensors[n::count]}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_base_of_pickles_is_merged_where_it_is_trusted(
    orchestrate: Orchestrate, job: Job, copy: Callable[..., Path], python: Path, data: Path, world: Path, count: int
) -> None:
    process.capture(Command((str(python), "-c", PICKLED, str(copy("tiny-llama", "base")), str(count)), env=clean_env()))
    merge = {"merge": str(data / "lora-a"), "outtype": "f32"}
    model = {"source": "./base", "name": "m", "keep_merged": True} | merge
    answer = orchestrate("run", job(model, **QUICK))
    assert answer.code == 1 and "only as pickles" in answer.err and "trust_remote_code: true" in answer.err, answer.err
    safe = {"source": str(data / "tiny-llama"), "name": "safe"} | merge
    assert orchestrate("run", job(model | {"trust_remote_code": True}, safe | {"keep_merged": True}, **QUICK)).code == 0
    kept = sorted(
        path.name for path in (world / "dist" / "m").iterdir() if "token" not in path.name and "receipt" not in path.name
    )
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert kept == ["config.json", *(["model.safetensors"] if count == 1 else [*shards, "model.safetensors.index.json"])]
    tensors: dict[str, Any] = {}
    for path in (world / "dist" / "m").glob("*.safetensors"):
        tensors |= makers.read(path)
    assert tensors == makers.read(world / "dist" / "safe" / "model.safetensors")


def test_an_adapter_with_no_number_is_told_by_its_tensor(
    orchestrate: Orchestrate, job: Job, copy: Callable[..., Path], data: Path, world: Path, cache: Path
) -> None:
    weights = copy("lora-a", "adapter") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + struct.pack("<f", float("nan")))
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16", "merge": "./adapter"}, **QUICK))
    assert answer.code == 1 and "error: nothing can be merged into tiny-llama: base_model.model.model.layers." in answer.err
    assert "holds infinite numbers or NaN" in answer.err and "hint: is that file damaged" in answer.err, answer.err
    assert not list((cache / "merged").glob("*/tiny-llama-adapter")) and not sums(world / "dist")


def test_a_killed_merge_heals(orchestrate: Orchestrate, job: Job, data: Path, world: Path, cache: Path) -> None:
    model = {"source": str(data / "tiny-llama"), "name": "killed", "outtype": "f16", "merge": str(data / "lora-a")}
    file = job(model, **QUICK)
    assert orchestrate("setup", file).code == 0
    command = (sys.executable, "-m", "llamacpp_orchestrator", "run", str(file), "--no-progress")
    shapes = ("*/killed", "*/killed/config.json", "*/killed/model.safetensors")
    for shape, wait in ((shapes[0], 0.0), (shapes[1], 0.0), (shapes[2], 0.0), (shapes[2], 0.1), (shapes[0], 0.4)):
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
        late = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < late and not list((cache / "merged").glob(shape)):
            time.sleep(0.002)
        time.sleep(wait)
        child.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
        assert child.wait(60) != 0, "it was to be killed before its end"
    answer = orchestrate("run", file)
    assert answer.code == 0, answer.err
    assert remains(world / "dist") == [] and not list((cache / "merged").glob("*/killed"))
    assert orchestrate("reproduce", world / "dist" / "killed-f16.gguf").code == 0


@pytest.mark.slow
def test_a_kind_that_only_peft_can_merge(
    orchestrate: Orchestrate, job: Job, copy: Callable[..., Path], data: Path, world: Path
) -> None:
    config = json.loads((copy("lora-a", "adapter") / "adapter_config.json").read_text(encoding="utf-8"))
    config = {key: config[key] for key in ("base_model_name_or_path", "task_type")}
    config |= {"peft_type": "LOHA", "r": 2, "alpha": 4, "target_modules": ["q_proj"], "rank_dropout": 0.0, "module_dropout": 0.0}
    (world / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    out, inner = safetensors_header(data / "tiny-llama" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]["shape"]
    sides = {"hada_w1_a": (out, 2), "hada_w1_b": (2, inner), "hada_w2_a": (out, 2), "hada_w2_b": (2, inner)}
    random = numpy.random.default_rng(0)
    factors = {name: random.normal(0, 0.5, shape).astype("f4") for name, shape in sides.items()}
    tensors = {f"{module}.{name}": ("F32", list(array.shape), array.tobytes()) for name, array in factors.items()}
    makers.write(world / "adapter" / "adapter_model.safetensors", tensors)
    model = {"source": str(data / "tiny-llama"), "name": "m", "outtype": "f32", "merge": "./adapter", "keep_merged": True}
    file = job(model, **QUICK)
    answer = orchestrate("run", file, "--memory", "300M")
    assert answer.code == 1 and "LOHA: only PEFT itself can merge it, which takes" in answer.err, answer.err
    answer = orchestrate("run", file)
    assert answer.code == 0 and "is of the type LOHA: merged by PEFT itself" in answer.err, answer.err
    update = (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"]) * (4 / 2)
    name = "model.layers.0.self_attn.q_proj.weight"
    start, end = (
        tensor(path, name) for path in (data / "tiny-llama" / "model.safetensors", world / "dist" / "m" / "model.safetensors")
    )
    assert numpy.abs(update).max() > 0.1
    assert (numpy.abs(end - start - update) <= numpy.maximum(numpy.abs(end), 1e-3) / 128).all()


def test_what_an_update_is_too_small_for_is_noted(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    small = {"source": str(data / "lora-a"), "weight": 0.0001}
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "name": "m", "outtype": "f16", "merge": small}, **QUICK))
    assert answer.code == 0 and "% of the weights that the adapters reach have not changed" in answer.err, answer.err
    receipt = pipeline_receipt.read(world / "dist" / "m-f16.gguf")
    assert receipt and any("have not changed" in note for note in receipt.notes)
    assert msgspec.json.encode(receipt).count(str(world).encode()) == 0
