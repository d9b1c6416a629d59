"""From a job to Modelfiles and on to Ollama: the real driver, the real script, and a stand-in for the program."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator import ollama
from tests.conftest import ROOT
from tests.conftest import Answer

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Copy = Callable[..., Path]
Install = Callable[..., Path]


def chatting(model: Path, family: str = "zephyr") -> Path:
    config = json.loads((model / "tokenizer_config.json").read_text())
    template = (ROOT / "tests" / "chats" / f"{family}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return model


@pytest.fixture
def install(world: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A program `ollama` on PATH that keeps what it was called with, says a line and ends with a code."""

    def write(said: str = "success", code: int = 0) -> Path:
        folder, calls = world / "bin", world / "calls.txt"
        folder.mkdir(exist_ok=True)
        script = folder / "ollama.py"
        script.write_text(
            "import json, os, sys\n"
            f"open({str(calls)!r}, 'a').write(json.dumps([sys.argv[1:], os.getcwd(), sorted(os.environ)]) + '\\n')\n"
            f"print({said!r})\nsys.exit({code})\n"
        )
        if os.name == "nt":
            (folder / "ollama.bat").write_text(f'@"{sys.executable}" "{script}" %*\n')
        else:
            (folder / "ollama").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
            (folder / "ollama").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return calls

    return write


def steps(answer: Answer) -> dict[str, str]:
    return {step["name"]: step["status"] for step in answer.json()["steps"]}


def test_modelfiles_lie_beside_the_outputs_and_are_written_once(
    orchestrate: Orchestrate, job: Job, copy: Copy, data: Path, world: Path
) -> None:
    chatting(copy("tiny-llama", "My Model"))
    file = job({"source": "./My Model", "outtype": ["f16", "q8_0"], "ollama": True, "loras": [str(data / "lora-a")]})
    plan = orchestrate("plan", file)
    assert "run     modelfile My Model-f16.Modelfile: my-model-" in plan.out
    answer = orchestrate("run", file, "--json")
    assert answer.code == 0, answer.err
    dist = world / "dist"
    assert sorted(path.name for path in dist.glob("*.Modelfile")) == [
        "My Model-f16.Modelfile",
        "My Model-lora-a-lora-f16.Modelfile",
        "My Model-q8_0.Modelfile",
    ]
    text = (dist / "My Model-q8_0.Modelfile").read_text(encoding="utf-8")
    assert "\nFROM ./My Model-q8_0.gguf\nTEMPLATE " in text and 'PARAMETER stop "</s>"' in text
    adapter = (dist / "My Model-lora-a-lora-f16.Modelfile").read_text(encoding="utf-8")
    assert "\nFROM ./My Model-f16.gguf\nADAPTER ./My Model-lora-a-lora-f16.gguf\nTEMPLATE " in adapter
    assert "0.34.1" in adapter and "0.34.1" not in text
    handed = answer.json()["ollama"]
    assert [each["template"] for each in handed] == [True] * 3 and handed[0]["name"].startswith("my-model-f16-")
    assert handed[0]["create"].startswith(f"ollama create {handed[0]['name']} -f ")
    assert handed[0]["run"] == f"ollama run {handed[0]['name']}"
    before = (dist / "My Model-q8_0.Modelfile").stat().st_mtime_ns
    again = orchestrate("run", file)
    assert again.code == 0 and "current modelfile My Model-f16.Modelfile" in again.err
    assert "ollama  ollama create my-model-q8_0-" in again.out and (dist / "My Model-q8_0.Modelfile").stat().st_mtime_ns == before
    assert "current modelfile My Model-f16.Modelfile" in orchestrate("plan", file).out


