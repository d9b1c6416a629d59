"""What Ollama is told of a model: text, names and parameters as tables; the real driver, and a stand-in for the program."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.export import ollama
from llamacpp_orchestrator.export import ollama_program
from tests.support import programs
from tests.support.answer import Answer
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Copy = Callable[..., Path]
Install = Callable[..., Path]
GENERATION = {
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "repetition_penalty": 1,
    "eos_token_id": [2, 1],
    "do_sample": True,
}


def read(text: str) -> list[tuple[str, ...]]:
    """A Modelfile as Ollama's parser reads it: a value ends with its line, and is without the quotes around it."""
    found: list[tuple[str, ...]] = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        word, value = line.split(" ", 1)
        words = (word, *value.split(" ", 1)) if word == "PARAMETER" else (word, value)
        value = "".join(letter for letter in words[-1].strip() if letter.isprintable())
        if value.startswith('"'):
            assert not value.startswith('"""') and len(value) > 1 and value.endswith('"'), line
            value = value[1:-1]
        found.append((*words[:-1], value))
    return found


def test_the_text_of_a_modelfile() -> None:
    text = ollama.modelfile(
        "a-b:q8_0",
        "a b.Modelfile",
        ["a b.gguf", "../p.gguf"],
        parameters={"temperature": "0.6", "top_k": "20"},
        stops=["<|im_end|>", 'a "b" c'],
        license="apache-2.0",
    )
    assert text.splitlines() == [
        "# Written by orchestrate",
        '#   ollama create a-b:q8_0 -f "a b.Modelfile"',
        "#   ollama run a-b:q8_0",
        "REQUIRES 0.30.0",
        "FROM ./a b.gguf",
        "FROM ./../p.gguf",
        "PARAMETER temperature 0.6",
        "PARAMETER top_k 20",
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "a "b" c"',
        'LICENSE "apache-2.0"',
    ]
    assert text.startswith(ollama.MARK) and text.endswith("\n") and ("PARAMETER", "stop", 'a "b" c') in read(text)


@pytest.mark.parametrize(
    ("stop", "holds"),
    [
        ("</s>", True),
        ("<｜end▁of▁sentence｜>", True),
        ("[/INST] \\n", True),
        ("a'b", True),
        ("", False),
        ('"', False),
        ('"a', False),
        ('a"', False),
        ('"""', False),
        ("\n", False),
        ("a\nFROM b", False),
        ("a\u3000b", False),
        ("a\x00", False),
        ("\ud800", False),
    ],
)
def test_what_stands_between_quotes_comes_out_as_it_was_or_is_left_out(stop: str, holds: bool) -> None:
    text = ollama.modelfile("a:b", "a.Modelfile", ["a.gguf"], parameters={}, stops=[stop])
    expected = [("PARAMETER", "stop", stop)] if holds else []
    assert [words for words in read(text) if words[0] == "PARAMETER"] == expected
    assert [words[0] for words in read(text)] == ["REQUIRES", "FROM", *["PARAMETER"] * holds]


@pytest.mark.parametrize(
    ("generation", "parameters"),
    [
        ({}, {}),
        (GENERATION, {"temperature": "0.6", "top_p": "0.95", "top_k": "20", "repeat_penalty": "1"}),
        ({"min_p": 0.05, "repetition_penalty": 1.05}, {"min_p": "0.05", "repeat_penalty": "1.05"}),
        ({"top_k": 50.0}, {"top_k": "50"}),
        ({"top_k": 0, "temperature": 0.0}, {"temperature": "0.0", "top_k": "0"}),
        ({"temperature": "0.6", "top_p": None, "min_p": True, "top_k": [40]}, {}),
        ({"temperature": float("nan"), "top_p": float("inf"), "min_p": float("-inf"), "top_k": float("nan")}, {}),
        ({"top_k": 40.5, "temperature": 10**400}, {}),
        ({"typical_p": 1.0, "num_beams": 4, "max_length": 4096}, {}),
    ],
)
def test_numbers_of_a_generation_config(generation: dict[str, Any], parameters: dict[str, str]) -> None:
    assert ollama.parameters(generation) == parameters


