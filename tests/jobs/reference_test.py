"""What outputs are compared with: right files of today's checkpoints pass, and each number that is wrong in turn is seen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.commands import bundle
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.environment import reference as environment_reference
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import logits
from tests.support import ROOT
from tests.support.answer import Answer
from tests.support.makers import edit
from tests.support.programs import TOOL
from tests.support.stage.github import GitHub
from tests.support.stage.github import release

Run = Callable[..., Answer]
INSIDE = ROOT / "tests" / "inside"
MODELS = ("llama", "headed", "gemma2")


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ((), ()),
        (("torch==2.13.0",), ("torch==2.13.0",)),
        (("Torch >= 2.6", "numpy<3"), ("Torch >= 2.6", "numpy<3")),
        (("transformers==4.51.0", "sentencepiece==0.2.0", "torchvision==0.1"), ()),
        (("torch ; sys_platform == 'linux'",), ("torch ; sys_platform == 'linux'",)),
    ],
)
def test_overrides_that_are_about_the_machine_count(lines: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert environment_reference.overrides(lines) == kept


@pytest.fixture
def sources(reference: Path, once: Callable[..., None], data: Path, world: Path) -> Path:
    """Models as transformers 5 saves them, one of which says tied and has a head of its own."""

    def make() -> None:
        command = Command((str(reference), str(INSIDE / "models.py"), str(world)), env=clean_env(HF_HUB_OFFLINE="1"))
        process.capture(command, timeout=300)
        edit(world / "headed" / "config.json", tie_word_embeddings=True)
        for name in MODELS:
            for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
                shutil.copy(data / "tiny-llama" / file, world / name / file)

    once("models of today", make)
    return world


@pytest.mark.slow
def test_right_files_of_todays_checkpoints_pass(
    orchestrate: Run, job: Callable[..., Path], built: dict[str, Any], sources: Path, world: Path
) -> None:
    # Gemma's has a tokenizer of another family, which the check of tokenizers tells; it is compared below.
    right = ("llama", "headed")
    models = [{"source": f"./{name}", "outtype": "f16", "verify": "logits"} for name in right]
    answer = orchestrate("run", job(*models, binaries=built))
    assert answer.code == 0, answer.err
    for name in right:
        receipt = pipeline_receipt.read(world / "dist" / f"{name}-f16.gguf")
        assert receipt and receipt.levels[-1] == "logits", (name, receipt)
        told = [note for note in receipt.notes if "transformers 4 drops it" in note]
        assert len(told) == (name == "headed"), receipt.notes


# What is broken, of which model, by which number of its source's config.
BREAKS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope base": ("llama", {"rope_parameters.rope_theta": 10_000.0}),
    "rope base a little": ("llama", {"rope_parameters.rope_theta": 400_000.0}),
    "rope scaling": ("llama", {"rope_parameters.rope_type": "default"}),
    "rope scaling's factor": ("llama", {"rope_parameters.factor": 32.0}),
    "norm epsilon": ("llama", {"rms_norm_eps": 1e-5}),
    "activation": ("llama", {"hidden_act": "gelu"}),
    "no window": ("gemma2", {"sliding_window": 4096}),
    "window": ("gemma2", {"sliding_window": 96}),
    "attention's soft cap": ("gemma2", {"attn_logit_softcapping": None}),
    "soft cap": ("gemma2", {"final_logit_softcapping": None}),
    "attention scale": ("gemma2", {"query_pre_attn_scalar": 24}),
    "Gemma's activation": ("gemma2", {"hidden_activation": "silu"}),
}


def broken(model: Path, to: Path, changes: dict[str, Any]) -> Path:
    """The same model with a config that says something else."""
    to.mkdir()
    for file in model.iterdir():
        (to / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for key, value in changes.items():
        *way, last = key.split(".")
        inner = config
        for step in way:
            inner = inner[step]
        assert inner[last] != value
        inner[last] = value
    (to / "config.json").unlink()
    (to / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return to


@pytest.mark.slow
def test_every_number_that_is_wrong_is_seen(
    recorder: Path,
    python: Path,
    reference: Path,
    tree: Callable[[str], Path],
    sources: Path,
    compiled: dict[str, str],
    world: Path,
) -> None:
    env = clean_env(HF_HUB_OFFLINE="1", **compiled)
    asked: dict[str, Path] = {}
    for model in ("llama", "gemma2"):
        for tag in ("b9821", "b11434"):
            # The scripts of both tags read these configs as they are.
            file = world / f"{model}-{tag}.gguf"
            script = (str(tree(tag) / "convert_hf_to_gguf.py"), str(sources / model), "--outfile", str(file))
            process.capture(Command((str(python), *script, "--outtype", "f16"), env=env), timeout=300)
            folder = world / f"{model}-{tag}"
            folder.mkdir()
            have = gguf.contents([file])
            config = json.loads((sources / model / "config.json").read_text(encoding="utf-8"))
            size = logits.context(logits.windows(have.metadata, config), 32_000)
            (folder / "logits.txt").write_text(logits.text(2 * size), encoding="utf-8")
            process.capture(logits.command(recorder, [file], [], folder, False, size))
            # One that 4.57.6 takes for a model of 128 experts: it is read, and is another.
            places = {"right": sources / model} | ({"experts": sources / "experts"} if model == "llama" else {})
            for name, (broken_model, changes) in BREAKS.items() if tag == "b11434" else ():
                if broken_model == model:
                    places[name] = broken(sources / model, folder / name, changes)
            for name, place in places.items():
                path = folder / f"{name}.json"
                path.write_text(
                    json.dumps(logits.question(place, None, logits.read(folder / "logits.bin"), folder / "logits.bin"))
                )
                asked[f"{model} of {tag}: {name}"] = path
    every = world / "asked.json"
    every.write_text(json.dumps(list(map(str, asked.values()))))
    script = (str(INSIDE / "breaks.py"), str(inside.path("transformers_logits").parent), str(every))
    process.capture(Command((str(reference), *script), env=env), timeout=500)
    bounds = logits.bounds([logits.F16])
    found = {}
    for name, path in asked.items():
        answer = msgspec.json.decode(path.with_suffix(".answer").read_bytes(), type=logits.Answer)
        assert not answer.unable, (name, answer.unable)
        found[name] = logits.judge("x", answer, bounds)
    seen = {name: bool(each.failures) for name, each in found.items()}
    assert seen == {name: not name.endswith("right") for name in seen}, found
    assert len(seen) == len(BREAKS) + 6


@pytest.mark.slow
def test_a_bundle_brings_what_is_compared_with(
    linux: None,
    github: GitHub,
    orchestrate: Run,
    job: Callable[..., Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    github.archive = release(TOOL)
    (tmp_path / "own" / "bin").mkdir(parents=True)
    model = {"source": str(data / "tiny-llama"), "verify": "logits"}
    own = {"path": str(tmp_path / "own"), "overrides": ["torch==2.13.0"]}
    file = job(model, environment=own, binaries={"backend": "cpu"})
    packed = orchestrate("bundle", file, "-o", "all.tar")
    assert packed.code == 0, packed.err
    here = msgspec.structs.replace(settings.load(os.environ), cache=tmp_path / "fresh")
    work = Context(job=loader.load(file, folders=False), file=file, settings=here, store=Store(here.cache))
    opened = bundle.opened(file.with_name("all.tar"), work)
    lock = lock_file.read(lock_file.path_for(file))
    assert lock and lock.reference and not lock.environment
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    setup.build_environment(opened, lock.reference, "it", tmp_path / "log", lambda text: None)
    python = str(PinnedJob(opened, lock).python_of(lock.reference))
    shown = process.capture(
        Command((python, "-c", "import peft, transformers; print(transformers.__version__)"), env=clean_env())
    )
    assert shown.strip() == "5.23.0"
