"""Which outputs of a job go to which repository, and what of it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.job import repositories

LONG = "n" * 90


def parsed(*models: dict[str, Any], **keys: Any) -> Any:
    job = {"version": 1, "llama_cpp": {"tag": "b11434"}, "models": [{"source": "org/m", **model} for model in models], **keys}
    return loader.parse(yaml.safe_dump(job).encode(), Path("/j/job.yaml"))


def listed(*models: dict[str, Any], **keys: Any) -> dict[str, list[str]]:
    job = parsed(*models, **keys)
    return {one.id: [output.path.name for output in one.outputs] for one in repositories.repositories(job, Path("/j"))}


LORA = {"loras": [{"source": "org/bot"}]}
GOES: list[tuple[list[dict[str, Any]], dict[str, Any], dict[str, list[str]]]] = [
    ([{}], {}, {}),
    ([{"publish": "me/x"}], {}, {"me/x": ["m-bf16.gguf"]}),
    ([{"quantize": "Q8_0"}], {"publish": "me/{name}-GGUF"}, {"me/m-GGUF": ["m-bf16.gguf", "m-Q8_0.gguf"]}),
    ([{"quantize": "Q8_0", "outtype": []}], {"publish": "me/x"}, {"me/x": ["m-Q8_0.gguf"]}),  # and not what is temporary
    ([LORA], {"publish": "me/x"}, {"me/x": ["m-bf16.gguf"], "me/m-bot-LoRA-GGUF": ["m-bot-lora-f16.gguf"]}),
    ([LORA | {"outtype": "none"}], {"publish": "me/x"}, {"me/m-bot-LoRA-GGUF": ["m-bot-lora-f16.gguf"]}),
    ([LORA], {"publish": {"repo": "me/x", "adapters": "together"}}, {"me/x": ["m-bf16.gguf", "m-bot-lora-f16.gguf"]}),
    ([{}, {"name": "n"}], {"publish": "me/x"}, {"me/x": ["m-bf16.gguf", "n-bf16.gguf"]}),
    ([{"publish": "me/x"}, {"name": "n", "publish": "Me/X"}], {}, {"me/x": ["m-bf16.gguf", "n-bf16.gguf"]}),
    ([{"publish": "me/y"}, {"name": "n"}], {"publish": "me/x"}, {"me/y": ["m-bf16.gguf"], "me/x": ["n-bf16.gguf"]}),
    ([{"quantize": "Q8_0"}], {"publish": {"repo": "me/x", "files": "q8_0"}}, {"me/x": ["m-Q8_0.gguf"]}),
    ([{"quantize": "Q8_0"}], {"publish": {"repo": "me/x", "files": ["*-BF16.*"]}}, {"me/x": ["m-bf16.gguf"]}),
    ([{"merge": ["org/bot"], "keep_merged": True}], {"publish": "me/x"}, {"me/x": ["m-bot-bf16.gguf"]}),
    (
        [{"merge": ["org/bot"], "keep_merged": True}],
        {"publish": {"repo": "me/x", "files": ["safetensors"]}},
        {"me/x": ["model.safetensors"]},
    ),
]


@pytest.mark.parametrize("models, keys, expected", GOES)
def test_each_output_goes_to_its_repository(models: Any, keys: Any, expected: dict[str, list[str]]) -> None:
    assert listed(*models, **keys) == expected


BAD: list[tuple[list[dict[str, Any]], Any, str]] = [
    ([{}], "x", "publish.repo"),
    ([{}], "./x", "found the folder"),
    ([{}], "https://huggingface.co/me/x", "is an address; write me/x"),
    ([{}], "me/{nam}", "neither a hub id"),
    ([{}], {"repo": "me/x", "revision": "a" * 40}, "expected a branch"),
    ([{}], {"repo": "me/x", "card": "de"}, "unknown value"),
    ([{}], {"repo": "me/x", "files": ["Q4_K_M"]}, 'publish.files[0]: "Q4_K_M" means none of its outputs'),
    ([{"name": LONG}], "me/{name}-GGUF", "publish.repo"),
    ([{"name": LONG} | LORA], "me/x", "publish.repo"),
    (
        [{"publish": {"repo": "me/x", "private": True}}, {"name": "n", "publish": "me/x"}],
        None,
        "say different things of `private`",
    ),
    ([{"publish": {"repo": "me/x", "card": "zh"}}, {"name": "n", "publish": "me/x"}], None, "models[1].publish.card"),
]


@pytest.mark.parametrize("models, publish, words", BAD)
def test_what_cannot_be_published_so_is_told_with_its_line(models: Any, publish: Any, words: str) -> None:
    with pytest.raises(JobError) as error:
        parsed(*models, **({"publish": publish} if publish else {}))
    assert words in error.value.message and error.value.message.startswith("/j/job.yaml:")


def test_a_pattern_of_the_job_may_mean_outputs_of_some_models_only() -> None:
    models = [{"quantize": "Q8_0"}, {"name": "n"}]
    assert listed(*models, publish={"repo": "me/{name}", "files": ["Q8_0"]}) == {"me/m": ["m-Q8_0.gguf"]}


@pytest.mark.parametrize("key", ["system", "template"])
def test_a_text_for_ollama_must_be_there(key: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    job = {"version": 1, "llama_cpp": {"tag": "b11434"}, "models": ["org/m"], "publish": {"repo": "me/x", key: "text.txt"}}
    file.write_text(yaml.safe_dump(job))
    with pytest.raises(JobError, match="text.txt is not a file"):
        loader.load(file)
    (tmp_path / "text.txt").write_text("x")
    assert getattr(loader.load(file).models[0].publish, key) == "text.txt"
