"""Receipts, and reports on quality: whatever lies there instead counts as none."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st

from llamacpp_orchestrator.export import quality_report
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.receipt import Receipt
from llamacpp_orchestrator.results import Measure
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_text
from tests.fuzz.common import reading
from tests.fuzz.common import words

RECEIPT = Receipt(
    path="a.gguf",
    kind="model",
    type="f16",
    recipe="1" * 64,
    command=("python", "convert_hf_to_gguf.py"),
    inputs=(pipeline_receipt.Input(name="config.json", digest="2" * 64),),
    versions=pipeline_receipt.Versions(tool="1", tag="b1", commit="3" * 40, tree="4" * 64, environment="5" * 64),
    files=(pipeline_receipt.FileRecord(name="a.gguf", size=4, sha256="6" * 64, mtime_ns=7),),
)
MEASURE = Measure(file="a.gguf", type="f16", size=4, bits=16.0, ppl=5.0, ppl_error=0.1, key="1")
REPORT = quality_report.Report(
    made_by=quality_report.MAKER,
    format=1,
    model="a",
    tag="b1",
    text="t.txt",
    text_sha256="2" * 64,
    command=("llama-perplexity",),
    unquantized=MEASURE,
    types=(MEASURE,),
)


@fuzzed(json_text(msgspec.to_builtins(RECEIPT)))
def test_receipts(text: bytes) -> None:
    with folder() as here:
        path = here / "a.gguf"
        path.write_bytes(b"GGUF")
        pipeline_receipt.receipt_path(path).write_bytes(text)
        receipt = reading(lambda: pipeline_receipt.read(path))
        reading(lambda: pipeline_receipt.is_current(receipt, "1" * 64, here))
        reading(lambda: pipeline_receipt.may_write(path, receipt, force=False))
        complaints = reading(lambda: pipeline_receipt.recheck(path))
        assert complaints and sum(map(len, complaints)) < 5000


@fuzzed(st.lists(words.map(lambda text: text.encode("utf-8", "ignore").decode()), min_size=3, max_size=3))
def test_a_receipt_reads_back(said: list[str]) -> None:
    receipt = msgspec.structs.replace(RECEIPT, command=tuple(said), notes=(said[0],), job=said[1], type=said[2])
    with folder() as here:
        pipeline_receipt.write(here / "a.gguf", receipt)
        assert pipeline_receipt.read(here / "a.gguf") == receipt


@fuzzed(json_text(msgspec.to_builtins(REPORT)))
def test_reports_on_quality(text: bytes) -> None:
    with folder() as here:
        (here / "a-quality.json").write_bytes(text)
        reading(lambda: quality_report.read(here / "a-quality.json"))
