"""What quantizing has cost: which reports a job asks for, what they hold, and which of their numbers still count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.export import may_write
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.build import is_current
from llamacpp_orchestrator.results import Measure
from llamacpp_orchestrator.results import Quality
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import perplexity
from llamacpp_orchestrator.verify import plot

MAKER = "llamacpp-orchestrator"  # by which a report is known as ours
# Of a text, and of a model whose unquantized file is not there yet: what is taken until more is known.
BYTES_PER_TOKEN, USUAL_VOCABULARY = 3, 152_000


class QualityJob(msgspec.Struct, frozen=True, kw_only=True):
    """One report: the unquantized file, what is compared with it, the text, and where the report and its plot lie."""

    path: Path
    base: Build
    compared: tuple[Build, ...]
    settings: spec.Quality
    text: Path

    @property
    def plot(self) -> Path:
        """Where the plot lies."""
        return self.path.with_suffix(".svg")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `{name}-quality.json` holds; sizes in bytes, `bits` per weight, shares in percent."""

    made_by: str
    format: int
    model: str
    tag: str
    text: str
    text_sha256: str
    command: tuple[str, ...]
    unquantized: Measure
    types: tuple[Measure, ...]


def find(pinned: PinnedJob, builds: Iterable[Build]) -> list[QualityJob]:
    """Every report that a job asks for, of the outputs that are there as the job makes them, or will be."""
    jobs, builds = [], list(builds)
    for build in builds:
        model = build.output.model
        siblings = [other for other in builds if other.output.model == model and other.output.kind in ("model", "quantized")]
        base = next((other for other in siblings if other.output.type in spec.UNQUANTIZED), None)
        if model.quality and build == base:
            jobs.append(
                QualityJob(
                    path=layout.report_path(build.output.path, model),
                    base=build,
                    compared=tuple(other for other in siblings if other.output.type not in (*spec.UNQUANTIZED, "auto")),
                    settings=model.quality,
                    text=spec.folder(model.quality.text, pinned.context.file.parent),
                )
            )
    return jobs


def finished(job: QualityJob) -> QualityJob | None:
    """The same report of those outputs that are there; None without the unquantized one, or with no other."""
    compared = tuple(filter(is_current, job.compared))
    return msgspec.structs.replace(job, compared=compared) if compared and is_current(job.base) else None


def check(jobs: Iterable[QualityJob], force: bool) -> None:
    """Raise JobError for what is in the way of a report or its plot and is not ours."""
    for job in jobs:
        may_write(job.path, read(job.path) is not None, force)
        may_write(job.plot, text_of(job.plot).startswith(plot.MARK), force)


def read(path: Path) -> Report | None:
    """The report at a place; one that is absent or not ours counts as none."""
    try:
        report = msgspec.json.decode(path.read_bytes() if path.is_file() else b"", type=Report)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return report if report.made_by == MAKER else None


def key(build: Build) -> str:
    """The key of the step that measures an output."""
    return build.name.removesuffix(".gguf")


def estimate(job: QualityJob) -> int:
    """About how large the file of answers to a text will be; only once the unquantized file is there its vocabulary is known."""
    pieces = max(2, job.text.stat().st_size // BYTES_PER_TOKEN // perplexity.CONTEXT)
    shards = pipeline_build.shards(job.base.output)
    words = gguf.contents(shards).metadata.get("tokenizer.ggml.tokens") if shards and all(map(Path.exists, shards)) else None
    return perplexity.logits_bytes(min(pieces, job.settings.chunks or pieces), len(words) if words else USUAL_VOCABULARY)


def row_key(pinned: PinnedJob, job: QualityJob, build: Build) -> str:
    """What decides the numbers of an output: it, the unquantized file, the text, how it is asked, and which llama.cpp answers."""
    files = [pipeline_receipt.read(one.output.path) for one in (job.base, build)]
    digests = [[file.sha256 for file in receipt.files] if receipt else [] for receipt in files]
    argv = perplexity.command(Path(perplexity.TOOL), Path("{model}"), job.settings, Path("{text}")).argv
    parts = [digests, pinned.store.sha256(job.text), argv, pinned.lock.llama_cpp.tree]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def measured(pinned: PinnedJob, job: QualityJob) -> dict[str, Measure]:
    """What the report knows already, by what decides it; JobError when the text cannot be read."""
    try:
        keys = {row_key(pinned, job, build) for build in (job.base, *job.compared)}
    except OSError as error:
        raise JobError(f"quality: {job.text} cannot be read: {error.strerror}", "is the path right?") from error
    report = read(job.path)
    rows = (report.unquantized, *report.types) if report else ()
    return {row.key: row for row in rows if row.key in keys}


def stale(pinned: PinnedJob, job: QualityJob) -> tuple[Build, ...]:
    """What is still to be measured: nothing, or some files and before them the unquantized one."""
    known = measured(pinned, job)
    left = tuple(build for build in job.compared if row_key(pinned, job, build) not in known)
    return (job.base, *left) if left or row_key(pinned, job, job.base) not in known else ()


def result(pinned: PinnedJob, job: QualityJob) -> Quality | None:
    """What a run says of a report: only rows that still hold."""
    known = measured(pinned, job)
    base, *types = (known.get(row_key(pinned, job, build)) for build in (job.base, *job.compared))
    if base is None:
        return None
    rows = tuple(filter(None, types))
    drawn = str(job.plot) if job.plot.exists() else ""
    return Quality(model=job.base.output.model.name, report=str(job.path), plot=drawn, unquantized=base, types=rows)
