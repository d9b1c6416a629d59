"""The page of what a job has made: all that is on this machine of it, gathered without making anything or asking anybody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.commands.execution import log_place
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.export import quality_report
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records as lock_records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Outputs
from llamacpp_orchestrator.remote_outputs import mirror
from llamacpp_orchestrator.report import page
from llamacpp_orchestrator.report import records
from llamacpp_orchestrator.report import run_record
from llamacpp_orchestrator.report import words
from llamacpp_orchestrator.results import Measure
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.store import write_atomically
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import plot


def default(job: Path) -> Path:
    """Where the page of a job is written: job-report.html beside job.yaml."""
    return job.with_name(f"{job.stem}-report.html")


def is_ours(file: Path) -> bool:
    """Tell whether a file is a page that was written before."""
    return text_of(file).startswith(page.BEGIN)


def write(context: Context, file: Path) -> Path:
    """Write the page of a job; where it lies."""
    write_atomically(file, page.html(gather(context), words.cleaner(context)))
    return file


def gather(context: Context) -> records.Page:
    """All that is on this machine of what a job has made; LockError for a damaged lock."""
    if not context.settings.offline:  # else what was seen there last counts
        mirror.look(context)
    lock = lock_file.read(lock_file.path_for(context.file))
    pinned = _fitting(PinnedJob(context, lock)) if lock else None
    unfit = diff.stale_reasons(context.job, lock) if lock else []
    logs = log_place(context)
    record = run_record.read(logs / run_record.NAME)
    steps = record.steps if record else ()
    ends = {step.log: words.end_of(words.lines_of(logs / step.log)) for step in steps if step.status == "failed" and step.log}
    outputs = pipeline_build.outputs(pinned) if pinned else None
    products, root = _products(context, outputs), context.folder(context.job.output)
    return records.Page(
        job=context.file.name,
        tag=lock.llama_cpp.tag if lock else context.job.llama_cpp.tag,
        commit=lock.llama_cpp.commit if lock else "",
        package=lock.llama_cpp.package if lock else "",
        record=record,
        notices=(*(f"the lock does not fit the job: {reason}" for reason in unfit), *_drift(pinned)),
        failures=records.failures(record, ends),
        files=records.file_rows(products, root),
        tables=tuple(_tables(context, pinned, outputs)),
        bars=records.bars(record),
        reckoned=tuple(step for step in steps if step.memory),
        ways=records.ways(products, root),
        sources=records.sources(product.receipt for product in products if product.receipt),
    )


def _fitting(pinned: PinnedJob) -> PinnedJob | None:
    """The part of a job that its lock still fits: without a model that was added since, or that a failed run has not locked."""
    job, fits = pinned.context.job, diff.fitting(pinned.context.job, pinned.lock)
    if fits.source is None or (fits.environment is None and job.environment.path is None):
        return None
    parts = [msgspec.structs.replace(job, models=(model,)) for model in job.models]
    models = tuple(part.models[0] for part in parts if all(wanted in fits.models for wanted in lock_records.all_wanted(part)))
    part = msgspec.structs.replace(job, models=models)
    return PinnedJob(msgspec.structs.replace(pinned.context, job=part), pinned.lock)


def _drift(pinned: PinnedJob | None) -> tuple[str, ...]:
    """What is to be said of folders that no longer hold what was locked, or are not on this machine."""
    try:
        if pinned:
            local_folders.drift(pinned)
    except (OrchestrateError, OSError) as error:
        return (error.message if isinstance(error, OrchestrateError) else f"{error.filename}: {error.strerror}",)
    return ()


def _products(context: Context, outputs: Outputs | None) -> list[records.Product]:
    """The outputs of a job as they are; without a lock that fits it none is current."""
    current = outputs.current if outputs else frozenset[Path]()
    return [_product(output, output.path in current) for output in layout.outputs(context.job, context.file.parent)]


def _product(output: Output, current: bool) -> records.Product:
    receipt = pipeline_receipt.read(output.path)
    files = [output.path.parent / file.name for file in receipt.files] if receipt else [output.path]
    here = all(file.is_file() for file in files)
    there = receipt is not None and all(pipeline_receipt.is_at_address(file, output.path.parent) for file in receipt.files)
    status = "current" if current else "stale" if here or there else "missing"
    bits = 0.0
    with contextlib.suppress(OrchestrateError, OSError):  # a file that was cut or taken away tells nothing
        if receipt and here and output.kind != "merged":
            for file in files:
                gguf.check(file)
            bits = gguf.bits_per_weight(gguf.contents(files), sum(file.stat().st_size for file in files))
    return records.Product(output=output, receipt=receipt, status=status, bits=bits)


def _tables(context: Context, pinned: PinnedJob | None, outputs: Outputs | None) -> Iterator[records.Table]:
    """The reports on quality that a job has, each with its plots; what is said of other files than those now does not hold."""
    jobs = {job.path: job for job in quality_report.find(pinned, outputs.builds)} if pinned and outputs else {}
    for number, (_, path) in enumerate(layout.reports(context.job, context.file.parent)):
        report, holding = quality_report.read(path), frozenset[str]()
        if report is None:
            continue
        with contextlib.suppress(JobError):  # without the text nothing tells whether the numbers are its
            holding = frozenset(quality_report.measured(pinned, jobs[path])) if pinned and path in jobs else holding
        rows = (report.unquantized, *report.types)
        plots = _plots(f"q{number}", rows)
        yield records.Table(model=report.model, text=report.text, rows=rows, holding=holding, plots=plots)


def _plots(mark: str, rows: tuple[Measure, ...]) -> tuple[str, ...]:
    """Size against divergence and size against perplexity; none where nothing draws."""
    divergences = [(row.type, float(row.size), row.kld) for row in rows if row.kld is not None]
    perplexities = [(row.type, float(row.size), row.ppl) for row in rows]
    divergence = (plot.element(f"{mark}d", "mean KL divergence", divergences, True) if divergences else "",)
    return tuple(filter(None, (*divergence, plot.element(f"{mark}p", "perplexity", perplexities, False))))
