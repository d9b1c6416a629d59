"""A run of a finished job: what it may load, and all that makes it look more closely."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.commands import up_to_date
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.util.hashing import file_sha256
from tests.support.answer import Answer

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
# What a no-op has no use for: servers, archives, child processes, and every room behind the receipts.
HEAVY = {
    "fsspec",
    "llamacpp_orchestrator.storage.remote",
    "subprocess", "filelock", "packaging.requirements", "urllib.request", "http.client", "ssl", "ctypes", "psutil", "pynvml",
    *(f"llamacpp_orchestrator.{name}" for name in ("commands.run", "pipeline.graph", "lock.resolve", "models.hub")),
    *(f"llamacpp_orchestrator.{name}" for name in ("verify.gguf", "system.process", "environment.venv")),
}  # fmt: skip


@pytest.fixture()
def done(orchestrate: Orchestrate, job: Job, data: Path, once: Callable[..., None], world: Path) -> Path:
    model = {"source": str(data / "tiny-llama"), "outtype": "f16", "loras": [{"source": str(data / "lora-a"), "name": "a"}]}

    def make() -> None:
        assert orchestrate("run", job(model)).code == 0

    once("done", make)
    return world / "job.yaml"


def finished(file: Path, **options: Any) -> list[str]:
    outputs = up_to_date.finished(cli_options.load(file, {}), Options(**options))
    return [build.name for build in outputs.builds] if outputs else []


def test_a_finished_job_loads_nothing_that_it_does_not_need(done: Path) -> None:
    code = "import sys; from llamacpp_orchestrator.__main__ import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    said = subprocess.run([sys.executable, "-c", code, "run", str(done)], capture_output=True, text=True, check=True)
    assert said.stdout.count("current") == 2 and not HEAVY & set(said.stderr.split())


def test_a_finished_job_says_what_it_said_before(done: Path, orchestrate: Orchestrate) -> None:
    quick = orchestrate("run", done, "--json").json()
    folder = done.parent / "dist"
    assert {step["name"]: step["status"] for step in quick["steps"]} == {
        f"convert {name}": "current" for name in ("tiny-llama-f16.gguf", "tiny-llama-a-lora-f16.gguf")
    }
    assert [output["sha256"] for output in quick["outputs"]] == [
        file_sha256(folder / name) for name in ("tiny-llama-f16.gguf", "tiny-llama-a-lora-f16.gguf")
    ]
    both = orchestrate("run", done, done, "--json").json()
    assert len(both["steps"]) == len(both["outputs"]) == 4 and both["status"] == "ok"
    assert orchestrate("run", done, "--quiet").err == ""


@pytest.mark.parametrize(
    "options",
    [{"force": True}, {"upgrade": "all"}, {"ollama_create": True}, {"read_lock": False}],
    ids=lambda options: next(iter(options)),
)
def test_who_asks_for_more_is_not_finished(done: Path, options: dict[str, Any]) -> None:
    assert finished(done) and finished(done, locked=True) and finished(done, keep_going=True)
    assert not finished(done, **options)


def rewritten(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    job = yaml.safe_load(file.read_text(encoding="utf-8"))
    change(job)
    file.write_text(yaml.safe_dump(job), encoding="utf-8")


def spoil_receipt(file: Path) -> None:
    path = pipeline_receipt.receipt_path(file.parent / "dist" / "tiny-llama-f16.gguf")
    receipt = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(receipt | {"recipe": "0" * 64}), encoding="utf-8")


CHANGES: dict[str, Callable[[Path], object]] = {
    "the lock is gone": lambda file: file.with_name(f"{file.stem}.lock.yaml").unlink(),
    "another tag": lambda file: rewritten(file, lambda job: job["llama_cpp"].update(tag="b9760")),
    "another type": lambda file: rewritten(file, lambda job: job["models"][0].update(outtype="f32")),
    "a Modelfile is wanted": lambda file: rewritten(file, lambda job: job["models"][0].update(ollama=True)),
    "one output is gone": lambda file: (file.parent / "dist" / "tiny-llama-a-lora-f16.gguf").unlink(),
    "one output was touched": lambda file: (file.parent / "dist" / "tiny-llama-f16.gguf").touch(),
    "one output is cut": lambda file: (file.parent / "dist" / "tiny-llama-f16.gguf").write_bytes(b"GGUF"),
    "a receipt is gone": lambda file: pipeline_receipt.receipt_path(file.parent / "dist" / "tiny-llama-f16.gguf").unlink(),
    "a receipt is of another recipe": spoil_receipt,
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_has_changed_is_looked_at(done: Path, change: str) -> None:
    assert finished(done)
    CHANGES[change](done)
    assert not finished(done)


def test_a_changed_source_is_told_by_a_finished_job_too(
    orchestrate: Orchestrate, job: Job, copy: Callable[..., Path], world: Path
) -> None:
    model = copy("tiny-llama")
    file = job({"source": str(model), "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    config = model / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    answer = orchestrate("run", file)
    assert answer.code == 1 and "has changed since it was locked" in answer.err and "--upgrade" in answer.err
