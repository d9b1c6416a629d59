"""The folder that upstream's scripts are shown: the user's own files, or a copy with some of them in an older form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator import translation
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.source import pin
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.verify import gguf
from tests.support.answer import Answer
from tests.support.folders import sums
from tests.support.makers import edit

ROPE = {"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
NESTED = {"rope_theta": 500_000.0, "rope_type": "linear", "factor": 2.0}


@pytest.fixture
def layouts(copy: Callable[..., Path]) -> dict[str, Path]:
    """One model as transformers 4 and 5 save it."""
    older, newer = copy("tiny-llama", "older/m"), copy("tiny-llama", "newer/m")
    edit(older / "config.json", **ROPE)
    edit(newer / "config.json", rope_theta=None, rope_scaling=None, rope_parameters=NESTED, transformers_version="5.23.0")
    edit(newer / "tokenizer_config.json", backend="sentencepiece", extra_special_tokens=["<s>"], is_local=True)
    return {"older": older, "newer": newer}


@pytest.mark.slow
def test_both_layouts_give_the_same_bytes_and_the_users_files_stay(
    layouts: dict[str, Path], orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, world: Path
) -> None:
    before = sums(layouts["newer"], "*")
    files = {}
    for name, path in layouts.items():
        model = {"source": str(path), "outtype": "f16", "loras": [str(data / "lora-a")]}
        done = orchestrate("run", job(model, name=f"{name}.yaml", output=name), "--json")
        assert done.code == 0, done.err
        files[name] = sums(world / name)
        noted = "translated for this tag: rope_parameters as rope_theta and rope_scaling" in done.err
        assert noted == (name == "newer")
    assert files["older"] == files["newer"] and len(files["newer"]) == 2
    assert sums(layouts["newer"], "*") == before
    metadata = gguf.contents([world / "newer" / "m-f16.gguf"]).metadata
    assert metadata["llama.rope.freq_base"] == 500_000 and metadata["llama.rope.scaling.factor"] == 2
    receipt = json.loads((world / "newer" / "m-f16.gguf.receipt.json").read_text())
    assert [note.split(" (")[0] for note in receipt["notes"][:2]] == [
        "translated for this tag: rope_parameters as rope_theta and rope_scaling",
        "translated for this tag: extra_special_tokens as additional_special_tokens",
    ]
    adapter = json.loads((world / "newer" / "m-lora-a-lora-f16.gguf.receipt.json").read_text())
    assert adapter["notes"][0].startswith("translated for this tag: rope_parameters")


def test_a_vocabulary_that_a_class_cannot_do_without_is_missed(
    copy: Callable[..., Path], orchestrate: Callable[..., Answer], job: Callable[..., Path]
) -> None:
    model = copy("tiny-llama", "m")
    edit(model / "config.json", architectures=["Gemma2ForCausalLM"], model_type="gemma2", rope_theta=10000.0)
    (model / "tokenizer.model").unlink()
    (model / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}))
    done = orchestrate("run", job({"source": str(model), "outtype": "f16", "verify": "structure"}), "--json")
    assert done.code == 1 and "this tag reads its kind of vocabulary from tokenizer.model alone, and there is none" in done.err
    steps = {step["name"]: step["status"] for step in done.json()["steps"]}
    assert steps["convert m-f16.gguf"] == "failed" and steps["verify m-f16.gguf"] == "blocked"


def test_other_rules_make_a_file_anew(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job(str(data / "tiny-llama"))
    assert orchestrate("run", file).code == 0
    assert orchestrate("run", file, "--json").json()["outputs"][0]["status"] == "current"
    monkeypatch.setattr(translation, "REVISION", "of tomorrow")
    assert orchestrate("run", file, "--json").json()["outputs"][0]["status"] == "built"


PIN = pin.SourcePin(tag="b11434", repo="r", tree="0" * 64, commit="0" * 40)


def work_in(world: Path, environment: spec.Environment, tree: Path) -> Context:
    """A job of one model, with the tree of its tag in the cache."""
    job = spec.Job(version=1, llama_cpp=spec.LlamaCpp(tag=PIN.tag), models=(spec.Model(source="./m"),), environment=environment)
    store = Store(world / "cache")
    shutil.copytree(tree, store.folder("source") / PIN.key())
    return Context(job=job, file=world / "job.yaml", settings=Settings(cache=store.root, index=Index()), store=store)


@pytest.fixture
def shown(world: Path, tree: Callable[[str], Path]) -> Callable[[Path], Path]:
    """The folder that b11434's scripts are given for a view."""
    environment = records.EnvironmentPin(upstream="0" * 64, torch="cpu", python="3.11", requirements="transformers==4.57.6 \\\n")
    lock = records.Lock(llama_cpp=PIN, environment=environment, models=())
    pinned = PinnedJob(work_in(world, spec.Environment(), tree("b11434")), lock)
    return lambda view: converter_view.folder(pinned, view)


