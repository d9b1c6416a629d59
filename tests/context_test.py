"""What a job at work says of itself: commands that can be typed as they are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.store import Store


def of(file: Path) -> Context:
    job = loader.parse(b"version: 1\nllama_cpp: {tag: b11434}\nmodels: [org/m]\n", file)
    cache = file.parent / "cache"
    return Context(job=job, file=file, settings=Settings(cache=cache, index=Index()), store=Store(cache))


@pytest.mark.skipif(os.name == "nt", reason="that shell has quotes of its own")
@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("job.yaml", "job.yaml"),
        ("sub/job.yaml", "sub/job.yaml"),
        ("../job.yaml", "../job.yaml"),
        ("my job.yaml", "'my job.yaml'"),
        ("it's.yaml", "'it'\"'\"'s.yaml'"),
        ("-job.yaml", "./-job.yaml"),
    ],
)
def test_a_command_for_a_hint_is_one_that_can_be_typed(world: Path, name: str, typed: str) -> None:
    assert of(world / name).command("lock", "--upgrade") == f"orchestrate lock {typed} --upgrade"


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError])
def test_where_nothing_is_near_a_path_is_told_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    work = of(tmp_path / "job.yaml")

    def relpath(path: Path) -> str:
        raise error

    monkeypatch.setattr(os.path, "relpath", relpath)
    assert work.command("run").split()[2].strip("\"'") == str(tmp_path / "job.yaml")
