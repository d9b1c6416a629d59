"""What quantizing has cost: which reports a job asks for, what they hold, and which of their numbers still count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.results import Measure
from llamacpp_orchestrator.results import Quality
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import perplexity
from llamacpp_orchestrator.verify import plot

MAKER = "llamacpp-orchestrator"  # by which a report is known as ours
# Of a text, and of a model whose unquantized file is not there yet: what is taken until more is known.
BYTES_PER_TOKEN, USUAL_VOCABULARY = 3, 152_000


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One report: the unquantized file, what is compared with it, the text, and where the report and its plot lie."""

    path: Path
    base: Build
    made: tuple[Build, ...]
    asked: spec.Quality
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


def find(work: Work, made: Iterable[Build]) -> list[Asked]:
    """Every report that a job asks for, of the outputs that are there as the job makes them, or will be."""
    made, found = list(made), []
    for build in made:
        model = build.output.model
        mine = [other for other in made if other.output.model == model and other.output.kind in ("model", "quantized")]
        if model.quality is None or build != next((each for each in mine if each.output.type in spec.UNQUANTIZED), None):
            continue
        found.append(
            Asked(
                path=layout.report_path(build.output.path, model),
                base=build,
                made=tuple(each for each in mine if each.output.type not in (*spec.UNQUANTIZED, "auto")),
                asked=model.quality,
                text=spec.folder(model.quality.text, work.file.parent),
            )
        )
    return found


def finished(each: Asked) -> Asked | None:
    """The same report of those outputs that are there; None without the unquantized one, or with no other."""

    def there(build: Build) -> bool:
        path = build.output.path
        return build.current or pipeline_receipt.is_current(pipeline_receipt.read(path), build.recipe, path.parent)

    made = tuple(filter(there, each.made))
    return msgspec.structs.replace(each, made=made) if made and there(each.base) else None


def check(found: Iterable[Asked], force: bool) -> None:
    """Raise JobError for what is in the way of a report or its plot and is not ours."""
    for each in found:
        strange = [each.path] if each.path.exists() and read(each.path) is None else []
        strange += [each.plot] if each.plot.exists() and not text_of(each.plot).startswith(plot.MARK) else []
        for path in strange:
            if path.is_dir() or not force:
                raise JobError(f"{path} exists already, and orchestrate did not write it", "move it away, or use --force")


def read(path: Path) -> Report | None:
    """The report at a place; one that is absent or not ours counts as none."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if found.made_by == MAKER else None


def name(build: Build) -> str:
    """The step that measures an output."""
    return f"quality {build.name.removesuffix('.gguf')}"


def estimate(each: Asked) -> int:
    """About how large the file of answers to a text will be; only once the unquantized file is there its vocabulary is known."""
    pieces = max(2, each.text.stat().st_size // BYTES_PER_TOKEN // perplexity.CONTEXT)
    shards = pipeline_build.shards(each.base.output)
    words = gguf.contents(shards).metadata.get("tokenizer.ggml.tokens") if shards and all(map(Path.exists, shards)) else None
    return perplexity.logits_bytes(min(pieces, each.asked.chunks or pieces), len(words) if words else USUAL_VOCABULARY)


def key(work: Work, lock: Lock, each: Asked, build: Build) -> str:
    """What decides the numbers of an output: it, the unquantized file, the text, how it is asked, and which llama.cpp answers."""
    files = [pipeline_receipt.read(one.output.path) for one in (each.base, build)]
    digests = [[file.sha256 for file in receipt.files] if receipt else [] for receipt in files]
    asked = perplexity.command(Path(perplexity.TOOL), Path("{model}"), each.asked, Path("{text}")).argv
    parts = [digests, work.store.sha256(each.text), asked, lock.llama_cpp.tree]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def measured(work: Work, lock: Lock, each: Asked) -> dict[str, Measure]:
    """What the report knows already, by what decides it; JobError when the text cannot be read."""
    try:
        wanted = {key(work, lock, each, build) for build in (each.base, *each.made)}
    except OSError as error:
        raise JobError(f"quality: {each.text} cannot be read: {error.strerror}", "is the path right?") from error
    report = read(each.path)
    rows = (report.unquantized, *report.types) if report else ()
    return {row.key: row for row in rows if row.key in wanted}


def stale(work: Work, lock: Lock, each: Asked) -> tuple[Build, ...]:
    """What is still to be measured: nothing, or some files and before them the unquantized one."""
    known = measured(work, lock, each)
    left = tuple(build for build in each.made if key(work, lock, each, build) not in known)
    return (each.base, *left) if left or key(work, lock, each, each.base) not in known else ()


def shown(work: Work, lock: Lock, each: Asked) -> Quality | None:
    """What a run says of a report: only rows that still hold."""
    known = measured(work, lock, each)
    base, *types = (known.get(key(work, lock, each, build)) for build in (each.base, *each.made))
    if base is None:
        return None
    rows = tuple(filter(None, types))
    return Quality(model=each.base.output.model.name, report=str(each.path), plot=str(each.plot), unquantized=base, types=rows)
