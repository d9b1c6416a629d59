"""Upstream is asked about small files before weights come: real jobs over a hub of ours, and which outputs are tried."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import makers
from tests.support.answer import Answer
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]


def fetched(hub: Hub) -> list[str]:
    """The files of weights that were asked for."""
    return [path for path in hub.seen if path.startswith("GET") and path.endswith(".safetensors")]


def unknown_to_all(hub: Hub, folder: Path) -> None:
    """A tokenizer of a new kind."""
    (folder / "config.json").write_bytes(hub.files["config.json"])
    makers.byte_tokenizer(folder)
    del hub.files["tokenizer.model"]
    hub.files |= {path.name: path.read_bytes() for path in folder.iterdir()}


def nothing(hub: Hub, folder: Path) -> None:
    """Leave it as it is."""


@pytest.mark.parametrize(
    ("spoil", "more", "code", "words"),
    [
        (unknown_to_all, {}, 1, "this tag does not know the model's tokenizer"),
        (nothing, {"args": ["--split-max-size"]}, 2, "job.yaml: m: this tag's script does not take an option so: --split"),
        (nothing, {"mmproj": "f16"}, 2, "job.yaml: m has no vision or audio part: its config.json says LlamaForCausalLM"),
    ],
)
def test_what_the_script_refuses_is_told_before_weights_come(
    spoil: Callable[[Hub, Path], None],
    more: dict[str, Any],
    code: int,
    words: str,
    hub: Hub,
    orchestrate: Orchestrate,
    job: Job,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "small").mkdir()
    spoil(hub, tmp_path / "small")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    answer = orchestrate("run", job({"source": "org/m", "name": "m", "outtype": "f16", **more}))
    assert answer.code == code and "failed  check m" in answer.err and words in answer.err, answer.err
    assert "hint: " in answer.err and "log: " in answer.err and "Traceback" not in answer.err
    assert not fetched(hub) and not list(world.rglob("*.gguf")) and not list((tmp_path / "scratch").iterdir())


@pytest.mark.slow
def test_a_model_in_shards_passes_and_is_not_asked_about_again(
    hub: Hub, orchestrate: Orchestrate, job: Job, copy: Callable[..., Path]
) -> None:
    model = copy("tiny-llama")
    makers.shards(model)
    hub.files = {path.name: path.read_bytes() for path in model.iterdir()}
    file = job({"source": "org/m", "name": "m", "outtype": "auto", "verify": "structure"})
    answer = orchestrate("run", file, "--json")
    assert answer.code == 0 and "done    check m" in answer.err.partition("done    fetch m")[0], answer.err
    for options in ((), ("--force",)):
        again = orchestrate("run", file, "--json", *options)
        assert again.code == 0 and not [step for step in again.json()["steps"] if step["name"] in ("inspect m", "check m")]


def test_what_small_files_tell_by_themselves_is_told_without_upstream(hub: Hub, orchestrate: Orchestrate, job: Job) -> None:
    hub.files["config.json"] = json.dumps({"architectures": ["XyzzyForCausalLM"]}).encode()
    answer = orchestrate("run", job({"source": "org/m", "name": "m", "outtype": "f16"}))
    assert answer.code == 1 and "failed  inspect m" in answer.err and "does not know the architecture Xyzzy" in answer.err
    assert not fetched(hub)


def test_with_the_weights_at_hand_the_conversion_tells(
    orchestrate: Orchestrate, job: Job, copy: Callable[..., Path], world: Path
) -> None:
    makers.byte_tokenizer(copy("tiny-llama"))
    answer = orchestrate("run", job({"source": "./model", "outtype": ["f16", "bf16"]}), "--keep-going")
    assert answer.code == 1 and answer.err.count("this tag does not know the model's tokenizer") >= 2
    assert "check model" not in answer.err and "Traceback" not in answer.err and not list(world.glob("dist/*"))
