"""The estimate: by tables, against what upstream's script really takes, and in whole jobs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.convert import memory_model
from llamacpp_orchestrator.convert.memory_model import Weight
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.models import hub as models_hub
from llamacpp_orchestrator.models.safetensors import safetensors_header
from llamacpp_orchestrator.models.selection import Snapshot
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import graph
from llamacpp_orchestrator.pipeline import memory as pipeline_memory
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system.command import script_env
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from tests.support import makers
from tests.support.answer import Answer
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Copy = Callable[..., Path]
MILLION = 1_000_000
MLP, QUERY, EXPERTS = (
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.experts.up",
)


@pytest.mark.parametrize(
    ("name", "dtype", "outtype", "each"),
    [
        (MLP, "BF16", "f32", 4),
        (MLP, "BF16", "f16", 6),
        (MLP, "BF16", "bf16", 8),
        (MLP, "BF16", "auto", 8),
        (MLP, "BF16", "q8_0", 6.125),
        (MLP, "F16", "f32", 4),
        (MLP, "F16", "f16", 0),
        (MLP, "F16", "bf16", 4),
        (MLP, "F32", "f32", 0),
        (MLP, "F32", "f16", 2),
        (MLP, "F32", "bf16", 4),
        (MLP, "F32", "q8_0", 2.125),
        (MLP, "F8_E4M3", "bf16", 12),
        (MLP, "I32", "f16", 12),
        (QUERY, "BF16", "f32", 8),
        (QUERY, "F32", "bf16", 8),
        (EXPERTS, "BF16", "bf16", 8),
        (EXPERTS, "F32", "f32", 4),
        (EXPERTS, "F16", "f16", 2),
    ],
)
def test_bytes_for_each_number(name: str, dtype: str, outtype: str, each: float) -> None:
    found = [Weight(name, dtype, 1000 * MILLION), Weight("model.norm.weight", dtype, 1000)]
    need = memory_model.conversion(found, outtype)
    assert need == pytest.approx(memory_model.INTERPRETER + memory_model.MARGIN * each * 1000 * MILLION, abs=20_000)


@pytest.mark.parametrize(
    ("args", "tokenizer", "need"),
    [
        ((), 0, 8.0),
        (("--split-max-size", "4G"), 0, 8.0),
        (("--use-temp-file",), 0, 8.0),
        (("--no-lazy",), 0, 8.0 + 2 * 3),
        (("--fuse-gate-up-exps",), 0, 16.0),
        ((), 10 * MILLION, 8.0 + 0.15 / 1.1),
    ],
)
def test_what_the_arguments_and_the_tokenizer_add(args: tuple[str, ...], tokenizer: int, need: float) -> None:
    found = [Weight(EXPERTS, "BF16", 1000 * MILLION), Weight(MLP, "BF16", 1000 * MILLION), Weight("e", "BF16", 1000 * MILLION)]
    said = memory_model.conversion(found, "bf16", args, tokenizer)
    assert said == pytest.approx(memory_model.INTERPRETER + memory_model.MARGIN * need * 1000 * MILLION, rel=1e-6)


def test_tensors_of_headers_with_experts_as_one() -> None:
    experts = {
        f"layers.{layer}.experts.{number}.w1.weight": {"dtype": "BF16", "shape": [4, 8]} for layer in (0, 1) for number in (0, 1)
    }
    packed = {"a.qweight": {"dtype": "I32", "shape": [4, 4]}, "__metadata__": {"format": "pt"}}
    found = {each.name: each for each in memory_model.weights([experts, packed, {"scale": {"dtype": "F32", "shape": []}}])}
    assert {name: each.elements for name, each in found.items()} == {
        "layers.0.experts.w1.weight": 64,
        "layers.1.experts.w1.weight": 64,
        "a.qweight": 128,
        "scale": 1,
    }
    assert found["a.qweight"].dtype == "I32"


@pytest.mark.parametrize(
    ("origin", "mapped", "each"), [("bf16", True, 6), ("f16", False, 8), ("f32", True, 2), ("f32", False, 6)]
)
def test_what_quantizing_takes(origin: str, mapped: bool, each: int) -> None:
    need = memory_model.quantizing([Weight("a", "", 100 * MILLION), Weight("b", "", 5)], origin, mapped)
    assert need == int(memory_model.PROGRAM + memory_model.MARGIN * each * 100 * MILLION)
    assert memory_model.quantizing([], origin) == memory_model.PROGRAM


@pytest.mark.parametrize(("adapters", "pickle", "need"), [(0, 0, 0.15), (10**9, 0, 2.35), (10**8, 10**10, 11.15)])
def test_what_merging_takes(adapters: int, pickle: int, need: float) -> None:
    assert memory_model.merging(adapters, pickle) == pytest.approx(need * 1e9)


def test_what_computing_takes() -> None:
    assert memory_model.loading(1000 * MILLION) == memory_model.PROGRAM + 1100 * MILLION
    assert memory_model.comparing([Weight("a", "", 1000 * MILLION)], 2000 * MILLION) == memory_model.REFERENCE + 4400 * MILLION
    assert memory_model.comparing([], 2000 * MILLION) == memory_model.loading(2000 * MILLION)
    assert memory_model.adapter(7 * MILLION, [], "f16") == memory_model.INTERPRETER + 7 * MILLION


def peak(argv: tuple[str, ...], env: tuple[tuple[str, str], ...]) -> int:
    """The most anonymous memory that a program had, in bytes."""
    most = 0
    with subprocess.Popen(argv, env=dict(env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None:
            said = Path(f"/proc/{child.pid}/status").read_text()
            most = max([most, *(int(line.split()[1]) * 1024 for line in said.splitlines() if line.startswith("RssAnon"))])
            time.sleep(0.002)
    assert child.returncode == 0
    return most


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process has")
@pytest.mark.parametrize(("outtype", "stacked"), [("bf16", False), ("f16", True)])
def test_upstream_takes_what_is_estimated(
    outtype: str, stacked: bool, python: Path, tree: Callable[[str], Path], copy: Copy, world: Path, shared_cache: Path
) -> None:
    model, numbers = copy("tiny-llama"), 1 << 25
    names = [MLP] if not stacked else [f"model.layers.0.block_sparse_moe.experts.{number}.w1.weight" for number in range(4)]
    large = {name: ("BF16", [numbers // len(names) // 4096, 4096], bytes(2 * numbers // len(names))) for name in names}
    makers.tensors(model / "model.safetensors", lambda found: found | large)
    if stacked:
        # The converter waits for all matrices of all experts of a block.
        others = {name.replace("w1", other): makers.zeros(8, 32) for name in names for other in ("w2", "w3")}
        makers.tensors(model / "model.safetensors", lambda found: {**found, **others})
        makers.edit(model / "config.json", architectures=["MixtralForCausalLM"], num_local_experts=4, num_experts_per_tok=2)
    root = tree("b11434")
    command = commands.model_command(str(python), root, model, world / "out.gguf", outtype, "m", ())
    had = peak(command.argv, script_env(shared_cache / "home"))
    header = safetensors_header(model / "model.safetensors")
    need = memory_model.conversion(memory_model.weights([header]), outtype)
    assert had <= need <= 1.6 * had, f"had {had}, estimated {need}"


def job_at_work(file: Path, orchestrate: Orchestrate) -> PinnedJob:
    assert orchestrate("lock", file).code == 0
    lock = lock_file.read(lock_file.path_for(file))
    assert lock
    return PinnedJob(cli_options.load(file, {}), lock)


def test_estimates_of_a_job_before_and_after_it_has_run(orchestrate: Orchestrate, job: Job, data: Path, copy: Copy) -> None:
    model, lora = copy("tiny-llama"), copy("lora-a", "lora")
    models = {"source": str(model), "outtype": "f16", "quantize": ["Q8_0"], "mmproj": "f16", "loras": [str(lora)]}
    pinned = job_at_work(job(models, binaries={"backend": "source"}), orchestrate)
    needs = {build.output.kind: pipeline_memory.of_build(pinned, build) for build in pipeline_build.builds(pinned)}
    numbers = 32000 * 64
    assert needs["model"] == needs["mmproj"] == int(memory_model.INTERPRETER + memory_model.MARGIN * 6 * numbers)
    assert needs["quantized"] == int(memory_model.PROGRAM + memory_model.MARGIN * 6 * numbers)
    assert memory_model.INTERPRETER < needs["adapter"] < needs["model"]
    # Of what has gone, or is no header, nothing is known; its own step tells that.
    (lora / "adapter_model.safetensors").write_bytes(b"no header at all")
    (model / "model.safetensors").unlink()
    assert {pipeline_memory.of_build(pinned, build) for build in pipeline_build.builds(pinned)} == {0}


def test_the_vision_tower_alone_decides_for_a_projector(orchestrate: Orchestrate, job: Job, copy: Copy) -> None:
    model = copy("tiny-llama")
    makers.tensors(
        model / "model.safetensors", lambda found: found | {"vision_tower.patch.weight": makers.zeros(1 << 10, 1 << 10)}
    )
    pinned = job_at_work(job({"source": str(model), "outtype": "bf16", "mmproj": "bf16"}), orchestrate)
    needs = {build.output.kind: pipeline_memory.of_build(pinned, build) for build in pipeline_build.builds(pinned)}
    assert needs["mmproj"] == int(memory_model.INTERPRETER + memory_model.MARGIN * 4 * (1 << 20)) < needs["model"]


def test_pickles_are_not_looked_into(orchestrate: Orchestrate, job: Job, copy: Copy) -> None:
    model = copy("tiny-llama")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    size = (model / "pytorch_model.bin").stat().st_size
    pinned = job_at_work(job({"source": str(model), "outtype": "f32", "trust_remote_code": True}), orchestrate)
    (build,) = pipeline_build.builds(pinned)
    assert pipeline_memory.of_build(pinned, build) == int(memory_model.INTERPRETER + memory_model.MARGIN * 4 * (size // 2))


def test_what_is_in_the_hub_s_cache_is_known_before_it_has_a_view(orchestrate: Orchestrate, job: Job, hub: Hub) -> None:
    pinned = job_at_work(job({"source": "org/unseen", "outtype": "bf16"}), orchestrate)
    (build,) = pipeline_build.builds(pinned)
    assert pipeline_memory.of_build(pinned, build) == 0
    (pin,) = pinned.lock.models
    for file in pin.files:
        cached = models_hub.cached(Snapshot(source="org/unseen", commit=pin.commit), file)
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(hub.files[file.path])
    assert pipeline_memory.of_build(pinned, build) == int(memory_model.INTERPRETER + memory_model.MARGIN * 8 * 32000 * 64)


def test_a_file_that_is_to_be_quantized_tells_by_itself(
    built: dict[str, Any], orchestrate: Orchestrate, job: Job, copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_MEMORY", "10M")
    model = copy("tiny-llama")
    file = job({"source": str(model), "outtype": "f32", "quantize": ["Q8_0"]}, binaries=built)
    answer = orchestrate("run", file)
    assert answer.code == 0, answer.err
    for step in ("convert model-f32.gguf", "quantize model-Q8_0.gguf", "verify model-Q8_0.gguf"):
        assert f"{step} takes about" in answer.err
    pinned = job_at_work(file, orchestrate)
    (model / "model.safetensors").unlink()
    base, quantized = pipeline_build.builds(pinned)
    assert pipeline_memory.of_build(pinned, base) == 0
    assert pipeline_memory.of_build(pinned, quantized) == int(memory_model.PROGRAM + memory_model.MARGIN * 2 * 32000 * 64)
    size = base.output.path.stat().st_size
    assert (
        pipeline_memory.of_matrix(quantized)
        == pipeline_memory.of_check(pinned, quantized, base.output)
        == memory_model.loading(size)
    )
    deep = msgspec.structs.replace(quantized.output, model=msgspec.structs.replace(quantized.output.model, verify="logits"))
    asked = msgspec.structs.replace(quantized, output=deep)
    assert pipeline_memory.of_check(pinned, asked, None) == memory_model.comparing([], 0)
    base.output.path.write_bytes(b"GGUF, but cut")
    assert pipeline_memory.of_build(pinned, quantized) == 0


def test_a_bound_that_is_set_and_one_of_what_is_free(world: Path) -> None:
    here = Settings(cache=world, index=Index())
    assert limits.bound(msgspec.structs.replace(here, memory=5)) == 5
    assert 100 * MILLION < limits.bound(here) <= host.available() * 1.1


@pytest.mark.parametrize("code", [-9, 1])
def test_who_was_killed_is_told_what_was_estimated(code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def act(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
        raise CommandFailed("`convert` was killed", code=code, hint="the log")

    monkeypatch.setitem(graph.ACTIONS, "convert", act)
    monkeypatch.setattr(graph, "need", lambda run, step: 4_000 * MILLION)
    run = JobRun(pinned=None, logs=tmp_path, converter=None, locks=None, memory=8_000 * MILLION)  # type: ignore[arg-type]
    with pytest.raises(CommandFailed) as failed:
        graph.perform(run, Step(kind="convert", key="x"), {}, lambda text: None)
    assert failed.value.message == "`convert` was killed" and failed.value.code == code
    words = ("4.0 GB", "8.0 GB", "--memory", "--jobs 1")
    assert all(word in failed.value.hint for word in words) if code == -9 else failed.value.hint == "the log"


def test_a_job_in_too_little_memory_runs_one_by_one_and_says_so(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": ["f16", "f32"], "loras": [str(data / "lora-a")]})
    small = orchestrate("run", file, "--memory", "100M", "--jobs", "8")
    assert small.code == 0, small.err
    assert small.err.count("of memory, more than the 100.0 MB that may be used; it runs alone") == 3
    ample = orchestrate("run", file, "--memory", "64GiB", "--jobs", "8", "--force")
    assert ample.code == 0 and "runs alone" not in ample.err


def test_the_plan_and_the_doctor_speak_of_memory(
    orchestrate: Orchestrate, job: Job, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    monkeypatch.setenv("ORCHESTRATE_MEMORY", "7G")
    said = orchestrate("plan", file, "--json").json()
    (step,) = [step for step in said["steps"] if step["name"].startswith("convert")]
    assert (
        step["memory"] == int(memory_model.INTERPRETER + memory_model.MARGIN * 6 * 32000 * 64)
        and said["memory"] == 7_000 * MILLION
    )
    shown = orchestrate("plan", file, "--memory", "3G").out
    assert f"convert tiny-llama-f16.gguf: {step['memory'] / MILLION:.1f} MB of memory (estimate)\n" in shown
    assert "memory  at most 3.0 GB at a time\n" in shown
    lines = {line["name"]: line["said"] for line in orchestrate("doctor", "--json").json()}
    assert lines["memory bound"] == "a job may take 7.0 GB at a time (as set)"
    monkeypatch.delenv("ORCHESTRATE_MEMORY")
    lines = {line["name"]: line["said"] for line in orchestrate("doctor", "--json").json()}
    assert lines["memory bound"].endswith("(most of what is free)")


def test_a_bound_that_is_none_is_an_error(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    answer = orchestrate("run", job(str(data / "tiny-llama")), "--memory", "lots")
    assert answer.code == 2 and '--memory: expected a size, found "lots"' in answer.err and "8G" in answer.err
    assert answer.out == ""