def test_a_finished_job_starts_no_python_for_its_modelfiles(
    orchestrate: Orchestrate, job: Job, copy: Copy, world: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chatting(copy("tiny-llama"))
    file = job({"source": "./model", "outtype": "f16"})
    assert orchestrate("run", file).code == 0 and not list(world.rglob("*.Modelfile"))
    file = job({"source": "./model", "outtype": "f16", "ollama": True})
    answer = orchestrate("run", file, "--json")
    assert steps(answer) == {"convert model-f16.gguf": "current", "modelfile model-f16.Modelfile": "done"}
    (world / "dist" / "model-f16.Modelfile").unlink()
    monkeypatch.setattr("llamacpp_orchestrator.build.python", lambda work, lock: world / "no" / "python")
    assert steps(orchestrate("run", file, "--json"))["modelfile model-f16.Modelfile"] == "done"
    shutil.rmtree(shared_cache / "chats")
    failed = orchestrate("run", file)
    assert failed.code == 1 and "the chat template of model could not be looked at" in failed.err and "hint: " in failed.err


def test_a_name_that_a_modelfile_cannot_hold_is_told_before_the_work(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "name": "a\u3000b", "outtype": "f16", "ollama": True}
    answer = orchestrate("run", job(model))
    assert answer.code == 2 and "Ollama cannot read the file name 'a\\u3000b-f16.gguf'" in answer.err
    assert not (world / "dist").exists()


def test_a_base_model_and_a_template_out_of_reach_are_said(orchestrate: Orchestrate, job: Job, copy: Copy, world: Path) -> None:
    chatting(copy("tiny-llama", "dated"), "llama3.2")
    copy("tiny-llama", "base")
    models = [{"source": f"./{name}", "outtype": "f16", "ollama": True} for name in ("dated", "base")]
    answer = orchestrate("run", job(*models), "--json")
    assert answer.code == 0, answer.err
    assert "note: dated-f16.Modelfile has no TEMPLATE: the source's chat template cannot be expressed" in answer.err
    assert "note: base-f16.Modelfile has no TEMPLATE: the source has no chat template" in answer.err
    assert ["depends on the date" in each["reason"] for each in answer.json()["ollama"]] == [True, False]
    text = (world / "dist" / "dated-f16.Modelfile").read_text(encoding="utf-8")
    assert "# No TEMPLATE: the source's chat template" in text and "\nTEMPLATE" not in text


def test_a_tokenizer_that_wants_code_is_not_run(orchestrate: Orchestrate, job: Job, copy: Copy, world: Path) -> None:
    model = copy("tiny-llama")
    config = json.loads((model / "tokenizer_config.json").read_text())
    own = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (model / "tokenizer_config.json").write_text(json.dumps(config | own))
    (model / "evil.py").write_text(f"open({str(world / 'EVIL')!r}, 'w')\nclass Evil: pass\n")
    answer = orchestrate("run", job({"source": "./model", "outtype": "f16", "ollama": True, "trust_remote_code": True}))
    assert "Traceback" not in answer.err
    if answer.code == 0:
        assert "the tokenizer cannot be loaded" in answer.err


def test_a_modelfile_of_the_user_is_never_overwritten(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16", "ollama": True})
    mine = world / "dist" / "tiny-llama-f16.Modelfile"
    mine.parent.mkdir()
    mine.write_text("FROM mine\n")
    answer = orchestrate("run", file)
    assert answer.code == 2 and "orchestrate did not write it" in answer.err and mine.read_text() == "FROM mine\n"
    assert not list(mine.parent.glob("*.gguf"))
    assert orchestrate("run", file, "--force").code == 0 and mine.read_text().startswith(ollama.MARK)
    mine.write_text(ollama.MARK + "\nFROM old\n")
    assert orchestrate("run", file).code == 0 and "FROM old" not in mine.read_text()


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
        "ollama tiny-llama-f16",
        "ollama tiny-llama-f32",
    ]
    seen = [json.loads(line) for line in calls.read_text().splitlines()]
    assert sorted(argv for argv, _, _ in seen) == [
        ["create", f"tiny-llama-{kind}", "-f", str(world / "dist" / f"tiny-llama-{kind}.Modelfile")] for kind in ("f16", "f32")
    ]
    assert all(where == str(world / "dist") and "OLLAMA_HOST" in names and "HF_TOKEN" not in names for _, where, names in seen)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("Error: could not connect to ollama app, is it running?", "ollama serve"),
        ("Error: LoRA adapters are no longer supported", "before 0.34.1"),
        ("Error: something else", "see the log"),
    ],
)
def test_what_ollama_refuses_is_explained(
    said: str, hint: str, orchestrate: Orchestrate, job: Job, data: Path, install: Install
) -> None:
    install(said, 1)
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


def test_ollama_wants_a_file_of_the_model(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    model: dict[str, Any] = {"source": str(data / "tiny-llama"), "outtype": "none", "loras": [str(data / "lora-a")]}
    answer = orchestrate("run", job(model | {"ollama": True}))
    assert answer.code == 2 and "models[0].ollama" in answer.err
