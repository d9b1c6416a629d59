"""Projectors of models that see: the real script on a tiny random SmolVLM, and what is said where there can be none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamacpp_orchestrator.convert import failures
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.system import interpreter
from llamacpp_orchestrator.system.command import script_env
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import levels
from tests.support import TAG
from tests.support import makers
from tests.support.answer import Answer

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Copy = Callable[..., Path]
WIDTH, FFN, PATCH, IMAGE, TEXT, SCALE = 32, 64, 8, 32, 64, 2


@pytest.fixture
def seeing(copy: Copy, demo_data: ModuleType) -> Path:
    """The tiny Llama as the text part of a model that sees."""
    model = copy("tiny-llama", "seeing")
    config = json.loads((model / "config.json").read_text())
    vision = {"model_type": "smolvlm_vision", "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": IMAGE, "patch_size": PATCH}
    mine = {"architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm", "scale_factor": SCALE}
    text = {**config, "architectures": ["LlamaForCausalLM"]}
    demo_data.write_json(model / "config.json", {**mine, "text_config": text, "vision_config": vision})
    sizes = {"size": {"longest_edge": IMAGE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    demo_data.write_json(model / "preprocessor_config.json", sizes)
    layer = "model.vision_model.encoder.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        "model.vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "model.vision_model.embeddings.patch_embedding.bias": (WIDTH,),
        "model.vision_model.embeddings.position_embedding.weight": ((IMAGE // PATCH) ** 2, WIDTH),
        "model.connector.modality_projection.proj.weight": (TEXT, WIDTH * SCALE**2),
        f"{layer}.mlp.fc1.weight": (FFN, WIDTH),
        f"{layer}.mlp.fc1.bias": (FFN,),
        f"{layer}.mlp.fc2.weight": (WIDTH, FFN),
        f"{layer}.mlp.fc2.bias": (WIDTH,),
    }
    for part in (f"{layer}.layer_norm1", f"{layer}.layer_norm2", "model.vision_model.post_layernorm"):
        shapes |= {f"{part}.weight": (WIDTH,), f"{part}.bias": (WIDTH,)}
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= {f"{layer}.self_attn.{part}.weight": (WIDTH, WIDTH), f"{layer}.self_attn.{part}.bias": (WIDTH,)}
    for name, (_, shape, _) in makers.read(model / "model.safetensors").items():
        shapes[name.replace("model.", "model.text_model.", 1)] = tuple(shape)
    demo_data.write_safetensors(model / "model.safetensors", shapes, "BF16", 5)
    return model


@pytest.mark.slow
def test_a_model_that_sees_has_a_projector_beside_it(orchestrate: Orchestrate, job: Job, seeing: Path, world: Path) -> None:
    model: dict[str, Any] = {"source": "./seeing", "outtype": "f16", "mmproj": ["f16", "q8_0"], "ollama": True}
    answer = orchestrate("run", job(model), "--json")
    assert answer.code == 0, answer.err
    made = {(output["kind"], output["type"], Path(output["path"]).name) for output in answer.json()["outputs"]}
    assert made == {
        ("model", "f16", "seeing-f16.gguf"),
        ("mmproj", "f16", "mmproj-seeing-f16.gguf"),
        ("mmproj", "q8_0", "mmproj-seeing-q8_0.gguf"),
    }
    found = gguf.check(world / "dist" / "mmproj-seeing-f16.gguf")
    assert (found.kind, found.architecture) == ("mmproj", "clip")
    assert gguf.check(world / "dist" / "seeing-f16.gguf").architecture == "llama"
    text = (world / "dist" / "seeing-f16.Modelfile").read_text(encoding="utf-8")
    assert "FROM ./seeing-f16.gguf\nFROM ./mmproj-seeing-f16.gguf\n" in text
    again = orchestrate("run", job(model), "--json").json()
    assert {output["status"] for output in again["outputs"]} == {"current"} and "verify" not in str(again["steps"])
    alone = job({"source": "./seeing", "outtype": "none", "mmproj": "f16"}, name="alone.yaml", output="alone")
    assert orchestrate("run", alone).code == 0
    assert [path.name for path in (world / "alone").glob("*.gguf")] == ["mmproj-seeing-f16.gguf"]


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_a_projector_of_zeros_is_not_its_source_s(
    orchestrate: Orchestrate,
    job: Job,
    seeing: Path,
    world: Path,
    shared_cache: Path,
    python: Path,
    run: interpreter.Run,
    outtype: str,
) -> None:
    fresh = "model.vision_model.encoder.layers.0.mlp.fc2.bias"
    makers.tensors(seeing / "model.safetensors", lambda tensors: tensors | {fresh: makers.zeros(WIDTH, dtype="BF16")})
    answer = orchestrate("run", job({"source": "./seeing", "outtype": "none", "mmproj": outtype}))
    assert answer.code == 0, answer.err
    output = world / "dist" / f"mmproj-seeing-{outtype}.gguf"
    subject = levels.Subject(
        kind="mmproj",
        files=(output,),
        args=("--mmproj",),
        views=(seeing,),
        python=str(python),
        tree=shared_cache / "source" / f"package-{TAG}",
        env=script_env(shared_cache / "home"),
        scratch=world,
        log=world / "verify.log",
    )
    assert levels.check(subject, run, lambda text: None).levels == ("structure", "content")
    content = bytearray(output.read_bytes())
    places = [place for _, place in gguf.contents([output]).tensors.values() if place.elements > WIDTH]
    for place in places:
        content[place.start : place.start + place.size] = bytes(place.size)
    output.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"zeros in .*, where"):
        levels.check(subject, run, lambda text: None)


def test_a_model_that_does_not_see_is_told_before_anything_is_converted(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16", "mmproj": "f16"})
    answer = orchestrate("run", file)
    assert answer.code == 2, answer.err
    assert "failed  check" in answer.err and "tiny-llama has no vision or audio part" in answer.err
    assert not list(world.rglob("*.gguf"))
    assert orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16"}, name="fine.yaml")).code == 0
    assert "has no vision or audio part" in orchestrate("run", file, "--force").err


def test_a_tag_without_projectors_is_told_by_its_options(tree: Callable[[str], Path]) -> None:
    model = spec.Model(source="org/m", name="m", mmproj=("f16",))
    asked = spec.Job(version=1, llama_cpp=spec.LlamaCpp(tag="b3878"), models=(model,))
    preflight.check_job(asked, "b11434", "job.yaml", tree("b11434"))
    with pytest.raises(JobError, match=r"job.yaml: m: b3878 cannot make projectors \(its script has no --mmproj\)"):
        preflight.check_job(asked, "b3878", "job.yaml", tree("0.3.1"))


def test_a_type_of_a_projector_is_checked(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "mmproj": "q4_k_m"}))
    assert answer.code == 2 and "has no outtype `q4_k_m`" in answer.err
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "mmproj": "none"}))
    assert answer.code == 2 and "models[0].mmproj" in answer.err


@pytest.mark.parametrize(
    "said",
    ["ValueError: vision_config / audio_config not found in hparams", "AssertionError: This model does not support multimodal"],
)
def test_upstreams_own_words_are_explained(said: str) -> None:
    assert failures.explain(said) == ("the model has no vision or audio part", "leave `mmproj` out for this model")
