"""Files and folders that are named where a job file is meant: each is told as what it is, with what to run for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.util.pointers import LFS
from tests.support.answer import Answer

JOB = "version: 1\nllama_cpp: {tag: b11434}\nmodels: [./m]\n"
LOCK = "version: 1\nllama_cpp: {tag: b11434, commit: x}\n"
# The files; what is named → what is said, and the way out.
NAMED: dict[str, tuple[dict[str, str | bytes], str, str, str]] = {
    "a lock": ({"job.yaml": JOB, "job.lock.yaml": LOCK}, "job.lock.yaml", "is a lock", "orchestrate run job.yaml"),
    "the lock of a .yml": ({"a.yml": JOB, "a.lock.yaml": LOCK}, "a.lock.yaml", "is a lock", "orchestrate run a.yml"),
    "a lock alone": ({"a.lock.yml": LOCK}, "a.lock.yml", "is a lock", "orchestrate run a.yaml"),
    "a GGUF": ({"x.gguf": b"GGUF\3\0\0\0" + bytes(99)}, "x.gguf", "is a GGUF file", "orchestrate verify x.gguf"),
    "a GGUF by another name": ({"x": b"GGUF\3\0\0\0" + bytes(70_000)}, "x", "is a GGUF file", "orchestrate convert MODEL"),
    "weights": ({"m/model.safetensors": bytes(99), "m/config.json": "{}"}, "m/model.safetensors", "part of a model", "{}/m"),
    "weights alone": ({"w.safetensors": bytes(99)}, "w.safetensors", "part of a model", "orchestrate convert FOLDER"),
    "a config": ({"m/config.json": "{}"}, "m/config.json", "is a part of a model", "orchestrate convert {}/m"),
    "an adapter": ({"l/adapter_config.json": "{}"}, "l/adapter_config.json", "part of an adapter", "--outtype none --lora {}/l"),
    "a receipt": ({"x.gguf.receipt.json": "{}"}, "x.gguf.receipt.json", "the receipt of x.gguf", "reproduce x.gguf.receipt.json"),
    "a report": ({"m-quality.json": "{}"}, "m-quality.json", "a report on quality", "orchestrate run JOB"),
    "a Modelfile": ({"Modelfile": "FROM x\n"}, "Modelfile", "a Modelfile of Ollama", "ollama create NAME -f Modelfile"),
    "an archive": ({"m.zip": b"PK\x03\x04\0"}, "m.zip", "is an archive", "--bundle FILE"),
    "a pointer": ({"job.yaml": LFS + b"v1\noid sha256:0\nsize 3\n"}, "job.yaml", "is a Git LFS pointer", "git lfs pull"),
    "a folder with jobs": ({"d/a.yaml": JOB, "d/b.yml": JOB, "d/a.lock.yaml": LOCK}, "d", "is a folder", "d/a.yaml (or b.yml)"),
    "a folder without": ({"d/a.txt": ""}, "d", "is a folder", "d/job.yaml"),
    "a model's folder": ({"m/config.json": "{}", "m/a.yaml": "x: 1"}, "m", "is a folder", "orchestrate convert m"),
    "an adapter's folder": ({"l/adapter_config.json": "{}"}, "l", "is a folder", "BASE --outtype none --lora l"),
    "another text": ({"x.txt": "a\n"}, "x.txt", "expected keys with values, found text", "orchestrate init"),
    "another JSON": ({"x.json": "{}"}, "x.json", "missing", "orchestrate init"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_job_file(name: str, orchestrate: Callable[..., Answer], world: Path) -> None:
    files, named, message, way = NAMED[name]
    for path, content in files.items():
        (world / path).parent.mkdir(parents=True, exist_ok=True)
        (world / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(world.rglob("*"))
    for command in ("run", "plan"):
        answer = orchestrate(command, Path(named))
        assert answer.code == 2 and message in answer.err and way.replace("{}", str(world)) in answer.err.replace("\\", "/")
    assert sorted(world.rglob("*")) == before


def test_a_job_by_an_odd_name_is_a_job(orchestrate: Callable[..., Answer], world: Path) -> None:
    (world / "m").mkdir()
    (world / "odd.lock.yaml").write_text(JOB)
    assert orchestrate("run", Path("odd.lock.yaml"), "--locked").code == 3
