"""The results in a real llama.cpp: the next-token log-probabilities must be those of transformers and PEFT."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import python_version
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from tests.support import ROOT
from tests.support.answer import Answer

INSIDE = ROOT / "tests" / "inside"
NEEDED = ("xllamacpp", "peft", "transformers==4.57.6", "torch==2.13.0", "sentencepiece")


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has a real llama.cpp, transformers and PEFT."""
    venv = tmp_path_factory.mktemp("judge") / "venv"
    index = settings.load(os.environ).index
    env = clean_env(**indexes.index_variables(index, None, os.environ))
    python = python_version.choose_python(NEEDED[2:4], (), settings.load(os.environ).index, None)
    process.capture(Command((indexes.uv(), "venv", "--quiet", "--python", python, str(venv)), env=env))
    install = (indexes.uv(), "pip", "install", "--quiet", "--python", str(python_in(venv)), *NEEDED)
    process.capture(Command(install, env=env), timeout=900)
    return python_in(venv)


def verdict(judge: Path, *argv: object) -> dict[str, float]:
    return dict(json.loads(inside(judge, "judge.py", *argv).strip().splitlines()[-1]))


def inside(judge: Path, script: str, *argv: object) -> str:
    env = clean_env(HF_HUB_OFFLINE="1")
    return process.capture(Command((str(judge), str(INSIDE / script), *map(str, argv)), env=env), timeout=300)


@pytest.mark.slow
def test_base_and_adapters_answer_as_transformers_and_peft_do(
    judge: Path, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, world: Path
) -> None:
    for name in ("tiny-llama", "lora-a", "lora-b"):
        shutil.copytree(data / name, world / name)
    loras = [{"source": f"./{name}", "outtype": "f32"} for name in ("lora-a", "lora-b")]
    assert orchestrate("run", job({"source": "./tiny-llama", "outtype": "f32", "loras": loras})).code == 0
    gguf = world / "dist" / "tiny-llama-f32.gguf"
    answers = [verdict(judge, "tiny-llama", "-", gguf, "-")]
    answers += [
        verdict(judge, "tiny-llama", name, gguf, world / "dist" / f"tiny-llama-{name}-lora-f32.gguf")
        for name in ("lora-a", "lora-b")
    ]
    for answer in answers:
        assert answer["tokens"] >= 5 and answer["top"] and answer["worst"] < 0.05, answers
    # An adapter that did nothing would agree with its base, not with PEFT; here it must not agree with the bare base.
    assert verdict(judge, "tiny-llama", "-", gguf, world / "dist" / "tiny-llama-lora-b-lora-f32.gguf")["worst"] > 0.05


LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERN = {
    "layers.1.self_attn.q_proj": 4,
    "q_proj": 80,
    r".*\.0\.self_attn\.[kv]_proj": 64,
    "v_proj": 2,
    "^model.layers.0.mlp.up_proj": 96,
    "^layers.0.mlp.gate_proj": 96,
    "mlp.down_proj|o_proj": 48,
}
# In the order of the alphabet, for PEFT sorts them when it saves, and then could not load what it has trained in another.
RANKS = {"down_proj": 16, "k_proj": 4, "layers.0.self_attn.k_proj": 2, "proj": 5, "self_attn.(q|o)_proj": 3}
PLAIN = {"r": 8, "lora_alpha": 16, "target_modules": LAYERS}
SAVED: dict[str, dict[str, Any]] = {
    "rslora": PLAIN | {"use_rslora": True},
    "alphas": PLAIN | {"alpha_pattern": PATTERN},
    "ranks": PLAIN | {"rank_pattern": RANKS},
    "rslora-ranks": PLAIN | {"rank_pattern": RANKS, "use_rslora": True},
    "all": PLAIN | {"rank_pattern": RANKS, "alpha_pattern": PATTERN, "use_rslora": True},
    "ends": PLAIN
    | {"target_modules": ["q_proj", "lm_head", "embed_tokens"], "use_rslora": True, "alpha_pattern": {"lm_head": 48}},
}
CLOSE = 0.02


def untrue(adapter: Path, dest: Path) -> None:
    """The same matrices with a config that says less: what upstream's script alone would convert."""
    shutil.copytree(adapter, dest)
    config = json.loads((dest / "adapter_config.json").read_text())
    ranks = config["rank_pattern"]
    (dest / "adapter_config.json").write_text(
        json.dumps(config | {"use_rslora": False, "alpha_pattern": {}, "rank_pattern": ranks})
    )


@pytest.mark.slow
def test_adapters_with_scales_of_their_own_act_as_in_peft(
    judge: Path, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, world: Path
) -> None:
    shutil.copytree(data / "tiny-llama", world / "tiny-llama")
    inside(judge, "trained.py", "tiny-llama", world, json.dumps(SAVED))
    for name in SAVED:
        untrue(world / name, world / f"bare-{name}")
    before = {path: path.read_bytes() for name in SAVED for path in (world / name).iterdir()}
    loras = [{"source": f"./{prefix}{name}", "outtype": "f32"} for name in SAVED for prefix in ("", "bare-")]
    answer = orchestrate("run", job({"source": "./tiny-llama", "outtype": "f32", "loras": loras}))
    assert answer.code == 0, answer.err
    assert {path: path.read_bytes() for name in SAVED for path in (world / name).iterdir()} == before
    gguf = world / "dist" / "tiny-llama-f32.gguf"
    for name in SAVED:
        mine, bare = (world / "dist" / f"tiny-llama-{prefix}{name}-lora-f32.gguf" for prefix in ("", "bare-"))
        found = verdict(judge, "tiny-llama", name, gguf, mine)
        assert found["tokens"] >= 5 and found["top"] and found["worst"] <= CLOSE, (name, found)
        receipt = pipeline_receipt.read(mine)
        assert receipt
        if name == "ranks":
            assert not receipt.notes and f"{mine.name}: scaled" not in answer.err
            continue
        assert "scaled as PEFT does" in receipt.notes[0] and f"note: {mine.name}: {receipt.notes[0]}" in answer.err
        assert verdict(judge, "tiny-llama", name, gguf, bare)["worst"] > CLOSE, name


@pytest.mark.slow
def test_quantized_files_of_a_tag_built_from_source_load_and_answer_nearly_alike(
    judge: Path, orchestrate: Callable[..., Answer], job: Callable[..., Path], built: dict[str, Any], data: Path, world: Path
) -> None:
    shutil.copytree(data / "tiny-llama", world / "tiny-llama")
    kinds = ("Q8_0", "Q6_K", "Q4_K_M", "IQ4_NL", "Q4_0")
    answer = orchestrate("run", job({"source": "./tiny-llama", "outtype": "f16", "quantize": list(kinds)}, binaries=built))
    assert answer.code == 0, answer.err
    worst = [verdict(judge, "tiny-llama", "-", world / "dist" / f"tiny-llama-{kind}.gguf", "-")["worst"] for kind in kinds]
    # The fewer bits, the further off, and none is nonsense: over 32,000 tokens of equal weight that would be about 10.
    assert worst[0] < 0.1 and worst[0] <= min(worst) and max(worst) < 2, worst
