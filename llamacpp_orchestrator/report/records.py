"""What the page shows, as records; drawn from a job, its receipts and the record of its last run by pure functions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.pipeline.receipt import Input
from llamacpp_orchestrator.pipeline.receipt import Receipt
from llamacpp_orchestrator.report.run_record import RunRecord
from llamacpp_orchestrator.report.run_record import StepRecord
from llamacpp_orchestrator.results import Measure

HUB = "https://huggingface.co"
LEAST_WIDTH = 0.3  # percent: what took a moment is still seen


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """An output as it is on the disk: `status` is current, stale or missing; `bits` per weight, 0 where nothing tells."""

    output: Output
    receipt: Receipt | None
    status: str
    bits: float = 0.0


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an output, by its receipt; sizes in bytes, `name` as it lies in the folder of the outputs."""

    name: str
    kind: str
    type: str
    status: str
    size: int = 0
    bits: float = 0.0
    levels: tuple[str, ...] = ()
    sha256: str = ""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one model's files, with those that still hold and the plots, which are SVG elements."""

    model: str
    text: str
    rows: tuple[Measure, ...]
    holding: frozenset[str]
    plots: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A step that failed: the lines of its error and the end of its log."""

    step: str
    error: tuple[str, ...]
    log: tuple[str, ...] = ()


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A step in the timeline: its begin and width in percent of the run."""

    step: StepRecord
    begin: float
    width: float


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How an output came to be: what was merged into its model, what is to be noted, and the command."""

    name: str
    merged: tuple[str, ...]
    notes: tuple[str, ...]
    command: tuple[str, ...]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where inputs came from: a hub id at a commit with its page, a folder's name, or "" for what the job itself brought."""

    name: str
    commit: str
    page: str
    files: tuple[Input, ...]

    def link(self, file: Input) -> str:
        """The page of a file on the hub; "" where it came from no hub."""
        path = file.name.partition("/")[2]
        return f"{self.page.replace('/tree/', '/blob/', 1)}/{quote(path)}" if self.page else ""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page says of a job; `notices` are what is to be known before the rest of it is believed."""

    job: str
    tag: str
    commit: str
    package: str
    record: RunRecord | None
    notices: tuple[str, ...]
    failures: tuple[Failure, ...]
    files: tuple[FileRow, ...]
    tables: tuple[Table, ...]
    bars: tuple[Bar, ...]
    reckoned: tuple[StepRecord, ...]
    ways: tuple[Way, ...]
    sources: tuple[Source, ...]


def file_rows(products: Iterable[Product], root: Path) -> tuple[FileRow, ...]:
    """The files of a job's outputs, in the job's order; an output without a receipt is one row."""
    rows: list[FileRow] = []
    for product in products:
        output, receipt = product.output, product.receipt
        row = FileRow(name=relative(output.path, root), kind=output.kind, type=output.type, status=product.status)
        if receipt is None:
            rows.append(row)
            continue
        weights = [file for file in receipt.files if file.name.endswith((".gguf", ".safetensors"))]
        rows += [
            msgspec.structs.replace(
                row,
                name=relative(output.path.parent / file.name, root),
                size=file.size,
                bits=product.bits if file in weights else 0.0,
                levels=receipt.levels,
                sha256=file.sha256,
            )
            for file in receipt.files
        ]
    return tuple(rows)


def relative(path: Path, root: Path) -> str:
    """The way to a file from the folder of the outputs; its bare name on another drive."""
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError:
        return path.name


def bars(record: RunRecord | None) -> tuple[Bar, ...]:
    """The timeline of a run: every step that worked, by its begin."""
    steps = [step for step in record.steps if step.status not in ("current", "blocked")] if record else []
    whole = max([record.seconds if record else 0.0, *(step.begin + step.seconds for step in steps)]) or 1.0
    widths = (max(100 * step.seconds / whole, LEAST_WIDTH) for step in steps)
    return tuple(
        Bar(step=step, begin=round(min(100 * step.begin / whole, 100 - width), 3), width=round(width, 3))
        for step, width in zip(steps, widths, strict=True)
    )


def ways(products: Iterable[Product], root: Path) -> tuple[Way, ...]:
    """How each output that has a receipt came to be; what the job says of merges is so of a current one alone."""
    return tuple(
        Way(
            name=relative(product.output.path, root),
            merged=tuple(
                f"{merge.name} × {merge.weight:g}" for merge in product.output.model.merge if product.status == "current"
            ),
            notes=product.receipt.notes,
            command=product.receipt.command,
        )
        for product in products
        if product.receipt
    )


def sources(receipts: Iterable[Receipt]) -> tuple[Source, ...]:
    """Where the inputs of some outputs came from, each file once; those without a source stand last."""
    places: dict[tuple[str, str], dict[tuple[str, str], Input]] = {}
    for item in (item for receipt in receipts for item in receipt.inputs):
        places.setdefault((item.source, item.commit), {})[item.name, item.digest] = item
    order = sorted(places.items(), key=lambda place: not place[0][0])
    return tuple(
        Source(name=name, commit=commit, page=page(name, commit), files=tuple(files.values())) for (name, commit), files in order
    )


def page(source: str, commit: str) -> str:
    """The page of a repository on the hub at a commit; "" for what is no hub id, as the name of a folder."""
    return f"{HUB}/{source}/tree/{quote(commit)}" if commit and fields.HUB_ID.fullmatch(source) else ""


def failures(record: RunRecord | None, ends: Mapping[str, tuple[str, ...]]) -> tuple[Failure, ...]:
    """What went wrong in a run: a failure outside of all steps first; `ends` are the last lines of the logs, by their names."""
    if record is None:
        return ()
    whole = (Failure(step="", error=record.error),) if record.error else ()
    steps = (step for step in record.steps if step.status == "failed")
    return whole + tuple(Failure(step=step.name, error=step.error, log=ends.get(step.log, ())) for step in steps)
