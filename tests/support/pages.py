"""Pages for the tests of what is drawn: one with all parts, with as many files and as odd names as wanted."""

from __future__ import annotations

from typing import Any

import msgspec

from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.job.spec import Merge
from llamacpp_orchestrator.job.spec import Model
from llamacpp_orchestrator.pipeline.receipt import FileRecord
from llamacpp_orchestrator.pipeline.receipt import Input
from llamacpp_orchestrator.pipeline.receipt import Receipt
from llamacpp_orchestrator.pipeline.receipt import Versions
from llamacpp_orchestrator.report import records
from llamacpp_orchestrator.report.records import Page
from llamacpp_orchestrator.report.records import Product
from llamacpp_orchestrator.report.run_record import RunRecord
from llamacpp_orchestrator.report.run_record import StepRecord
from llamacpp_orchestrator.results import Measure
from llamacpp_orchestrator.verify import plot
from tests.support import ROOT

DIGEST = "0123456789abcdef" * 4
COMMIT = "0e1d" * 10
HUB_INPUT = Input(name="base/model.safetensors", digest=DIGEST, sha256=DIGEST, source="org/base", commit=COMMIT)
TYPES = ("bf16", "Q2_K", "Q4_0", "Q4_K_M", "Q8_0")


def receipt(name: str, *files: str, **more: Any) -> Receipt:
    """A receipt of an output, of one file or of several."""
    held = tuple(FileRecord(name=file, size=9_059_776, sha256=DIGEST, mtime_ns=1) for file in files or (name,))
    known: dict[str, Any] = {
        "kind": "model",
        "type": "bf16",
        "recipe": "r",
        "command": ("{python}", "{tree}/convert_hf_to_gguf.py", "{model}", "--outfile", "{output}/" + name),
        "inputs": (HUB_INPUT,),
        "versions": Versions(tool="0.1.0", tag="b11434", commit="", tree="t", environment="e"),
        "levels": ("structure", "content", "load"),
    }
    return Receipt(path=name, files=held, **known | more)


def product(name: str, status: str = "current", merges: tuple[Merge, ...] = (), **more: Any) -> Product:
    """An output with its receipt; one that is missing has none."""
    model = Model(source="org/base", name="base", merge=merges)
    output = Output(path=ROOT / "dist" / name, kind="model", type="bf16", model=model)
    return Product(output=output, receipt=None if status == "missing" else receipt(name, **more), status=status, bits=16.0)


def measures(name: str = "base") -> tuple[Measure, ...]:
    """The rows of a report on quality, the unquantized file first."""
    return tuple(
        Measure(
            file=f"{name}-{type_}.gguf",
            type=type_,
            size=9_000_000 - 900_000 * number,
            bits=16.0 - number,
            ppl=45222.5954 + number,
            ppl_error=540.1158 if number else None,
            kld=0.001 * number if number else None,
            same_top=99.0 - number if number else None,
            key=f"k{number}",
        )
        for number, type_ in enumerate(TYPES)
    )


def run(*steps: StepRecord, **more: Any) -> RunRecord:
    """The record of a run of half a minute."""
    known: dict[str, Any] = {"began": "2026-11-28T15:08:38+00:00", "status": "ok", "seconds": 30.0, "largest": 355_000_000}
    return RunRecord(steps=steps, **known | more)


def page(name: str = "base", count: int = 3, drawn: bool = True) -> Page:
    """A page of a job with failures, `count` files, quality, times and inputs, in which all names are made of `name`."""
    products = [product(f"{name}-{number}.gguf", notes=(f"note on {name}",)) for number in range(count)]
    products += [
        product(f"{name}-m.gguf", merges=(Merge(source="./a", name=name, weight=0.5),)),
        product(f"{name}-s.gguf", "stale"),
        product(f"{name}.gguf", "missing"),
    ]
    rows = measures(name)
    points = [(row.type, float(row.size), row.ppl) for row in rows]
    steps = [
        StepRecord(
            name=f"convert {name}-{number}.gguf", status="done", begin=20.0 * number / count, seconds=8.0, memory=288_000_000
        )
        for number in range(count)
    ]
    failed = StepRecord(
        name=f"convert {name}.gguf", status="failed", begin=27.0, seconds=2.0, log="x.log", error=(name, "hint: go on")
    )
    record = run(*steps, failed, status="failed", error=(f"also {name}",))
    return Page(
        job=f"{name}.yaml",
        tag="b11434",
        commit=COMMIT,
        package="",
        record=record,
        notices=(f"the lock does not fit the job: {name}",),
        failures=records.failures(record, {"x.log": (f"INFO: {name}", "RuntimeError: no")}),
        files=records.file_rows(products, ROOT / "dist"),
        tables=(
            records.Table(
                model=name,
                text=f"{name}.txt",
                rows=rows,
                holding=frozenset({"k0", "k1"}),
                plots=(plot.element("q0", "perplexity", points, False),) if drawn else (),
            ),
        ),
        bars=records.bars(record),
        reckoned=tuple(step for step in record.steps if step.memory),
        ways=records.ways(products, ROOT / "dist"),
        sources=records.sources(
            [product.receipt for product in products if product.receipt]
            + [
                receipt(
                    "x", inputs=(Input(name=f"{name}/w.bin", digest="git:1", source=name), Input(name="matrix", digest=DIGEST))
                )
            ]
        ),
    )


def bare(**more: Any) -> Page:
    """A page of a job that was never run."""
    nothing = dict.fromkeys(("notices", "failures", "files", "tables", "bars", "reckoned", "ways", "sources"), ())
    return msgspec.structs.replace(page(count=1, drawn=False), job="new.yaml", commit="", record=None, **nothing | more)
