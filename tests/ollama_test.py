"""Chat templates of well known families, as Ollama is told them: rendered alike, or refused with the reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator import handoff
from llamacpp_orchestrator import ollama
from llamacpp_orchestrator.command import clean_env
from llamacpp_orchestrator.ollama import Answer
from llamacpp_orchestrator.ollama import Chat
from tests.conftest import ROOT
from tests.conftest import TAG
from tests.conftest import Answer as Said

Orchestrate = Callable[..., Said]
Job = Callable[..., Path]
Copy = Callable[..., Path]


def kind(bos: str | None, eos: str, *special: str, adds: bool | str | None = True, ends: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"bos": bos, "eos": eos, "special": special, "adds_bos": adds, "ends": ends}


IM = ("<|im_start|>", "<|endoftext|>")
FAMILIES = {
    "chatml": kind(None, "<|im_end|>", *IM, adds=False),
    "qwen2.5": kind(None, "<|im_end|>", *IM, adds=False, ends=("<|im_end|>", "<|endoftext|>")),
    "llama3": kind("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>"),
    "llama3.1": kind("<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>", ends=("<|eom_id|>", "<|eot_id|>")),
    "llama3.2": kind("<|begin_of_text|>", "<|eot_id|>"),
    "mistral-v1": kind("<s>", "</s>"),
    "mistral-v3": kind("<s>", "</s>", "[INST]", "[/INST]"),
    "llama2": kind("<s>", "</s>", adds=None),
    "gemma": kind("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", ends=("<eos>", "<end_of_turn>")),
    "gemma3": kind("<bos>", "<eos>", "<end_of_turn>", adds=False),
    "phi3": kind("<s>", "<|endoftext|>", "<|end|>", "<|user|>", adds=False),
    "zephyr": kind("<s>", "</s>"),
    "thinking": kind(None, "<|im_end|>", adds=False),
    "awkward": kind(None, "</s>", '}}"""', adds=False),
    "refusing": kind(None, "</s>"),
    "base": kind("<s>", "</s>"),
    "bpe": kind("<s>", "</s>", adds="qwen2"),
    "tekken": kind("<s>", "</s>", adds="tekken"),
}
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
NO_SYSTEM = "the source's template takes no system message; Ollama leaves one out"
EXPRESSED = {
    # family: (default system prompt, stops, whether system messages are taken)
    "chatml": ("", ("<|im_end|>",), True),
    "qwen2.5": (QWEN, ("<|im_end|>", "<|endoftext|>"), True),
    "llama3": ("", ("<|end_of_text|>", "<|eot_id|>"), True),
    "llama3.1": ("", ("<|eom_id|>", "<|eot_id|>"), True),
    "mistral-v1": ("", ("</s>",), False),
    "llama2": ("", ("</s>",), True),
    "gemma": ("", ("<eos>", "<end_of_turn>"), False),
    "gemma3": ("", ("<eos>", "<end_of_turn>"), True),
    "phi3": ("", ("<|endoftext|>", "<|end|>"), True),
    "zephyr": ("", ("</s>",), True),
    "awkward": ("", ("</s>",), True),
}
REFUSED = {
    "llama3.2": "it depends on the date",
    "mistral-v3": "for system, user, assistant, user it says",
    "thinking": "for user, assistant, user, assistant, user it says 'assistant\\nyes<|im_end|>",
    "refusing": "it refuses a conversation of user (nobody may speak)",
    "base": "the source has no chat template, as base models have none",
    "bpe": "the source has no chat template",
    "tekken": "the source has no chat template",
}


@pytest.fixture
def answers(python: Path, shared_cache: Path, compiled: dict[str, str]) -> dict[str, Answer]:
    """What inside/chat.py says of each family, run once by the real environment's python."""
    to = shared_cache / "answers"
    if not (to / list(FAMILIES)[-1]).exists():
        to.mkdir()
        (to / "talks.json").write_text(json.dumps(ollama.TALKS))
        package = shared_cache / "source" / f"package-{TAG}" / "gguf-py"
        script = ROOT / "tests" / "chats" / "answers.py"
        argv = [python, script, package, handoff.SCRIPT, to / "talks.json", to]
        env = dict(clean_env(HF_HUB_OFFLINE="1", PYTHONUTF8="1", **compiled))
        subprocess.run(argv, input=json.dumps(FAMILIES).encode(), env=env, check=True)
    return {name: msgspec.json.decode((to / name / "answer.json").read_bytes(), type=Answer) for name in FAMILIES}


def test_every_family_is_either_expressed_or_refused() -> None:
    assert EXPRESSED.keys() | REFUSED.keys() == FAMILIES.keys() and not EXPRESSED.keys() & REFUSED.keys()


