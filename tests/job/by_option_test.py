"""What is wrong with a job, in the words of whoever wrote it: of a source in another spelling, of YAML's escapes, of options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import by_option
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.util.pointers import LFS
from tests.support.answer import Answer

HEAD = "version: 1\nllama_cpp: {tag: b11434}\n"

SPELLINGS = {
    "org/m": "",
    "org/m:Q4_K_M": "the way of Ollama and llama-server; write org/m, and the type by itself: `quantize: Q4_K_M`",
    "hf.co/org/m:IQ2_M": "write org/m, and the type by itself: `quantize: IQ2_M`",
    "https://hf.co/org/m:Q8_0": "write org/m, and the type by itself: `quantize: Q8_0`",
    "org/m:BF16": "write org/m, and the type by itself: `outtype: bf16`",
    "org/m:latest": "the way of Ollama and llama-server; write org/m",
    "llama3.2:3b": "a name of Ollama's library; name the model on the hub that it was made from: org/name",
    "hf.co/org/m": "an address; write org/m",
    "HuggingFace.co/org/m/": "an address; write org/m",
    "www.huggingface.co/org/m": "an address; write org/m",
    "hf://org/m": "an address; write org/m",
    "https://huggingface.co/org/m/tree/main": "an address; write org/m",
    "https://huggingface.co/org/m/tree/v1": "an address; write org/m@v1",
    "https://huggingface.co/org/m/tree/refs%2Fpr%2F3": "an address; write org/m@refs/pr/3",
    "https://huggingface.co/org/m/blob/dev/config.json?x#y": "an address; write org/m@dev",
    "https://huggingface.co/org/m/resolve/main/model.safetensors": "an address; write org/m",
    "https://mirror.example:8080/org/m": "an address; write org/m",
    "org/m/tree/v1": "an address; write org/m@v1",
    "https://huggingface.co/datasets/org/m": "one of the hub's datasets, not a model",
    "https://huggingface.co/spaces/org/m": "one of the hub's spaces, not a model",
    "https://github.com/org/m": "a page of github, and only models of the hub are fetched; download it, and name the folder",
    "ollama.com/library/m": "a page of ollama,",
    "https://modelscope.cn/models/org/m": "a page of modelscope,",
    "org/m/sub": "neither a hub id",
}


@pytest.mark.parametrize("source", SPELLINGS)
def test_a_source_in_another_spelling(source: str) -> None:
    complaint = fields.source(source)
    assert SPELLINGS[source] in complaint and bool(SPELLINGS[source]) == bool(complaint)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('models: ["..\\m"]', "job.yaml:3:14: not YAML: no such escape in double quotes"),
        ('models: ["C:\\Users\\me"]', "no such escape in double quotes"),
        ('models: ["C:\\temp"]', "models[0].source: "),
        ('models: ["models\\tiny"]', "models[0].source: "),
        ('models: ["./x\\new"]', "models[0].source: "),
        ('models: ["./there"]\noutput: "dist\\new"', "output: "),
        ('models: [{source: ./there, loras: ["adapters\\bot"]}]', "models[0].loras[0].source: "),
        ('models: {source: "..\\x4"}', "no such escape"),
        ('models: {source: "..\\base"}', "models[0].source: "),
        ('models: {source: ./there, quantize: Q4_0, imatrix: "..\\n.dat"}', "models[0].imatrix: "),
        ('models: ./there\nenvironment: {path: "..\\venv"}', "environment.path: "),
    ],
)
def test_a_backslash_in_double_quotes(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    (tmp_path / "there").mkdir()
    file.write_text(HEAD + text + "\n")
    with pytest.raises(JobError) as caught:
        loader.load(file)
    assert told in caught.value.message and "use single quotes, or /" in caught.value.hint
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("source", ["tiny-llama", "a/b/c", "tiny llama", "models/sub/x"])
def test_a_folder_without_a_sign_of_one(source: str, tmp_path: Path) -> None:
    (tmp_path / source).mkdir(parents=True)
    for models in (f"models: [{source}]", f"models: [{{source: ./x, loras: [{source}]}}]"):
        with pytest.raises(JobError) as caught:
            loader.parse(f"{HEAD}{models}\n".encode(), tmp_path / "job.yaml")
        assert "is a folder beside" in caught.value.message and caught.value.hint == f"write ./{source}"


def test_a_folder_that_is_called_as_a_repository(orchestrate: Callable[..., Answer], world: Path) -> None:
    (world / "org" / "m").mkdir(parents=True)
    (world / "job.yaml").write_text(HEAD + "models: [org/m]\n")
    answer = orchestrate("lock", Path("job.yaml"), "--offline")
    assert answer.code and "org/m is taken for a repository of the hub, and there is a folder of that name here" in answer.err
    assert "for the folder write ./org/m" in answer.err


@pytest.mark.parametrize("key", ["imatrix: x.txt", "imatrix: {text: x.txt}", "quality: x.txt"])
def test_texts_that_are_pointers(key: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(LFS + b"v1\noid sha256:0\nsize 3\n")
    (tmp_path / "m").mkdir()
    file = tmp_path / "job.yaml"
    file.write_text(f"{HEAD}models:\n- source: ./m\n  quantize: Q8_0\n  {key}\n")
    with pytest.raises(JobError, match="x.txt is a Git LFS pointer") as caught:
        loader.load(file)
    assert "git lfs pull" in caught.value.hint and f"{file}:6: " in caught.value.message


@pytest.mark.parametrize(
    ("options", "told", "way"),
    [
        (
            ("--quantize", "bf16"),
            "--quantize: makes the file m-bf16.gguf, and so does --outtype",
            "leave one of the two options out",
        ),
        (("--quantize", "IQ1_S"), "--quantize: IQ1_S cannot be made", "--write-job FILE"),
        (("--outtype", "none"), "--outtype: `none` stands alone", "--help"),
        (("--lora", "x"), '--lora: "x" is neither', "--help"),
        (("--override", "torch=2"), "--override: expected a requirement", "--help"),
    ],
)
def test_convert_speaks_of_options(
    options: tuple[str, ...], told: str, way: str, orchestrate: Callable[..., Answer], world: Path
) -> None:
    answer = orchestrate("convert", "org/m", *options)
    assert answer.code == 2 and told in answer.err and way in answer.err
    assert "orchestrate.yaml" not in answer.err and "models[" not in answer.err and "line " not in answer.err


def test_convert_speaks_of_the_type_in_a_name(orchestrate: Callable[..., Answer], world: Path) -> None:
    answer = orchestrate("convert", "org/m:Q4_K_M")
    assert answer.code == 2 and "write org/m, and the type by itself: `--quantize Q4_K_M`" in answer.err


def test_convert_speaks_of_options_where_a_step_fails(orchestrate: Callable[..., Answer], world: Path) -> None:
    (world / "m").mkdir()
    (world / "m" / "config.json").write_text("{}")
    answer = orchestrate("convert", "./m", "--offline", "--keep-going")
    assert answer.code == 1 and "with only adapters to convert, set `--outtype none`" in answer.err


def test_keys_of_a_job_in_the_words_of_options() -> None:
    error = OrchestrateError("x is a LoRA adapter", "list it under `loras`, or set `outtype: none`, or `trust_remote_code: true`")
    by_option.tell_by_option(error, Path("orchestrate.yaml"))
    told = "list it under `--lora`, or set `--outtype none`, or `trust_remote_code: true`; "
    assert error.hint == told + by_option.OF_A_JOB
