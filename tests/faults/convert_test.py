"""Faults of conversion and quantization, 73 to 85: models, adapters and types that cannot be, killed programs, full disks."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from tests.support import disks
from tests.support import makers
from tests.support.answer import Answer
from tests.support.folders import names
from tests.support.folders import stages_of
from tests.support.folders import sums
from tests.support.programs import ODD
from tests.support.stage.github import GitHub
from tests.support.stage.github import release
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Told = Callable[..., str]
Spoil = Callable[[Path], Any]
Fault = tuple[str, Spoil, int]

POLL_SECONDS, DEADLINE_SECONDS = 0.02, 60.0
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
LORA = "base_model.model.model.layers.0.self_attn.q_proj"
POSIX = pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")


@pytest.fixture
def ready(orchestrate: Orchestrate, job: Job, data: Path, world: Path, shared_cache: Path) -> Path:
    """The world, with a lock that has tree and environment, so that no test resolves them anew."""
    kept = shared_cache / "convert.lock.yaml"
    if not kept.exists():
        assert orchestrate("setup", job(str(data / "tiny-llama"), binaries={"backend": "none"})).code == 0
        shutil.copy(world / "job.lock.yaml", kept)
    shutil.copy(kept, world / "job.lock.yaml")
    return world


@contextlib.contextmanager
def once(there: Callable[[], Any], act: Callable[[Any], Any]) -> Iterator[list[Any]]:
    """Do something as soon as something is there, beside what runs meanwhile; what came of it is in the list."""
    over, done = threading.Event(), list[Any]()

    def watch() -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not over.is_set() and time.monotonic() < deadline:
            if found := there():
                done.append(act(found))
                return
            time.sleep(POLL_SECONDS)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield done
    finally:
        over.set()
        watcher.join()


def change(name: str, to: Callable[[makers.Tensor], makers.Tensor | None]) -> Spoil:
    """Another tensor in the place of one, or none."""

    def spoil(folder: Path) -> None:
        def changed(found: dict[str, makers.Tensor]) -> dict[str, makers.Tensor]:
            made = {key: to(value) if key == name else value for key, value in found.items()}
            return {key: value for key, value in made.items() if value is not None}

        file = WEIGHTS if (folder / WEIGHTS).exists() else ADAPTER
        makers.tensors(folder / file, changed)

    return spoil


def number(value: float) -> Callable[[makers.Tensor], makers.Tensor]:
    """The same tensor in f32, all of one number."""
    return lambda tensor: ("F32", tensor[1], struct.pack("<f", value) * (len(tensor[2]) // (4 if tensor[0] == "F32" else 2)))


def only(**files: str) -> Spoil:
    """Other text in some files, by their stems."""
    return lambda folder: [(folder / f"{name}.json").write_text(text, encoding="utf-8") for name, text in files.items()]


def own_code(file: str, **more: Any) -> Spoil:
    """A model whose config of some kind names code that it brings along."""

    def spoil(folder: Path) -> None:
        if not (folder / file).exists():
            (folder / file).write_text("{}", encoding="utf-8")
        named = {"auto_map": makers.OWN_CODE}
        makers.edit(folder / file, **(dict.fromkeys(more, named) or named))
        makers.bring_code(folder, folder.parent / "MARK")

    return spoil


def half(folder: Path) -> None:
    """The first of two files, without the index that would tell."""
    change(UP, lambda tensor: None)(folder)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def pickle_and_code(folder: Path) -> None:
    pickled(folder)
    own_code("config.json")(folder)


# What is told before anything is converted: a fault, what does it, and the exit code.
EARLY: tuple[Fault, ...] = (
    ("73 an unknown architecture", lambda folder: makers.edit(folder / "config.json", architectures=["NoSuchForCausalLM"]), 1),
    ("75 no weights", lambda folder: (folder / WEIGHTS).unlink(), 1),
    ("75 weights without tensors", lambda folder: makers.tensors(folder / WEIGHTS, lambda found: {}), 1),
    ("75 an empty file of weights", lambda folder: (folder / WEIGHTS).write_bytes(b""), 1),
    ("76 cut weights", lambda folder: os.truncate(folder / WEIGHTS, 1_000_000), 1),
    ("76 weights that are too long", lambda folder: os.truncate(folder / WEIGHTS, 20_000_000), 1),
    ("78 half a model without an index", half, 1),
    ("79 code in config.json", own_code("config.json"), 1),
    ("79 code in a part of config.json", own_code("config.json", text_config=0), 1),
    ("79 code in tokenizer_config.json", own_code("tokenizer_config.json"), 1),
    ("79 code in processor_config.json", own_code("processor_config.json"), 1),
    ("79 code in preprocessor_config.json", own_code("preprocessor_config.json"), 1),
    ("79 code in video_preprocessor_config.json", own_code("video_preprocessor_config.json"), 1),
    ("79 code in generation_config.json", own_code("generation_config.json"), 1),
    ("80 a pickle alone", pickled, 1),
    ("80 a pickle and code", pickle_and_code, 1),
)
# What upstream converts without complaint, or stumbles over.
LATE: tuple[Fault, ...] = (
    ("74 no tokenizer", lambda folder: [(folder / f"tokenizer{end}").unlink() for end in (".model", "_config.json")], 1),
    ("77 NaN", change(UP, number(float("nan"))), 1),
    ("77 too large for f16", change(UP, number(1e10)), 1),
    ("78 a tensor is missing", change(UP, lambda tensor: None), 1),
    ("78 a tensor of another shape", change(UP, lambda tensor: (tensor[0], [64, 64], tensor[2][: 64 * 64 * 2])), 1),
)


def survive(faults: tuple[Fault, ...], model: Path, source: Path, run: Callable[[], Answer], told: Told, world: Path) -> None:
    """Run with one fault after the other, each of which is told and leaves nothing; without any the same command succeeds."""
    before = sums(source, "*")
    for fault, spoil, code in faults:
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(source, model)
        spoil(model)
        said = told(fault, run(), code)
        kept = [path for path in names(world / "dist") if not path.endswith(".stage")]
        assert not list((world / "dist").glob("*.gguf*")), fault
        assert not kept or "kept for a look" in said, (fault, kept)
        assert not (world / "MARK").exists(), fault
    shutil.rmtree(model)
    shutil.copytree(source, model)
    answer = run()
    assert answer.code == 0, answer.err
    assert [path.suffix for path in sorted((world / "dist").iterdir())] == [".gguf", ".json"]
    assert sums(source, "*") == before


@pytest.mark.parametrize("faults", [EARLY, LATE], ids=["73_75_76_78_79_80", "74_77_78"])
def test_73_74_75_76_77_78_79_80_models(
    faults: tuple[Fault, ...], orchestrate: Orchestrate, job: Job, ready: Path, data: Path, told: Told
) -> None:
    file = job({"source": "./model", "outtype": "f16"})
    (ready / "model").mkdir()
    survive(faults, ready / "model", data / "tiny-llama", lambda: orchestrate("run", file), told, ready)


def outside(folder: Path) -> None:
    """An adapter of a part for images alone, which no text model has."""
    made = {f"base_model.model.visual.blocks.0.attn.qkv.lora_{side}.weight": makers.zeros(8, 8) for side in "AB"}
    makers.tensors(folder / ADAPTER, lambda found: made)


ADAPTERS: tuple[Fault, ...] = (
    ("85 no tensors", lambda folder: makers.tensors(folder / ADAPTER, lambda found: {}), 1),
    ("85 no lora_alpha", lambda folder: makers.edit(folder / "adapter_config.json", lora_alpha=None), 1),
    ("85 lora_alpha is 0", lambda folder: makers.edit(folder / "adapter_config.json", lora_alpha=0), 1),
    ("85 lora_alpha is NaN", lambda folder: makers.edit(folder / "adapter_config.json", lora_alpha=float("nan")), 1),
    ("85 no adapter_config.json", lambda folder: (folder / "adapter_config.json").unlink(), 1),
    ("85 a pickle", lambda folder: (folder / ADAPTER).rename(folder / "adapter_model.bin"), 1),
    ("85 one matrix of a pair", change(f"{LORA}.lora_B.weight", lambda tensor: None), 1),
    ("85 nothing but a part for images", outside, 1),
    ("85 NaN", change(f"{LORA}.lora_B.weight", number(float("nan"))), 1),
)


def test_85_adapters(orchestrate: Orchestrate, job: Job, ready: Path, data: Path, told: Told) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "none", "loras": ["./adapter"]})
    (ready / "adapter").mkdir()
    survive(ADAPTERS, ready / "adapter", data / "lora-a", lambda: orchestrate("run", file), told, ready)


def test_85_no_base(orchestrate: Orchestrate, job: Job, ready: Path, data: Path, told: Told) -> None:
    for fault, source in (("85 no base", "./base"), ("85 an adapter as its own base", str(data / "lora-a"))):
        file = job({"source": source, "name": "base", "outtype": "none", "loras": [str(data / "lora-a")]})
        told(fault, orchestrate("run", file), 2 if source == "./base" else 1)
    assert names(ready / "dist") == []


def converting() -> list[int]:
    """The processes that convert: forks of an interpreter that is warm, or a script's own."""

    def words(pid: str) -> str:
        with contextlib.suppress(OSError):
            return Path("/proc", pid, "cmdline").read_text(encoding="utf-8").replace("\0", " ")
        return ""

    def parent(pid: str) -> str:
        with contextlib.suppress(OSError, IndexError):
            return Path("/proc", pid, "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        return ""

    warm = str(inside.path("fork_server"))
    ours = [path.name for path in Path("/proc").glob("[0-9]*") if warm in words(path.name)]
    return [int(pid) for pid in ours if warm in words(parent(pid)) and parent(parent(pid)) == str(os.getpid())]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_81_a_converter_that_is_killed(orchestrate: Orchestrate, job: Job, ready: Path, data: Path, told: Told) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f32"})
    with once(converting, lambda found: os.kill(found[0], signal.SIGKILL)) as killed:
        answer = orchestrate("run", file)
    assert killed
    told("81 a converter is killed", answer)
    assert names(ready / "dist") == []
    assert orchestrate("run", file).code == 0


@pytest.fixture
def released(
    ready: Path, linux: None, github: GitHub, monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> Callable[..., dict[str, str]]:
    """Let a release hold a stand-in for its programs; the tree is that of the lock still."""
    monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "pypi")
    shutil.copy(shared_cache / "convert.lock.yaml", ready / "job.lock.yaml")

    def make(script: str) -> dict[str, str]:
        github.archive = release(script.replace("{0}", str(ready)))
        return {"backend": "cpu"}

    return make


@POSIX
def test_81_84_quantizing(
    orchestrate: Orchestrate, job: Job, released: Callable[..., dict[str, str]], hub: Hub, ready: Path, told: Told
) -> None:
    binaries = released(ODD)

    def asked(*kinds: str) -> Path:
        return job({"source": "org/m", "name": "m", "outtype": "f16", "quantize": list(kinds)}, binaries=binaries)

    told("84 an outtype that the tag lacks", orchestrate("run", job({"source": "org/m", "outtype": "q4_k_m"})), 2)
    told("84 a type that the tool lacks", orchestrate("run", asked("Q4_K_M", "Q4_K_MM")), 2)
    told("84 a number that the tool lacks", orchestrate("run", asked("99")), 2)
    told("84 a type without its matrix", orchestrate("run", asked("IQ1_S")), 2)
    told("84 a number without its matrix", orchestrate("run", asked("24")), 2)
    assert names(ready / "dist") == [] and not [path for path in hub.seen if "safetensors" in path], "nothing was downloaded"
    file = asked("Q4_K_M", "mxfp4_moe")
    (ready / "kill").touch()
    told("81 a quantizer is killed", orchestrate("run", file, "--jobs", "1"))
    assert names(ready / "dist") == ["m-f16.gguf", "m-f16.gguf.receipt.json"]
    (ready / "kill").unlink()
    assert orchestrate("run", file).code == 0
    receipt = pipeline_receipt.read(ready / "dist" / "m-Q4_K_M.gguf")
    assert receipt and any("q4_k cannot hold, and is q5_0" in note for note in receipt.notes), "84: a fallback is recorded"


@contextlib.contextmanager
def filled(disk: Path, there: Callable[[], Any], wait: Path) -> Iterator[None]:
    """Fill a disk to its last two megabytes as soon as something is there, and let go what waits; empty it in the end."""
    ballast = disk / "ballast"

    def fill(found: Any) -> None:
        with ballast.open("wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(disk).free - 2_000_000)))
        wait.unlink(missing_ok=True)

    with once(there, fill) as done:
        yield
    assert done
    ballast.unlink()


@pytest.mark.skipif(not disks.possible(), reason="needs the rights to make a disk")
def test_82_a_disk_that_fills_up(
    orchestrate: Orchestrate, job: Job, released: Callable[..., dict[str, str]], ready: Path, data: Path, told: Told
) -> None:
    disk, wait = ready / "disk", ready / "wait"
    quantized = disk / "dist" / "tiny-llama-Q8_0.gguf"
    file = job(
        {"source": str(data / "tiny-llama"), "outtype": "f16", "quantize": ["Q8_0"]}, binaries=released(ODD), output="disk/dist"
    )
    with disks.mounted(disk, 80):
        assert orchestrate("run", file).code == 0
        before = sums(disk / "dist", "*")
        with filled(disk, lambda: list(disk.glob("dist/.*.stage")), wait):
            told("82 the disk is full while converting", orchestrate("run", file, "--force"))
        assert sums(disk / "dist", "*") == before
        wait.touch()
        with filled(disk, lambda: stages_of(quantized), wait):
            answer = orchestrate("run", file, "--force")
        answer.err = re.sub(r"cp: .*: (?=No space)", "cp: ", answer.err)  # it says more, in one way or another
        told("82 the disk is full while quantizing", answer)
        assert {name: digest for name, digest in before.items() if name.endswith(".gguf")} == sums(disk / "dist")
        assert not list(disk.glob("dist/.*"))
        assert orchestrate("run", file, "--force").code == 0
    with disks.mounted(ready / "small", 1):
        told("82 the disk is too small", orchestrate("run", job(str(data / "tiny-llama"), output="small")))
        assert names(ready / "small") == []