@pytest.mark.parametrize("family", EXPRESSED)
def test_a_template_that_affixes_can_express(family: str, answers: dict[str, Answer]) -> None:
    found = ollama.chat(answers[family])
    system, stops, takes_system = EXPRESSED[family]
    assert (found.reason, found.system, found.stops) == ("", system, stops)
    assert (NO_SYSTEM in found.notes) is not takes_system
    assert "range .Messages" in found.template and '"""' not in found.template
    if FAMILIES[family]["adds_bos"] is not False:
        assert not re.search(r'"start" }}' + re.escape(FAMILIES[family]["bos"] or "-"), found.template)


@pytest.mark.parametrize("family", REFUSED)
def test_a_template_that_they_cannot(family: str, answers: dict[str, Answer]) -> None:
    found = ollama.chat(answers[family])
    assert REFUSED[family] in found.reason
    assert (found.template, found.system) == ("", "") and found.stops


@pytest.mark.parametrize(
    ("family", "adds"), [("llama3", True), ("gemma3", False), ("llama2", True), ("bpe", False), ("tekken", True)]
)
def test_whether_the_runtime_adds_the_first_token(family: str, adds: bool, answers: dict[str, Answer]) -> None:
    assert answers[family].adds_bos is adds


def heard(answer: Answer, talk: ollama.Talk, text: str) -> str:
    """What Ollama should make of a conversation, said anew: no first token that it adds itself, nothing after an open answer."""
    if answer.adds_bos and answer.bos:
        text = text.removeprefix(answer.bos)
    if talk[-1][0] == "assistant":
        text = text[: text.rindex(talk[-1][1]) + len(talk[-1][1])]
    return text


@pytest.mark.skipif(not shutil.which("go"), reason="no Go here to render with; the tests above render without it")
def test_go_renders_what_the_source_renders(answers: dict[str, Answer], tmp_path: Path) -> None:
    asked, expected = [], []
    for family in EXPRESSED:
        answer = answers[family]
        heard_of = [(talk, each.text) for talk, each in zip(ollama.TALKS, answer.said, strict=True) if not each.error]
        asked.append({"template": ollama.chat(answer).template, "talks": [talk for talk, _ in heard_of]})
        expected.append([heard(answer, talk, text) for talk, text in heard_of])
    env = {**os.environ, "GOCACHE": str(tmp_path / "go"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    argv = ["go", "run", str(ROOT / "tests" / "chats" / "render.go")]
    said = subprocess.run(argv, input=json.dumps(asked).encode(), env=env, check=True, capture_output=True).stdout
    assert json.loads(said) == expected
    assert sum(map(len, expected)) > 200


def modelfile_of(text: str) -> list[tuple[str, str]]:
    """A Modelfile as Ollama's parser reads it: a value ends with its line, or with three quotes at the end of one."""
    found: list[tuple[str, str]] = []
    lines = iter(text.split("\n"))
    for line in lines:
        if not line or line.startswith("#"):
            continue
        word, value = line.split(" ", 1)
        while value.startswith('"') and not re.fullmatch(r'"""(.*)"""|"(?!"")(.*)"', value.strip(), re.DOTALL):
            value += "\n" + next(lines)
        value = "".join(letter for letter in value.strip() if letter.isprintable() or letter in "\t\n")
        found.append((word, value[3:-3] if value.startswith('"""') else value.strip('"')))
    return found


@pytest.mark.parametrize("family", EXPRESSED)
def test_a_modelfile_gives_back_what_was_put_into_it(family: str, answers: dict[str, Answer]) -> None:
    found = ollama.chat(answers[family])
    text = ollama.modelfile(["a b.gguf", "p.gguf"], "l.gguf", found, "a-b", "a b.Modelfile")
    read = modelfile_of(text)
    assert read[:3] == [("FROM", "./a b.gguf"), ("FROM", "./p.gguf"), ("ADAPTER", "./l.gguf")]
    assert ("TEMPLATE", found.template) in read
    assert [value for word, value in read if word == "SYSTEM"] == ([found.system] if found.system else [])
    assert [value for word, value in read if word == "PARAMETER"] == [f'stop "{stop}' for stop in found.stops]
    assert text.startswith("# Written by orchestrate\n") and text.endswith("\n")


def test_a_modelfile_without_a_template_says_why() -> None:
    text = ollama.modelfile(["a.gguf"], "", Chat(reason="so it is"), "a", "a.Modelfile")
    assert "# No TEMPLATE: so it is.\n" in text and [word for word, _ in modelfile_of(text)] == ["FROM"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("tiny-llama-bf16", "tiny-llama-bf16"),
        ("Llama-3.2-1B-Instruct-Q4_K_M", "llama-3.2-1b-instruct-q4_k_m"),
        ("模型 一-f16", "f16-4f1b8515"),
        ("模型", "model-"),
        ("a" * 100, "a" * 60 + "-"),
    ],
)
def test_names_that_ollama_takes(stem: str, name: str) -> None:
    found = ollama.model_name(stem)
    assert found.startswith(name) and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", found)


def test_a_tokenizer_that_cannot_be_loaded_is_said() -> None:
    assert ollama.chat(Answer(error="no\nway")) == Chat(reason="the tokenizer cannot be loaded (no way)")