@pytest.mark.parametrize(
    ("name", "type_", "known"),
    [
        ("Llama-3.2-1B", "Q4_K_M", "llama-3.2-1b:q4_k_m"),
        ("tiny_llama", "bf16", "tiny_llama:bf16"),
        ("My Model", "f16", r"my-model-[0-9a-f]{8}:f16"),
        ("模型 一", "f16", r"model-[0-9a-f]{8}:f16"),
        ("_a", "sub/a-f16", r"a-[0-9a-f]{8}:sub-a-f16-[0-9a-f]{8}"),
        ("a" * 80, "f16", "a" * 80 + ":f16"),
        ("a" * 100, "f16", "a{60}-[0-9a-f]{8}:f16"),
    ],
)
def test_names_that_ollama_takes(name: str, type_: str, known: str) -> None:
    found = ollama.model_name(name, type_)
    assert re.fullmatch(known, found) and re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,79}:[a-z0-9_][a-z0-9._-]{0,79}", found)


def test_names_that_were_altered_alike_stay_apart() -> None:
    assert len({ollama.model_name(name, "f16") for name in ("my model", "My Model", "my/model", "my-model")}) == 4


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A\n", "apache-2.0"),
        ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: https://x.org/LICENSE\n---\n",
            "other, own, https://x.org/LICENSE",
        ),
        ("---\nlicense: [mit]\n---\n", ""),
        ("---\nlicense:\n- mit\n---\n", ""),
        ("---\nlicense:\n---\n", ""),
        ('---\nlicense: """\n---\n', ""),
        ("# A\nlicense: mit\n", ""),
        ("---\ntags: []\n---\nlicense: mit\n", ""),
        ("", ""),
    ],
)
def test_the_licence_that_a_card_names(card: str, license: str) -> None:
    assert ollama.licensed(card) == license


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("ollama version is 0.30.1\n", (0, 30, 1)),
        ("ollama version is 0.34.1\nWarning: client version is 0.9.6\n", (0, 9, 6)),
        ("Warning: could not connect to a running Ollama instance\nWarning: client version is 0.31.0-rc2\n", (0, 31, 0)),
        ("ollama version is 0.0.0\n", ()),
        ("ollama version is v0.30.0+cuda\n", (0, 30, 0)),
        ("something else 1.2.3", ()),
    ],
)
def test_the_version_of_a_program(printed: str, version: tuple[int, ...]) -> None:
    assert ollama_program.oldest(printed) == version


@pytest.mark.parametrize(
    ("listed", "metadata", "stops"),
    [
        ([2, 3, 1, 3], {}, ("<|eot|>", "<s>")),
        (3, {}, ("<|eot|>",)),
        (2, {}, ()),
        (None, {}, ()),
        ([True, "3", None, 3.0, -1, 4, 10**30], {}, ()),
        ([2, 3], {"tokenizer.ggml.eos_token_id": 3}, ("</s>",)),
        ([2, 3], {"tokenizer.ggml.eos_token_id": None}, ("</s>", "<|eot|>")),
        ([2, 3], {"tokenizer.ggml.tokens": None}, ()),
    ],
)
def test_the_end_tokens_beside_eos(listed: Any, metadata: dict[str, Any], stops: tuple[str, ...]) -> None:
    known = {"tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<|eot|>"], "tokenizer.ggml.eos_token_id": 2}
    assert ollama.stops(ollama.ends({"eos_token_id": listed}), known | metadata) == stops


