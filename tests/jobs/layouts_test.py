"""Genuine tokenizers: what the hub has of a model and what transformers 5 saves of it become the same file, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.verify import gguf
from tests.support import genuine
from tests.support.answer import Answer
from tests.support.makers import save_anew
from tests.support.makers import small_decoder

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 2e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama3_1": SIZES
    | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "bos_token_id": 128000}
    | {"eos_token_id": 128009, "rope_theta": 123456.0, "rope_scaling": LLAMA3},
    "qwen3": SIZES
    | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "eos_token_id": 151645}
    | {"rope_theta": 234567.0, "rope_scaling": None},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each model as the hub has it and as transformers 5 saves it."""
    root = tmp_path_factory.mktemp("layouts")
    for name, config in MODELS.items():
        try:
            files = genuine.tokenizer(name)
        except genuine.Absent as reason:
            pytest.skip(f"no genuine tokenizers: {reason}")
        small_decoder(root / "hub" / name, config)
        for file in files.iterdir():
            shutil.copy(file, root / "hub" / name / file.name)
        shutil.copytree(root / "hub" / name, root / "saved" / name)
        save_anew(root / "saved" / name)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["b9821", "b10605", "b11434"])
def test_both_layouts_of_a_genuine_tokenizer_become_the_same_file(
    tag: str, checkpoints: Path, orchestrate: Callable[..., Answer], job: Callable[..., Path], world: Path
) -> None:
    about: dict[str, Any] = {"llama_cpp": {"tag": tag}, "binaries": {"backend": "none"}}
    about["environment"] = {"overrides": ["torch==2.13.0", "sentencepiece==0.2.0"]}
    for layout in ("hub", "saved"):
        models = [{"source": str(checkpoints / layout / name), "outtype": "f16"} for name in MODELS]
        answer = orchestrate("run", job(*models, name=f"{layout}.yaml", output=layout, **about))
        assert answer.code == 0, answer.err
    for name, config in MODELS.items():
        hub, saved = (world / layout / f"{name}-f16.gguf" for layout in ("hub", "saved"))
        assert hub.read_bytes() == saved.read_bytes(), name
        assert gguf.contents([hub]).metadata[f"{config['model_type']}.rope.freq_base"] == config["rope_theta"]
