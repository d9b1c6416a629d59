"""Leftovers beside a model's weights, with the real script: the output holds what transformers would load alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.pipeline import receipt
from llamacpp_orchestrator.verify import gguf
from tests.support import makers
from tests.support.answer import Answer

PICKLES = """
import pathlib, sys, torch
from safetensors.torch import load_file
folder = pathlib.Path(sys.argv[1])
tensors = load_file(folder / "model.safetensors")
torch.save(tensors, folder / "pytorch_model.bin")
torch.save({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model_old.bin")
(folder / "model.safetensors").unlink()
"""


def weights(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor of a GGUF."""
    content = path.read_bytes()
    return {name: content[place.start : place.start + place.size] for name, (_, place) in gguf.contents([path]).tensors.items()}


@pytest.mark.slow
def test_a_leftover_of_zeros_is_not_converted(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path], world: Path, python: Path
) -> None:
    copy("tiny-llama", "sound")
    left = copy("tiny-llama", "left")
    whole = makers.read(left / "model.safetensors")
    makers.write(
        left / "model_old.safetensors", {name: makers.zeros(*shape, dtype=kind) for name, (kind, shape, _) in whole.items()}
    )
    subprocess.run([str(python), "-c", PICKLES, str(copy("tiny-llama", "pickled"))], check=True)
    models = [
        {"source": f"./{name}", "outtype": "f32", "trust_remote_code": name == "pickled"} for name in ("sound", "left", "pickled")
    ]
    answer = orchestrate("run", job(*models))
    assert answer.code == 0, answer.err
    sound = weights(world / "dist" / "sound-f32.gguf")
    for name, file in (("left", "model_old.safetensors"), ("pickled", "pytorch_model_old.bin")):
        output = world / "dist" / f"{name}-f32.gguf"
        record = receipt.read(output)
        assert weights(output) == sound and all(map(any, sound.values()))
        assert record and f"not read: {file}; " in record.notes[0]
