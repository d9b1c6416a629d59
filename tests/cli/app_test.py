"""The commands around the main job, as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.shell_completion import ShellComplete

from llamacpp_orchestrator import __version__
from llamacpp_orchestrator import errors
from llamacpp_orchestrator.cli import app as cli
from llamacpp_orchestrator.cli import cache as cli_cache
from llamacpp_orchestrator.commands import doctor
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.util import store
from llamacpp_orchestrator.util.store import Store
from tests.support import ROOT
from tests.support.answer import Answer

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]


def test_help_and_version_import_nothing_heavy(world: Path) -> None:
    code = "import sys; from llamacpp_orchestrator.__main__ import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    for argv in (["--help"], ["--version"], ["run", "-h"]):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
        loaded = set(done.stderr.split())
        assert not loaded & {"git", "huggingface_hub", "requests", "yaml", "rich", "llamacpp_orchestrator.commands.run"}, argv
        assert "orchestrate" in done.stdout
    said = subprocess.run(
        [sys.executable, "-m", "llamacpp_orchestrator", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in said.stdout


@pytest.mark.parametrize("name", ["click", "msgspec", "yaml"])
def test_a_python_path_that_hides_a_library_is_told_as_that(name: str, world: Path) -> None:
    (world / "hidden").mkdir()
    (world / "hidden" / f"{name}.py").write_text("x = 1\n")
    (world / "job.yaml").write_text("version: 1\n")
    for path in (f"{world / 'hidden'}{os.pathsep}{ROOT}", f"{ROOT}{os.pathsep}{world / 'hidden'}"):
        command = (sys.executable, "-m", "llamacpp_orchestrator", "convert", "./m", "--offline")
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr and "bug" not in done.stderr
        assert f"error: Python takes the module {name} from {world / 'hidden' / name}.py" in done.stderr
        assert "hint: start it in another folder, or without PYTHONPATH" in done.stderr


def test_a_module_of_the_users_own_hides_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failure(name: str) -> Exception:
        with pytest.raises(ZeroDivisionError) as caught:
            exec(compile("1 / 0", str(tmp_path / f"{name}.py"), "exec"))
        return caught.value

    assert errors.of_python_path(failure("colorsys")) is None
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert errors.of_python_path(failure("my_own_plugin")) is None
    hidden = errors.of_python_path(failure("colorsys"))
    assert hidden and "the module colorsys from" in hidden.message and "division by zero" in hidden.message


def test_a_run_that_is_up_to_date_imports_nothing_heavy(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    code = "import sys; from llamacpp_orchestrator.__main__ import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, "run", str(file)], capture_output=True, text=True, check=True)
    assert "current" in done.stdout and not {"git", "huggingface_hub", "requests", "rich", "uv"} & set(done.stderr.split())


def test_init_writes_a_job_that_parses_and_never_overwrites(orchestrate: Orchestrate, world: Path) -> None:
    assert orchestrate("init").code == 0
    assert loader.load(world / "job.yaml").models
    answer = orchestrate("init")
    assert answer.code == 2 and "exists already" in answer.err
    assert orchestrate("init", "no/where.yaml").code == 2


def test_schema_describes_the_starter(orchestrate: Orchestrate) -> None:
    schema = orchestrate("schema").json()
    job = schema["$defs"]["Job"]
    assert set(yaml.safe_load(loader.STARTER)) <= set(job["properties"]) and "models" in job["required"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("",), 'MODEL: "" is neither a hub id'),
        (("a/b/c",), 'MODEL: "a/b/c" is neither a hub id'),
        (("https://hf.co/a/b",), 'MODEL: "https://hf.co/a/b" is an address; write a/b\n'),
        (("https://me:pw@hf.co/a/b/tree/v1?x",), 'MODEL: "https://hf.co/a/b/tree/v1" is an address; write a/b@v1\n'),
        (("https://hf.co/a/b/blob/main/x.gguf",), 'MODEL: "https://hf.co/a/b/blob/main/x.gguf" is an address; write a/b\n'),
        (("https://me:pw/x@hf.co/a",), 'MODEL: "https://hf.co/a" is neither a hub id'),
        (("a/b.gguf",), "MODEL: a/b.gguf is a file here, and no hub id\nhint: a GGUF file is converted already"),
        (("./a/b.gguf",), "MODEL: {world}/a/b.gguf is not a folder\nhint: a GGUF file is converted already"),
        (("./file",), "MODEL: {world}/file is not a folder\nhint: name the folder that it lies in"),
        (("./nothing",), "MODEL: {world}/nothing does not exist\nhint: correct the path; it is relative to the current folder"),
        (("a/b", "--lora", "./nothing"), "--lora: {world}/nothing does not exist"),
        (("a/b", "--outtype", "f 16", "--quantize", ","), '--outtype: expected a type such as bf16, found "f 16"\n--quantize: '),
        (("a/b", "--tag", "b1x"), "--tag: expected a release tag"),
        (("a/b", "--override", "x y"), "--override: expected a requirement"),
        (("a/b", "--output", "file"), "--output: {world}/file is not a folder"),
    ],
)
def test_convert_tells_of_options_and_of_no_file(
    asked: tuple[str, ...], said: str, orchestrate: Orchestrate, world: Path
) -> None:
    (world / "file").touch()
    (world / "a").mkdir()
    (world / "a" / "b.gguf").touch()
    answer = orchestrate("convert", *asked)
    assert answer.code == 2 and f"error: {said.format(world=world)}" in answer.err and "orchestrate.yaml" not in answer.err


def test_convert_tells_of_what_a_tag_lacks_as_of_an_option(orchestrate: Orchestrate, data: Path) -> None:
    answer = orchestrate("convert", data / "tiny-llama", "--outtype", "q9_9", "--override", "torch==2.13.0", "--json")
    assert answer.code == 2 and "error: tiny-llama: b11434 has no outtype `q9_9`" in answer.err
    assert answer.json()["error"][0].startswith("tiny-llama: ")


def test_convert_needs_no_job_file(orchestrate: Orchestrate, data: Path, world: Path) -> None:
    model, job = data / "tiny-llama", world / "kept.yaml"
    asked = ("convert", model, "--lora", data / "lora-a", "--outtype", "f16", "--tag", "b11434", "--output", "out")
    asked += ("--override", "torch==2.13.0")
    first = orchestrate(*asked)
    assert first.code == 0, first.err
    assert (world / "out" / "tiny-llama-f16.gguf").is_file() and (world / "out" / "tiny-llama-lora-a-lora-f16.gguf").is_file()
    assert orchestrate(*asked).err.count("current convert") == 2
    assert not list(world.glob("orchestrate*.yaml"))
    assert orchestrate(*asked, "--write-job", job).code == 0
    assert loader.load(job).environment.overrides == ("torch==2.13.0",) and (world / "kept.lock.yaml").is_file()
    again = orchestrate(*asked, "--write-job", job)
    assert again.code == 2 and "exists already" in again.err


def test_a_plan_shows_everything_and_touches_nothing(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "cache"))
    file = job({"source": str(data / "tiny-llama"), "outtype": ["f16", "q8_0"], "loras": [str(data / "lora-a")]})
    answer = orchestrate("plan", file)
    assert answer.code == 0, answer.err
    assert "--outtype q8_0" in answer.out and "convert_lora_to_gguf.py" in answer.out and "free " in answer.out
    assert [path.name for path in world.iterdir()] == ["job.yaml"]
    document = orchestrate("plan", file, "--json").json()
    assert [step["name"] for step in document["steps"]][:2] == ["source", "environment"]
    assert all(need["bytes"] > 0 for need in document["needs"])


def test_an_environment_of_ones_own(orchestrate: Orchestrate, job: Job, data: Path, world: Path, python: Path) -> None:
    venv = python.parents[1]
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"}, environment={"path": str(venv)}, name="own.yaml")
    assert "own     environment" in orchestrate("plan", file).out
    assert orchestrate("run", file).code == 0
    assert json.loads((world / "dist" / "tiny-llama-f16.gguf.receipt.json").read_text())["versions"]["environment"] == "unpinned"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "bare"], check=True)
    answer = orchestrate("run", job(str(data / "tiny-llama"), environment={"path": "bare"}, name="bare.yaml", output="bare-out"))
    assert answer.code in (1, 2) and "lacks" in answer.err and "torch" in answer.err


def test_pins_that_cannot_be_met_are_told_in_uvs_words(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    file = job(str(data / "tiny-llama"), environment={"overrides": ["torch==2.13.0", "numpy==99.0"]})
    answer = orchestrate("run", file)
    assert answer.code == 1 and "numpy" in answer.err and "overrides" in answer.err
    file = job(
        str(data / "tiny-llama"), environment={"python": "3.11", "overrides": ["torch==2.13.0", "tqdm==99.0"]}, name="other.yaml"
    )
    answer = orchestrate("run", file)
    assert answer.code == 1 and "uv says" in answer.err and "tqdm==99.0" in answer.err and "overrides" in answer.err


def test_exec_runs_a_script_of_the_tag(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    file = job(str(data / "tiny-llama"))
    answer = orchestrate("exec", file, "--", "convert_hf_to_gguf.py", "--help")
    assert answer.code == 0 and "--outtype" in answer.out
    assert orchestrate("exec", file, "--", "convert_hf_to_gguf.py", "--help").err == ""  # it says only what the program says
    answer = orchestrate("exec", file, "--", "nothing.py")
    assert answer.code == 2 and "convert_lora_to_gguf.py" in answer.err
    assert orchestrate("exec", file, "--", "llama-cli").code == 1


def test_verify_finds_what_has_changed(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    assert orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16"})).code == 0
    made = world / "dist" / "tiny-llama-f16.gguf"
    assert orchestrate("verify", made, "--json").json() == [{"path": str(made), "complaints": []}]
    raw = bytearray(made.read_bytes())
    raw[-1] ^= 1
    made.write_bytes(raw)
    answer = orchestrate("verify", "dist")
    assert answer.code == 1 and "sha256" in answer.out
    (world / "empty").mkdir()
    assert orchestrate("verify", "empty").code == 2 and orchestrate("verify", "nowhere").code == 2


def test_doctor_looks_at_this_machine(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    answer = orchestrate("doctor", job(str(data / "tiny-llama")))
    assert answer.code == 0 and "uv " in answer.out and "cannot be read" in answer.out
    assert "HF_ENDPOINT" not in answer.out, "a job without the hub does not need it"
    answer = orchestrate("doctor")
    assert answer.code == 0 and "cannot be reached" in answer.out and "HF_ENDPOINT" in answer.out
    names = {line["name"] for line in orchestrate("doctor", "--json").json()}
    assert {"system", "gpu", "uv", "cache", "models", "github"} <= names
    assert "none, as the job says" in orchestrate("doctor", job(str(data / "tiny-llama"), binaries={"backend": "none"})).out


def test_doctor_keeps_a_long_name_apart_from_what_is_said_of_it() -> None:
    assert doctor.Line(name="data/tiny-llama", ok=True, said="5 files").line() == "ok       data/tiny-llama 5 files"


def test_the_cache_can_be_looked_at_and_pruned(orchestrate: Orchestrate, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "cache"))
    assert orchestrate("cache", "dir").out.strip() == str(world / "cache")
    assert orchestrate("cache", "list").out == ""
    entry = world / "cache" / "source" / "k"
    entry.mkdir(parents=True)
    (world / "cache" / "CACHEDIR.TAG").touch()
    (entry / "file").write_bytes(b"12345")
    assert "(incomplete)" in orchestrate("cache", "list").out
    (listed,) = orchestrate("cache", "list", "--json").json()
    assert {"kind": "source", "key": "k", "bytes": 5, "complete": False, "about": ""}.items() <= listed.items()
    assert orchestrate("cache", "prune", "--kind", "sauce", "--yes").code == 2
    assert "5 B freed" in orchestrate("cache", "prune", "--yes").out and not entry.exists()


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["nonsense"], 2),
        (["run"], 2),
        (["run", "missing.yaml"], 2),
        (["run", "missing.yaml", "--json"], 2),
        (["--help"], 0),
        (["lock", "x", "--jobs", "0"], 2),
    ],
)
def test_exit_codes(argv: list[str], code: int, orchestrate: Orchestrate) -> None:
    answer = orchestrate(*argv)
    assert answer.code == code and "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(ZeroDivisionError("oops"), 4, "bug in orchestrate"), (KeyboardInterrupt(), 130, ""), (BrokenPipeError(), 1, "")],
)
def test_what_nobody_expected(
    error: BaseException, code: int, words: str, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **how: Any) -> None:
        raise error

    monkeypatch.setattr(cli_cache, "_store_root", fail)
    answer = orchestrate("cache", "dir")
    assert answer.code == code and words in answer.err


def test_several_jobs_are_one_run(orchestrate: Orchestrate, job: Job, data: Path) -> None:
    good = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    bad = job({"source": str(data / "tiny-llama"), "outtype": "nope"}, name="bad.yaml", output="bad")
    both = orchestrate("run", good, good, "--json")
    assert both.code == 0 and [output["status"] for output in both.json()["outputs"]] == ["built", "current"]
    answer = orchestrate("run", bad, good, "--json")
    assert answer.code == 2 and answer.json()["status"] == "failed"


def test_without_a_job_it_is_the_only_one_of_the_folder(orchestrate: Orchestrate, world: Path, data: Path) -> None:
    answer = orchestrate("plan")
    assert answer.code == 2 and "this folder has none (`orchestrate init` writes one)" in answer.err
    text = f"version: 1\nllama_cpp: {{tag: b11434}}\nmodels: ['{data / 'tiny-llama'}']\nbinaries: {{backend: nonsense}}\n"
    (world / "mine.yaml").write_text(text)
    (world / "mine.lock.yaml").write_text("models: []\n")
    (world / "compose.yaml").write_text("services: {}\n")
    for command in ("plan", "run", "lock", "setup"):
        answer = orchestrate(command)
        assert answer.code == 2 and "mine.yaml is the only one" in answer.err and "mine.yaml:4: binaries.backend" in answer.err
    (world / "other.yml").write_text(text)
    answer = orchestrate("run")
    assert answer.code == 2 and "this folder has several, mine.yaml, other.yml" in answer.err


def test_nothing_is_removed_unasked(orchestrate: Orchestrate, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "cache"))
    store = Store(world / "cache")
    store.ensure("source", "k", lambda folder: None, about="b11434")
    listed = orchestrate("cache", "list").out
    assert "b11434" in listed and listed.splitlines()[-1].startswith("in all")
    assert {"kind": "source", "about": "b11434", "complete": True}.items() <= orchestrate("cache", "list", "--json").json()[
        0
    ].items()
    answer = orchestrate("cache", "prune")
    assert answer.code == 2 and "nothing was removed" in answer.err and "--yes" in answer.err
    assert store.has("source", "k")


@pytest.mark.parametrize(
    ("words", "begin", "expected"),
    [
        ("run", "", {"mine.yaml"}),
        ("convert --quantize", "q4_k", {"Q4_K", "Q4_K_M", "Q4_K_S"}),
        ("convert --outtype", "b", {"bf16"}),
        ("cache prune --kind", "b", {"binaries", "builds", "bundles"}),
    ],
)
def test_a_shell_completes_jobs_types_and_kinds(
    words: str, begin: str, expected: set[str], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    (world / "mine.yaml").write_text("models: []\n")
    (world / "other.yaml").write_text("services: {}\n")
    completion = ShellComplete(cli.orchestrate, {}, "orchestrate", "_ORCHESTRATE_COMPLETE")
    assert {item.value for item in completion.get_completions(words.split(), begin)} == expected


def test_help_shows_whole_sentences(orchestrate: Orchestrate) -> None:
    commands = orchestrate("-h").out.partition("Commands:")[2]
    assert "exec" in commands and "..." not in commands


@pytest.mark.parametrize(
    ("command", "shown", "idle"),
    [
        ("lock", "--locked", "--jobs"),
        ("plan", "--force", "--keep-going"),
        ("doctor", "--json", "--verbose"),
        ("verify", "--quiet", "--no-progress"),
    ],
)
def test_options_are_shown_where_they_mean_something(command: str, shown: str, idle: str, orchestrate: Orchestrate) -> None:
    text = orchestrate(command, "-h").out
    assert shown in text and idle not in text


def test_quiet_says_only_what_fails(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    assert orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16"})).code == 0
    assert orchestrate("verify", "dist", "-q").out == "" and "ok" in orchestrate("verify", "dist").out
    (world / "dist" / "tiny-llama-f16.gguf").write_bytes(b"GGUF")
    assert "failed" in orchestrate("verify", "dist", "-q").out


def test_doctor_looks_into_the_folders_of_a_job(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    shutil.copytree(data / "tiny-llama", world / "model")
    file = job("./model")
    assert "ok       ./model       a folder with a model" in orchestrate("doctor", file).out
    (world / "model" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    told, failed = orchestrate("doctor", file), orchestrate("run", file)
    assert told.code == failed.code == 1 and "git lfs pull" in told.out and "git lfs pull" in failed.err
    assert "./model" in told.err and not list(world.glob("*.lock.yaml"))


def test_the_help_of_prune_names_every_kind_and_imports_nothing_for_it(orchestrate: Orchestrate) -> None:
    helped = " ".join(orchestrate("cache", "prune", "--help").out.split())
    assert f"Only of this kind: {', '.join(store.PRUNED)}." in helped
    heavy = "{'msgspec', 'yaml', 'requests', 'rich'}"
    code = f"import sys; from llamacpp_orchestrator.cli import app; print(sorted({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
