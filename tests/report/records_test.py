"""What the page shows, out of receipts and the record of a run."""

from __future__ import annotations

import ntpath
from pathlib import Path

import pytest

from llamacpp_orchestrator.job.spec import Merge
from llamacpp_orchestrator.pipeline.receipt import Input
from llamacpp_orchestrator.report import records
from llamacpp_orchestrator.report.records import Failure
from llamacpp_orchestrator.report.run_record import StepRecord
from tests.support import ROOT
from tests.support import pages

DIST = ROOT / "dist"


def test_each_file_of_an_output_is_a_row() -> None:
    split = pages.product("sub/m.gguf")
    parts = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "notes.json")
    split = records.Product(output=split.output, receipt=pages.receipt("m.gguf", *parts), status="stale", bits=4.5)
    rows = records.file_rows([split, pages.product("gone.gguf", "missing")], DIST)
    assert [(row.name, row.status, row.size, row.bits) for row in rows] == [
        ("sub/m-00001-of-00002.gguf", "stale", 9_059_776, 4.5),
        ("sub/m-00002-of-00002.gguf", "stale", 9_059_776, 4.5),
        ("sub/notes.json", "stale", 9_059_776, 0.0),
        ("gone.gguf", "missing", 0, 0.0),
    ]
    assert rows[0].levels == ("structure", "content", "load") and rows[0].sha256 == pages.DIGEST and not rows[3].levels


def test_a_file_on_another_drive_has_its_bare_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.relpath", ntpath.relpath)
    assert records.relative(Path("D:/out/m.gguf"), Path("C:/dist")) == "m.gguf"


def step(name: str, status: str, begin: float, seconds: float) -> StepRecord:
    return StepRecord(name=name, status=status, begin=begin, seconds=seconds)


@pytest.mark.parametrize(
    ("steps", "seconds", "expected"),
    [
        ((step("a", "done", 0, 5), step("b", "failed", 5, 5)), 10.0, [("a", 0, 50), ("b", 50, 50)]),
        ((step("a", "current", 0, 5), step("b", "blocked", 0, 0), step("c", "stopped", 5, 5)), 20.0, [("c", 25, 25)]),
        # What took a moment is still seen, and nothing stands out at the end, whatever the record says.
        ((step("a", "done", 0, 0), step("b", "done", 10, 0)), 10.0, [("a", 0, 0.3), ("b", 99.7, 0.3)]),
        ((step("a", "done", 0, 30),), 10.0, [("a", 0, 100)]),
        ((step("a", "done", 0, 0),), 0.0, [("a", 0, 0.3)]),
        ((), 0.0, []),
    ],
)
def test_the_timeline(steps: tuple[StepRecord, ...], seconds: float, expected: list[tuple[str, float, float]]) -> None:
    timeline = records.bars(pages.run(*steps, seconds=seconds))
    assert [(bar.step.name, bar.begin, bar.width) for bar in timeline] == expected


def test_how_a_file_came_to_be() -> None:
    merges = (Merge(source="./a", name="a"), Merge(source="./b", name="b", weight=0.5))
    products = [pages.product("m.gguf", merges=merges, notes=("translated for this tag",)), pages.product("gone.gguf", "missing")]
    (way,) = records.ways(products, DIST)
    assert (way.name, way.merged, way.notes) == ("m.gguf", ("a × 1", "b × 0.5"), ("translated for this tag",))
    assert way.command[1] == "{tree}/convert_hf_to_gguf.py"
    (old,) = records.ways([pages.product("m.gguf", "stale", merges)], DIST)
    assert old.merged == (), "it may have been made by another job"


def test_where_inputs_came_from() -> None:
    local = Input(name="ad/adapter config.json", digest="git:1", source="ad")
    matrix = Input(name="matrix.gguf", digest="2")
    places = records.sources(
        [pages.receipt("q.gguf", inputs=(matrix, pages.HUB_INPUT)), pages.receipt("m.gguf", inputs=(local, pages.HUB_INPUT))]
    )
    assert [(source.name, len(source.files)) for source in places] == [("org/base", 1), ("ad", 1), ("", 1)]
    hub, folder, _ = places
    assert hub.page == f"https://huggingface.co/org/base/tree/{pages.COMMIT}" and folder.page == ""
    assert hub.link(pages.HUB_INPUT) == f"https://huggingface.co/org/base/blob/{pages.COMMIT}/model.safetensors"
    assert folder.link(local) == ""
    assert hub.link(Input(name="base/a b/tree/#1?.json", digest="")).endswith(f"/{pages.COMMIT}/a%20b/tree/%231%3F.json")


@pytest.mark.parametrize(
    ("source", "commit", "linked"),
    [
        ("org/m", "ab", True),
        ("org/m", "", False),
        ("folder", "ab", False),
        ('org/m"><script>', "ab", False),
        ("javascript:x/y", "ab", False),
        ("org/tree/m", "ab", False),
    ],
)
def test_only_a_hub_id_at_a_commit_is_linked(source: str, commit: str, linked: bool) -> None:
    assert bool(records.page(source, commit)) == linked


def test_failures_come_with_the_ends_of_their_logs() -> None:
    good, bad = step("a", "done", 0, 1), StepRecord(name="b", status="failed", log="b.log", error=("no",))
    record = pages.run(good, bad, StepRecord(name="c", status="failed"), error=("the whole",))
    assert records.failures(record, {"b.log": ("x", "y")}) == (
        Failure(step="", error=("the whole",)),
        Failure(step="b", error=("no",), log=("x", "y")),
        Failure(step="c", error=()),
    )
    assert records.failures(None, {}) == () and records.failures(pages.run(good), {}) == ()
