"""The result of a run with nothing to do, kept: when it is told once more, and all that makes a run look again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator import last_result
from llamacpp_orchestrator.commands import up_to_date
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from tests.support.answer import Answer

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
CODE = "import sys; from llamacpp_orchestrator.__main__ import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
OUTPUT = "dist/tiny-llama-f16.gguf"


@pytest.fixture()
def kept(
    orchestrate: Orchestrate,
    job: Job,
    copy: Callable[..., Path],
    data: Path,
    once: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A finished job whose result is kept, in a world in which everything has rested at once."""
    model = copy("tiny-llama", "tiny-llama")
    lora = {"source": str(data / "lora-a"), "name": "a"}
    file = job({"source": f"./{model.name}", "outtype": "f16", "loras": [lora]})
    once("kept", lambda: orchestrate("run", file))
    monkeypatch.setattr(last_result, "RESTED_SECONDS", -3600.0)
    assert orchestrate("run", file).code == 0
    return file


@pytest.fixture()
def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """How often jobs were looked at."""
    seen: list[object] = []
    look = up_to_date.finished
    monkeypatch.setattr(up_to_date, "finished", lambda *given: seen.append(given) or look(*given))
    return seen


def test_what_is_kept_is_told_as_before_and_nothing_is_read_for_it(
    kept: Path, orchestrate: Orchestrate, looks: list[object]
) -> None:
    lines, data = orchestrate("run", kept), orchestrate("run", kept, "--json")
    assert not looks
    Path(last_result.question([str(kept)], {}, os.environ).file).unlink()
    first = orchestrate("run", kept)
    assert looks and (lines.out, lines.err, lines.code) == (first.out, first.err, first.code)
    again = orchestrate("run", kept, "--json").json()
    assert {**data.json(), "seconds": 0} == {**again, "seconds": 0} and len(again["outputs"]) == 2
    assert orchestrate("run", kept, "--quiet").err == ""


def test_what_is_kept_loads_next_to_nothing(kept: Path, orchestrate: Orchestrate) -> None:
    # Who measures coverage loads much into every Python that is started.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    words = [sys.executable, "-c", CODE, "run", str(kept)]
    said = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    loaded = set(said.stderr.split())
    assert said.stdout.count("current") == 2
    assert not {"yaml", "platformdirs", "pathlib", "shutil", "llamacpp_orchestrator.job.loader"} & loaded


def rewrite(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def replace(path: Path) -> None:
    """Another file of the same bytes and times in a file's place, as a backup leaves it."""
    shutil.copy2(path, path.with_name("other"))
    path.with_name("other").replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "the job": lambda file: rewrite(file, "\n"),
    "the lock": lambda file: rewrite(file.with_name(f"{file.stem}.lock.yaml"), "\n"),
    "a source": lambda file: rewrite(file.parent / "tiny-llama" / "config.json", "\n"),
    "another file of a source": lambda file: (file.parent / "tiny-llama" / "vocab.txt").write_text("x"),
    "a folder in a source": lambda file: (file.parent / "tiny-llama" / "1_Dense").mkdir(),
    "an output is gone": lambda file: (file.parent / OUTPUT).unlink(),
    "an output was touched": lambda file: (file.parent / OUTPUT).touch(),
    "an output was replaced": lambda file: replace(file.parent / OUTPUT),
    "a receipt": lambda file: rewrite(pipeline_receipt.receipt_path(file.parent / OUTPUT), "\n"),
    "the settings": lambda file: rewrite(Path(os.environ["ORCHESTRATE_CONFIG"]), "# one more word\n"),
    "a variable": lambda file: os.environ.update(PIP_INDEX_URL="http://127.0.0.1:9/simple"),
    "a proxy": lambda file: os.environ.update(https_proxy="http://127.0.0.1:9"),
    "the folder that one is in": lambda file: os.chdir(file.parent / "dist"),
    "the kept result is damaged": lambda file: rewrite(
        Path(last_result.question([str(file)], {}, os.environ).file), "}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_has_changed_is_looked_at(
    kept: Path, orchestrate: Orchestrate, looks: list[object], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_INDEX_URL", "https_proxy"):  # set and deleted, so that they are put back behind the test
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    assert orchestrate("run", kept, "--quiet").code == 0 and not looks
    CHANGES[change](kept)
    orchestrate("run", kept, "--quiet")
    assert looks


@pytest.mark.parametrize("flags", [("--locked",), ("--offline",), ("--jobs", "3"), ("--memory", "9G")], ids=" ".join)
def test_who_asks_otherwise_is_answered_by_a_look(
    kept: Path, orchestrate: Orchestrate, looks: list[object], flags: tuple[str, ...]
) -> None:
    assert orchestrate("run", kept, *flags).code == 0 and len(looks) == 1
    assert orchestrate("run", kept, kept, *flags).code == 0 and len(looks) == 3


def test_what_has_not_rested_is_not_kept(kept: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(last_result.question([str(kept)], {}, os.environ).file)
    monkeypatch.setattr(last_result, "RESTED_SECONDS", 3600.0)
    file.unlink()
    assert orchestrate("run", kept).code == 0 and not file.exists()
    monkeypatch.setattr(last_result, "RESTED_SECONDS", -3600.0)
    assert orchestrate("run", kept).code == 0 and json.loads(file.read_text(encoding="utf-8"))["outputs"]


def test_a_note_is_told_on_every_run(kept: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        monkeypatch.setenv("ORCHESTRATE_CASH_DIR", "x")
        assert "ORCHESTRATE_CASH_DIR means nothing here" in orchestrate("run", kept).err


def test_a_cache_that_only_the_settings_know_keeps_none(
    kept: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ORCHESTRATE_CACHE_DIR")
    Path(os.environ["ORCHESTRATE_CONFIG"]).write_text(f"cache_dir: {tmp_path / 'moved'}\n", encoding="utf-8")
    assert orchestrate("run", kept, "--offline").code == 0
    assert not list((tmp_path / "moved" / "memo").glob("run-*")) and not (tmp_path / "xdg").exists()


def test_a_cache_that_cannot_be_written_to_is_no_failure(
    kept: Path, orchestrate: Orchestrate, looks: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(last_result.question([str(kept)], {}, os.environ).file)
    file.unlink()
    file.mkdir()
    for _ in range(2):
        assert orchestrate("run", kept).code == 0
    assert len(looks) == 2
    file.rmdir()


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_cache_is_where_the_settings_have_it(system: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llamacpp_orchestrator.system import settings

    monkeypatch.setattr(last_result.sys, "platform", system)
    for environ in ({}, {"XDG_CACHE_HOME": str(tmp_path)}, {"ORCHESTRATE_CACHE_DIR": "~/x"}, {"ORCHESTRATE_CACHE_DIR": "x"}):
        for name in ("XDG_CACHE_HOME", "ORCHESTRATE_CACHE_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert last_result.question(["job.yaml"], {}, os.environ).cache == str(settings.load(os.environ).cache)