def view_of(world: Path, **files: Any) -> Path:
    view = world / "cache" / "views" / "0" / "m"
    view.mkdir(parents=True)
    (view / "model.safetensors").write_bytes(b"weights")
    for name, value in files.items():
        (view / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return view


def test_a_copy_links_what_it_does_not_change_and_heals(world: Path, shown: Callable[[Path], Path]) -> None:
    view = view_of(world, config={"model_type": "llama", "rope_parameters": {"rope_theta": 1e4}}, tokenizer_config={})
    copy = shown(view)
    assert copy != view and copy.name == view.name
    assert json.loads((copy / "config.json").read_text()) == {"model_type": "llama", "rope_theta": 1e4}
    assert (copy / "model.safetensors").samefile(view / "model.safetensors")
    assert json.loads((view / "config.json").read_text())["rope_parameters"]
    (copy / "config.json").write_text("{}")
    (copy / "tokenizer_config.json").unlink()
    assert shown(view) == copy
    assert json.loads((copy / "config.json").read_text()) == {"model_type": "llama", "rope_theta": 1e4}
    assert (copy / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("config", [{"model_type": "llama", "rope_theta": 1e4}, "{", "[]", "[" * 5000, '{"rope_parameters": 1}'])
def test_what_is_right_or_damaged_is_shown_as_it_is(world: Path, shown: Callable[[Path], Path], config: Any) -> None:
    view = view_of(world, config=config)
    assert shown(view) == view


def test_an_environment_of_ones_own_tells_its_transformers(world: Path, tree: Callable[[str], Path]) -> None:
    work = work_in(world, spec.Environment(path="./own"), tree("b11434"))
    pinned = PinnedJob(work, records.Lock(llama_cpp=PIN, models=()))
    view = view_of(world, tokenizer_config={"extra_special_tokens": ["<a>"]})
    assert converter_view.folder(pinned, view) != view, "an unknown one counts as old"
    (world / "own" / "lib" / "python3.12" / "site-packages" / "transformers-5.23.0.dist-info").mkdir(parents=True)
    assert converter_view.folder(pinned, view) == view


@pytest.mark.slow
def test_a_vocabulary_in_tokenizer_json_alone_cuts_texts_as_its_own_tokenizer(
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    copy: Callable[..., Path],
    built: dict[str, Any],
    python: Path,
    world: Path,
) -> None:
    model = copy("tiny-llama", "m")
    saving = "import sys, transformers as t; t.LlamaTokenizerFast.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(python), "-c", saving, str(model)], check=True, env=environment, capture_output=True)
    (model / "tokenizer.model").unlink()
    assert (model / "tokenizer.json").is_file()
    done = orchestrate("run", job({"source": str(model), "outtype": "f16", "verify": "load"}, binaries=built), "--json")
    assert done.code == 0, done.err
    assert "tokenizer.json's vocabulary as a sentencepiece model" in done.err
    receipt = json.loads((world / "dist" / "m-f16.gguf.receipt.json").read_text())
    assert receipt["levels"] == ["structure", "content", "load"]
    assert not [note for note in receipt["notes"] if "cuts" in note or "not compared" in note], receipt["notes"]
    scores = gguf.contents([world / "dist" / "m-f16.gguf"]).metadata["tokenizer.ggml.scores"]
    assert len(set(scores)) > 30_000
