"""`orchestrate report`: what the page of a real job says before it ran, when all went well, when a model failed, and later."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.commands import execution
from llamacpp_orchestrator.commands import report
from llamacpp_orchestrator.commands import run as commands_run
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.export import quality_report
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.report import run_record
from llamacpp_orchestrator.report.run_record import RunRecord
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.store import machine
from tests.support import pages
from tests.support.answer import Answer

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Copy = Callable[..., Path]


def of(data: Path, name: str = "tiny-llama") -> dict[str, object]:
    return {"source": str(data / name), "outtype": "f16", "loras": [{"source": str(data / "lora-a"), "name": "a"}]}


@pytest.fixture
def finished(orchestrate: Orchestrate, job: Job, data: Path, once: Callable[..., None], world: Path) -> Path:
    once("report", lambda: orchestrate("run", job(of(data))))
    return world / "job.yaml"


def record_of(file: Path) -> RunRecord:
    record = run_record.read(execution.log_place(cli_options.load(file, {}, folders=False)) / run_record.NAME)
    assert record
    return record


def statuses(text: str) -> dict[str, str]:
    return dict(re.findall(r'<td class="name">([^<]+)</td>\n<td data-label="status"><span class="status (\w+)">', text))


def test_a_job_that_was_never_run(orchestrate: Orchestrate, job: Job, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "cache"))
    file = job({"source": "./not-here", "outtype": "f16"}, "org/m")
    answer = orchestrate("report", file)
    text = (world / "job-report.html").read_text(encoding="utf-8")
    assert answer.code == 0 and str(world / "job-report.html") in answer.out, answer.err
    assert "This job has never been run on this machine." in text
    assert statuses(text) == {"not-here-f16.gguf": "missing", "m-bf16.gguf": "missing"}
    assert sorted(path.name for path in world.iterdir()) == ["job-report.html", "job.yaml"], "nothing else is made"


def test_a_finished_job_is_told_without_a_folder_of_this_machine(
    finished: Path, orchestrate: Orchestrate, world: Path, data: Path, shared_cache: Path
) -> None:
    answer = orchestrate("report", finished, "-o", "page.html", "--json")
    page = world / "page.html"
    text = page.read_text(encoding="utf-8")
    assert answer.json() == {"path": str(page), "size": page.stat().st_size}
    assert statuses(text) == {"tiny-llama-f16.gguf": "current", "tiny-llama-a-lora-f16.gguf": "current"}
    assert '<td class="number" data-label="bits per weight">16.00</td>' in text and "b11434" in text
    assert "<h3>tiny-llama</h3>" in text and "<h3>lora-a</h3>" in text, "a folder goes by its name"
    for place in (world, data, shared_cache, Path.home()):
        assert str(place) not in text
    again = world / "again.html"
    assert orchestrate("report", finished, "-o", again).code == 0
    assert again.read_bytes() == page.read_bytes(), "the same state gives the same page"


def test_what_has_changed_since(finished: Path, orchestrate: Orchestrate, world: Path) -> None:
    shutil.copy(finished, world / "kept")
    (world / "dist" / "tiny-llama-f16.gguf").write_bytes(b"GGUF, but cut")
    (world / "dist" / "tiny-llama-a-lora-f16.gguf").unlink()
    finished.write_text(finished.read_text() + "- ./other\n")
    assert orchestrate("report", finished).code == 0
    text = (world / "job-report.html").read_text(encoding="utf-8")
    changed = {"tiny-llama-f16.gguf": "stale", "tiny-llama-a-lora-f16.gguf": "missing", "other-bf16.gguf": "missing"}
    assert statuses(text) == changed and "the lock does not fit the job: ./other: not locked as it is asked for" in text
    finished.write_text((world / "kept").read_text().replace("b11434", "b10000"))
    assert orchestrate("report", finished).code == 0
    text = (world / "job-report.html").read_text(encoding="utf-8")
    assert "the lock does not fit the job: llama_cpp: locked b11434" in text and "current" not in statuses(text).values()


def test_a_folder_that_no_longer_holds_what_was_locked_is_told(
    orchestrate: Orchestrate, job: Job, copy: Copy, world: Path
) -> None:
    copy("tiny-llama")
    file = job({"source": "./model", "outtype": "f16"}, binaries={"backend": "none"})
    assert orchestrate("lock", file).code == 0
    (world / "model" / "config.json").write_text("{}")
    for said in ("config.json has changed since it was locked", "model"):
        assert orchestrate("report", file).code == 0
        text = (world / "job-report.html").read_text(encoding="utf-8")
        (notice,) = [line for line in re.findall(r'<p class="notice">(.*?)</p>', text) if "never been run" not in line]
        assert said in notice and str(world) not in notice
        shutil.rmtree(world / "model", ignore_errors=True)


def test_the_failure_of_one_model_leaves_the_others_current(
    orchestrate: Orchestrate, job: Job, copy: Copy, data: Path, world: Path
) -> None:
    bad = copy("tiny-llama", "bad")
    (bad / "tokenizer.model").write_bytes(b"\x00 no vocabulary")
    file = job(of(data), {"source": "./bad", "outtype": "f16"}, binaries={"backend": "none"})
    assert orchestrate("run", file, "--keep-going").code == 1
    record = record_of(file)
    steps = {step.name: step for step in record.steps}
    assert record.status == "failed" and steps["convert bad-f16.gguf"].status == "failed"
    good = steps["convert tiny-llama-f16.gguf"]
    assert good.status == "done" and good.memory > 0 and good.log == "convert-tiny-llama-f16.gguf.log"
    assert 0 < good.begin <= record.seconds and 0 < good.seconds <= record.seconds and record.largest > 0
    assert orchestrate("report", file).code == 0
    text = (world / "job-report.html").read_text(encoding="utf-8")
    assert statuses(text)["tiny-llama-f16.gguf"] == "current" and statuses(text)["bad-f16.gguf"] == "missing"
    assert "Failures of the last run" in text and "The end of its log:" in text and str(world) not in text
    # A run with nothing to do knows nothing new.
    job(of(data), binaries={"backend": "none"})
    assert orchestrate("run", file).code == 0
    assert record_of(file) == record


def test_a_run_that_is_stopped_or_refused_is_recorded(
    finished: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commands_run, "_make", stop)
        assert orchestrate("run", finished, "--force").code == 130
    assert record_of(finished).status == "stopped"
    (finished.parent / "dist" / "tiny-llama-f16.gguf").write_bytes(b"mine")
    assert orchestrate("run", finished).code == 2
    record = record_of(finished)
    assert record.status == "failed" and "was changed after orchestrate made it" in record.error[0]
    assert orchestrate("report", finished).code == 0
    text = (finished.parent / "job-report.html").read_text(encoding="utf-8")
    assert "the run itself" in text and "{output}/tiny-llama-f16.gguf was changed after" in text


def test_an_output_that_is_made_again_aside_is_no_run_of_the_job(finished: Path, orchestrate: Orchestrate) -> None:
    left = execution.log_folder(cli_options.load(finished, {})) / f".{machine()}.{2**22 + 1}.{'0' * 12}.new"
    left.touch()
    assert orchestrate("run", finished, "--force").code == 0
    assert not left.exists(), "what a killed run had begun to write is swept"
    before = record_of(finished)
    assert orchestrate("reproduce", "dist/tiny-llama-a-lora-f16.gguf").code == 0
    assert record_of(finished) == before


def test_numbers_on_quality_hold_for_the_files_the_text_and_the_tag_that_they_are_of(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    def numbers() -> dict[str, str]:
        assert orchestrate("report", file).code == 0
        text = (world / "job-report.html").read_text(encoding="utf-8")
        row = r'<td class="name">([^<]+)</td>\n<td data-label="type">(?:.*\n){6}<td data-label="status"><span class="status (\w+)'
        assert len(re.findall("<svg", text)) == 2
        return dict(re.findall(row, text))

    (world / "text.txt").write_text("some words")
    model = of(data) | {"quantize": ["Q8_0", "Q4_0"], "quality": "text.txt"}
    file = job(model, binaries={"backend": "source"})
    assert orchestrate("lock", file).code == 0
    context = cli_options.load(file, {})
    lock = lock_file.read(lock_file.path_for(file))
    assert lock
    pinned = PinnedJob(context, lock)
    (work,) = quality_report.find(pinned, pipeline_build.outputs(pinned).builds)
    keys = [quality_report.row_key(pinned, work, work.base), "of another file", "of a third"]
    rows = [msgspec.structs.replace(row, key=key) for row, key in zip(pages.measures(), keys, strict=False)]
    known = quality_report.Report(
        made_by=quality_report.MAKER,
        format=1,
        model="tiny-llama",
        tag="b11434",
        text="text.txt",
        text_sha256=pages.DIGEST,
        command=(),
        unquantized=rows[0],
        types=tuple(rows[1:]),
    )
    work.path.parent.mkdir()
    work.path.write_bytes(msgspec.json.encode(known))
    assert numbers() == {"base-bf16.gguf": "current", "base-Q2_K.gguf": "stale", "base-Q4_0.gguf": "stale"}
    (world / "text.txt").unlink()
    assert set(numbers().values()) == {"stale"}
    (world / "text.txt").write_text("some words")
    assert "current" in numbers().values()
    file.write_text(file.read_text().replace("b11434", "b10000"))
    assert set(numbers().values()) == {"stale"}
    work.path.write_text("{}")
    assert orchestrate("report", file).code == 0
    assert "<h2>Quality</h2>" not in (world / "job-report.html").read_text(encoding="utf-8")


def test_only_a_page_of_ours_is_replaced(orchestrate: Orchestrate, job: Job, world: Path) -> None:
    file, page = job("org/m"), world / "job-report.html"
    page.write_text("<!doctype html>\nmine")
    answer = orchestrate("report", file)
    assert answer.code == 2 and "exists already" in answer.err and "--force" in answer.err
    assert page.read_text() == "<!doctype html>\nmine"
    for _ in range(2):
        assert orchestrate("report", file, "--force").code == 0 and report.is_ours(page)
    assert orchestrate("report", file).code == 0
    assert orchestrate("report", file, "-o", world).code == 2
    assert orchestrate("report", file, "-o", "no/where.html").code == 2


def test_a_record_that_cannot_be_kept_fails_no_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, kind: str) -> Path:
        if kind == "logs":
            raise OSError(28, "No space left on device", "run.json")
        return real(self, kind)

    real, shown = Store.folder, list[Event]()
    monkeypatch.setattr(Store, "folder", full)
    result = commands_run.run_all([cli_options.load(finished, {})], Options(), shown.append)
    assert result.status == "ok" and "will not know of this run" in shown[-1].text
