"""The results in a real llama.cpp: the next-token log-probabilities must be those of transformers and PEFT."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator import environment
from llamacpp_orchestrator import process
from llamacpp_orchestrator import settings
from llamacpp_orchestrator.process import Command
from tests.conftest import Answer

JUDGE = Path(__file__).parent / "inside" / "judge.py"
NEEDED = ("xllamacpp", "peft", "transformers==4.57.6", "torch==2.13.0", "sentencepiece")


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has a real llama.cpp, transformers and PEFT."""
    venv = tmp_path_factory.mktemp("judge") / "venv"
    index = settings.load(os.environ).index
    env = process.clean_env(**environment.index_variables(index, None, os.environ))
    python = environment.choose_python(NEEDED[2:4], (), settings.load(os.environ), None)
    process.capture(Command((environment.uv(), "venv", "--quiet", "--python", python, str(venv)), env=env))
    install = (environment.uv(), "pip", "install", "--quiet", "--python", str(environment.python_in(venv)), *NEEDED)
    process.capture(Command(install, env=env), timeout=900)
    return environment.python_in(venv)


def verdict(judge: Path, *argv: object) -> dict[str, float]:
    env = process.clean_env(HF_HUB_OFFLINE="1")
    said = process.capture(Command((str(judge), str(JUDGE), *map(str, argv)), env=env), timeout=300)
    return dict(json.loads(said.strip().splitlines()[-1]))


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
