"""What the documents say exists, and both languages say the same."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from llamacpp_orchestrator import __version__
from llamacpp_orchestrator.cli import app as cli
from llamacpp_orchestrator.job import by_option
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.system import settings
from tests.support import ROOT

READMES = ("README.md", "README.zh-CN.md")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml") if not path.name.endswith(".lock.yaml"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[str]:
    """The code blocks without their comments, which are in the reader's language."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", text(name), re.MULTILINE | re.DOTALL)
    return [language + "\n" + re.sub(r"[ \t]*#.*", "", code) for language, code in found]


def prose(name: str) -> str:
    return re.sub(r"^```.*?^```", "", text(name), flags=re.MULTILINE | re.DOTALL)


def code_of(name: str) -> str:
    """All that is marked as code, in blocks or within a sentence."""
    return "\n".join([*blocks(name), *re.findall(r"`([^`\n]+)`", prose(name))])


def commands(group: click.Group, above: str = "") -> dict[str, click.Command]:
    """Every command by its words: "cache list"."""
    found = {}
    for name, command in group.commands.items():
        found[f"{above}{name}"] = command
        if isinstance(command, click.Group):
            found |= commands(command, f"{above}{name} ")
    return found


def options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts} | {"-h", "--help"}


def test_the_readmes_are_twins() -> None:
    english, chinese = READMES
    headings = [re.findall(r"^(#+) ", prose(name), re.MULTILINE) for name in READMES]
    assert headings[0] == headings[1]
    assert blocks(english) == blocks(chinese)
    assert len(re.findall(r"^- ", prose(english), re.MULTILINE)) == len(re.findall(r"^- ", prose(chinese), re.MULTILINE))


def test_the_readmes_have_the_same_tables() -> None:
    cells = [re.findall(r"^\| (`.*?`) \|(?: (`[^|]*`) \|)?", prose(name), re.MULTILINE) for name in READMES]
    assert len(cells[0]) > 20
    assert cells[0] == cells[1]


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md"])
def test_every_make_target_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    named = {word for line in re.findall(r"\bmake ((?:[a-z]+ ?)+)", code_of(name)) for word in line.split()}
    assert {"demo", "test"} <= named <= targets


def test_make_help_lists_the_targets() -> None:
    makefile = text("Makefile")
    listed = set(re.findall(r"^([a-z]+):.*## \S", makefile, re.MULTILINE))
    assert listed == {"help", "demo", "convert", "test", "lint", "bench", "growth", "crash", "fuzz", "matrix", "clean"}


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md"])
def test_every_command_exists(name: str) -> None:
    known = commands(cli.orchestrate)
    named = set(re.findall(r"\borchestrate ([a-z]+)", code_of(name)))
    assert named
    assert named <= known.keys()


def test_the_readme_names_every_command() -> None:
    named = set(re.findall(r"^\| `orchestrate ([a-z]+)", text("README.md"), re.MULTILINE))
    assert named == {name for name, command in cli.orchestrate.commands.items() if not command.hidden}
    cache = re.search(r"`orchestrate cache ([a-z]+)`, `([a-z]+)`, `([a-z]+)`", text("README.md"))
    assert cache
    assert {f"cache {word}" for word in cache.groups()} == {
        word for word in commands(cli.orchestrate) if word.startswith("cache ")
    }


@pytest.mark.parametrize("name", READMES)
def test_every_option_exists(name: str) -> None:
    known = commands(cli.orchestrate)
    called = re.findall(r"\borchestrate ([a-z]+)(.*)", "\n".join(blocks(name)))
    assert called
    for command, rest in called:
        assert set(re.findall(r" (--[a-z-]+)", rest.split(" -- ")[0])) <= options(known[command]), command
    mentioned = set(re.findall(r"`(--[a-z-]+)", prose(name)))
    assert mentioned <= {option for command in known.values() for option in options(command)}


@pytest.mark.parametrize("name", READMES)
def test_the_table_of_settings_has_every_key(name: str) -> None:
    rows = re.findall(r"^\| (`[A-Z].*?`) \| `(\w+)` \|", prose(name), re.MULTILINE)
    assert {key for _, key in rows} == set(settings.Config.__struct_fields__)
    source = Path(settings.__file__).read_text(encoding="utf-8")
    for variables, _ in rows:
        assert all(re.search(rf"\b{variable}\b", source) for variable in re.findall(r"`(\w+)`", variables)), variables


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_jobs(name: str) -> None:
    path = ROOT / "configs" / name
    assert loader.parse(path.read_bytes(), path).models


def test_the_full_config_has_every_key() -> None:
    job = yaml.safe_load(text("configs/full.yaml"))
    model = job["models"][0]
    for said, record in (
        (job, spec.Job),
        (job["publish"], spec.Publish),
        (job["llama_cpp"], spec.LlamaCpp),
        (job["binaries"], spec.Binaries),
        (job["environment"], spec.Environment),
        (model, spec.Model),
        (model["loras"][0], spec.Lora),
        (model["merge"][0], spec.Merge),
        (model["quality"], spec.Quality),
        (model["imatrix"] | {"file": "instead of text"}, spec.Imatrix),
    ):
        assert said.keys() == set(record.__struct_fields__)


@pytest.mark.parametrize("name", READMES)
def test_the_jobs_in_the_readme_are_such_and_make_the_files_named(name: str) -> None:
    jobs = [block.removeprefix("yaml\n") for block in blocks(name) if block.startswith("yaml\n")]
    assert len(jobs) == 2
    parsed = [loader.parse(job.encode(), ROOT / "job.yaml") for job in jobs]
    made = {output.path.name for job in parsed for output in layout.outputs(job, ROOT)}
    for model, outtype in re.findall(r"^orchestrate convert (\S+) --outtype (\S+)", "\n".join(blocks(name)), re.MULTILINE):
        written = by_option.job_text(by_option.Typed(model=model, outtypes=(outtype,)), ROOT)
        made |= {output.path.name for output in layout.outputs(loader.parse(written.encode(), ROOT / "job.yaml"), ROOT)}
    named = set(re.findall(r"dist/(\S+\.gguf)", "\n".join(blocks(name))))
    assert named
    assert named <= made


def test_the_demo_says_what_it_makes() -> None:
    path = ROOT / "configs" / "demo.yaml"
    job = loader.parse(path.read_bytes(), path)
    made = {output.path.relative_to(ROOT).as_posix() for output in layout.outputs(job, path.parent)}
    assert made == set(re.findall(r"\.demo/out/\S+\.gguf", text("README.md")))


def test_the_changelog_knows_this_version() -> None:
    assert f"\n## {__version__}\n" in text("CHANGELOG.md")