@pytest.fixture
def install(world: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A program `ollama` on PATH that has a version, keeps what it was called with, says a line and ends with a code."""

    def write(said: str = "success", code: int = 0, version: str = "ollama version is 0.34.1") -> Path:
        folder, calls = world / "bin", world / "calls.txt"
        programs.ollama(folder, calls, said, code, version)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return calls

    return write


def steps(answer: Answer) -> dict[str, str]:
    return {step["name"]: step["status"] for step in answer.json()["steps"]}


def test_modelfiles_lie_beside_the_files_of_a_model_and_are_written_once(
    orchestrate: Orchestrate, job: Job, copy: Copy, data: Path, world: Path
) -> None:
    model = copy("tiny-llama", "Tiny")
    (model / "generation_config.json").write_text(json.dumps(GENERATION))
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    file = job({"source": "./Tiny", "outtype": ["f16", "q8_0"], "ollama": True, "loras": [str(data / "lora-a")]})
    assert "run     modelfile Tiny-f16.Modelfile: tiny:f16" in orchestrate("plan", file).out
    answer = orchestrate("run", file, "--json")
    assert answer.code == 0, answer.err
    dist = world / "dist"
    assert sorted(path.name for path in dist.glob("*.Modelfile")) == ["Tiny-f16.Modelfile", "Tiny-q8_0.Modelfile"]
    assert len(list(dist.glob("*-lora-f16.gguf"))) == 1
    assert answer.err.count("note: Ollama takes no adapters any more: to use lora-a there, merge into Tiny and convert") == 1
    written = dist / "Tiny-q8_0.Modelfile"
    assert read(written.read_text(encoding="utf-8")) == [
        ("REQUIRES", "0.30.0"),
        ("FROM", "./Tiny-q8_0.gguf"),
        ("PARAMETER", "temperature", "0.6"),
        ("PARAMETER", "top_p", "0.95"),
        ("PARAMETER", "top_k", "20"),
        ("PARAMETER", "repeat_penalty", "1"),
        ("PARAMETER", "stop", "<s>"),
        ("LICENSE", "mit"),
    ]
    first, second = answer.json()["ollama"]
    assert (first["name"], second["name"]) == ("tiny:f16", "tiny:q8_0") and first["path"] == str(dist / "Tiny-f16.Modelfile")
    assert first["create"].startswith("ollama create tiny:f16 -f ") and first["run"] == "ollama run tiny:f16"
    before = written.stat().st_mtime_ns
    again = orchestrate("run", file)
    assert again.code == 0 and "current modelfile Tiny-f16.Modelfile" in again.err
    assert "ollama  ollama create tiny:q8_0 " in again.out and written.stat().st_mtime_ns == before
    assert "current modelfile Tiny-f16.Modelfile" in orchestrate("plan", file).out


def test_a_finished_job_needs_neither_tree_nor_environment_for_its_modelfiles(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "f16"}
    assert orchestrate("run", job(model)).code == 0 and not list(world.rglob("*.Modelfile"))
    file = job({**model, "ollama": True})
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "empty"))
    answer = orchestrate("run", file, "--offline", "--json")
    assert steps(answer) == {"convert tiny-llama-f16.gguf": "current", "modelfile tiny-llama-f16.Modelfile": "done"}


def test_of_a_model_of_the_hub_only_small_files_are_fetched_for_a_modelfile(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        hub.files = {path.name: path.read_bytes() for path in (data / "tiny-llama").iterdir()}
        hub.files["generation_config.json"] = json.dumps({"temperature": 0.7}).encode()
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        file = job({"source": "org/m", "outtype": "f16", "ollama": True})
        assert orchestrate("run", file).code == 0
        (world / "dist" / "m-f16.Modelfile").unlink()
        monkeypatch.setenv("HF_HOME", str(world / "another"))
        hub.seen.clear()
        assert "run     modelfile m-f16.Modelfile" in orchestrate("plan", file).out and not hub.seen
        answer = orchestrate("run", file)
        assert answer.code == 0, answer.err
        assert ("PARAMETER", "temperature", "0.7") in read((world / "dist" / "m-f16.Modelfile").read_text(encoding="utf-8"))
        assert hub.seen and not [path for path in hub.seen if "safetensors" in path]
        hub.shutdown()
    again = orchestrate("run", file, "--offline")
    assert again.code == 0 and "current modelfile m-f16.Modelfile" in again.err


def test_files_that_would_have_one_name_in_ollama_are_told_apart(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "f16", "ollama": True}
    answer = orchestrate("run", job(model, {**model, "outfile": "b/{name}.gguf"}), "--json")
    names = [each["name"] for each in answer.json()["ollama"]]
    assert names[0] == "tiny-llama:tiny-llama-f16" and re.fullmatch(r"tiny-llama:b-tiny-llama-[0-9a-f]{8}", names[1])
    assert "FROM ./tiny-llama.gguf\n" in (world / "dist" / "b" / "tiny-llama.Modelfile").read_text(encoding="utf-8")


def test_a_name_that_a_modelfile_cannot_hold_is_told_before_the_work(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "name": "a\u3000b", "outtype": "f16", "ollama": True}
    answer = orchestrate("run", job(model))
    assert answer.code == 2 and "Ollama cannot read the file name 'a\\u3000b-f16.gguf'" in answer.err
    assert not (world / "dist").exists()


def test_a_modelfile_of_the_user_is_never_overwritten(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16", "ollama": True})
    mine = world / "dist" / "tiny-llama-f16.Modelfile"
    mine.parent.mkdir()
    mine.write_text("FROM mine\n")
    answer = orchestrate("run", file)
    assert answer.code == 2 and "orchestrate did not write it" in answer.err and mine.read_text() == "FROM mine\n"
    assert not list(mine.parent.glob("*.gguf"))
    assert orchestrate("run", file, "--force").code == 0 and mine.read_text().startswith(ollama.MARK)
    written = mine.read_text()
    mine.write_text(ollama.MARK + '\nFROM ./tiny-llama-f16.gguf\nTEMPLATE """{{ .Prompt }}"""\n')
    assert "run     modelfile" in orchestrate("plan", file).out
    assert orchestrate("run", file).code == 0 and mine.read_text() == written


def test_a_split_model_gets_no_modelfile(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "f32", "args": ["--split-max-size", "10M"], "ollama": True}
    answer = orchestrate("run", job(model), "--json")
    assert answer.code == 0 and "lies in several files, and Ollama wants one" in answer.err
    assert answer.json()["ollama"] == [] and not list(world.rglob("*.Modelfile"))


def test_ollama_create_hands_over_each_modelfile(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = install()
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    file = job(
        {"source": str(data / "tiny-llama"), "outtype": ["f16", "f32"], "ollama": True},
        {"source": str(data / "tiny-llama"), "name": "b"},
    )
    answer = orchestrate("run", file, "--ollama-create", "--json", "--jobs", "1")
    assert answer.code == 0, answer.err
    assert sorted(name for name, status in steps(answer).items() if name.startswith("ollama") and status == "done") == [
        "ollama tiny-llama:f16",
        "ollama tiny-llama:f32",
    ]
    seen = [json.loads(line) for line in calls.read_text().splitlines()]
    assert sorted(argv for argv, _, _ in seen) == [
        ["create", f"tiny-llama:{kind}", "-f", str(world / "dist" / f"tiny-llama-{kind}.Modelfile")] for kind in ("f16", "f32")
    ]
    assert all(where == str(world / "dist") and "OLLAMA_HOST" in names and "HF_TOKEN" not in names for _, where, names in seen)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("Error: could not connect to ollama app, is it running?", "ollama serve"),
        ('Error: command must be one of "from", "license"', "update it"),
        ("Error: something else", "see the log"),
    ],
)
def test_what_ollama_refuses_is_explained(
    said: str, hint: str, orchestrate: Orchestrate, job: Job, data: Path, install: Install
) -> None:
    install(said, 1, version="")
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16", "ollama": True}), "--ollama-create")
    assert answer.code == 1 and f"({said})" in answer.err and hint in answer.err and "log: " in answer.err


@pytest.mark.parametrize("wants", [True, False])
def test_ollama_create_that_cannot_be_is_told_before_the_work(
    wants: bool, orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(world))
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16", "ollama": wants})
    answer = orchestrate("run", file, "--ollama-create")
    assert answer.code == 2 and ("no `ollama` on PATH" if wants else "says `ollama: true`") in answer.err
    assert not (world / "dist").exists()


def test_an_ollama_that_is_too_old_is_told_before_the_work(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, install: Install
) -> None:
    calls = install(version="ollama version is 0.29.9")
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16", "ollama": True})
    answer = orchestrate("run", file, "--ollama-create")
    assert answer.code == 2 and "Ollama 0.29.9 is here" in answer.err and "0.30.0 or newer" in answer.err
    assert "hint: update it" in answer.err and not calls.exists() and not (world / "dist").exists()


def test_ollama_wants_a_file_of_the_model(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    model: dict[str, Any] = {"source": str(data / "tiny-llama"), "outtype": "none", "loras": [str(data / "lora-a")]}
    answer = orchestrate("run", job(model | {"ollama": True}))
    assert answer.code == 2 and "models[0].ollama" in answer.err
