"""The level `logits`: what llama-perplexity records, how far an output may be off, and real models that say something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamacpp_orchestrator import artifact
from tests.conftest import Answer
from tests.makers import edit

Run = Callable[..., Answer]
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


def test_models_and_adapters_go_on_as_transformers_and_peft_do(
    orchestrate: Run, job: Callable[..., Path], built: dict[str, Any], copy: Callable[..., Path], data: Path, world: Path
) -> None:
    copy("tiny-llama")
    edit(copy("lora-b", "rs") / "adapter_config.json", use_rslora=True)
    loras = [str(data / "lora-a"), {"source": "./rs", "name": "rs"}]
    model = {"source": "./model", "name": "tiny", "outtype": ["f16", "q8_0"], "quantize": ["Q4_K_M"], "loras": loras}
    answer = orchestrate("run", job(model | {"verify": "logits"}, binaries=built), "--json")
    assert answer.code == 0, answer.err
    for output in answer.json()["outputs"]:
        receipt = artifact.read(Path(output["path"]))
        assert receipt and receipt.levels == ("structure", "content", "load", "logits"), receipt
        assert "over 31 positions" in receipt.notes[-1]
    answer = orchestrate("verify", world / "dist", "--level", "logits", "--json")
    assert answer.code == 0, answer.err
