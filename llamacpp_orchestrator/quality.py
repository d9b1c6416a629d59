"""What quantizing has cost: which reports a job asks for, how it is measured, and what the tool's answers mean."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator import artifact
from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import imatrix
from llamacpp_orchestrator import plot
from llamacpp_orchestrator import spec
from llamacpp_orchestrator import verify
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.report import Measure
from llamacpp_orchestrator.report import Quality
from llamacpp_orchestrator.store import text_of
from llamacpp_orchestrator.work import Work

TOOL, LOGITS, MAKER = "{llama-perplexity}", "base.logits", "llamacpp-orchestrator"
CONTEXT = 512
BYTES_PER_TOKEN, USUAL_VOCABULARY = 3, 152_000
HEADER = struct.Struct("<8s3i")
NUMBER = r"\s*(-?\d+(?:\.\d+)?)"
# What is read of the tool's table → the words before it; the same since 2024 (kl_divergence in perplexity.cpp).
WORDS = {
    "ppl": r"Mean PPL\(Q\)\s*:",
    "base_ppl": r"Mean PPL\(base\)\s*:",
    "kld": r"Mean\s+KLD:",
    "kld_median": r"Median\s+KLD:",
    "kld_max": r"Maximum KLD:",
    "same_top": r"Same top p:",
}
UNCERTAIN = ("ppl", "base_ppl", "kld", "same_top")
TOO_SHORT = ("the text is too short", f"give one of at least {2 * CONTEXT} tokens, better of 50,000 or more")
NO_ROOM = ("the file between could not be written or read", "is the disk full?")
# The tool's own words → what they mean, and what to do. First match wins; with most of them it ends with exit code 0.
KNOWN = (
    (imatrix.LACKING, *TOO_SHORT),
    (r"failed reading (log-probs|evaluation)|failed to open", *NO_ROOM),
    (r"\bnan\b|-nan", "the model's answers are no numbers", "a file that is quantized this far is of no use: drop the type"),
)


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
                path=spec.report_path(build.output.path, model),
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
        return build.current or artifact.is_current(artifact.read(path), build.recipe, path.parent)

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


def command(tool: Path, model: Path, asked: spec.Quality, text: Path | None = None) -> Command:
    """The call that keeps the answers of the unquantized model to a text, or, without one, compares another model's with them."""
    task = ("-f", str(text)) if text else ("--kl-divergence",)
    chunks = ("--chunks", str(asked.chunks)) if text and asked.chunks else ()
    argv = (str(tool), "-m", str(model), *task, "--kl-divergence-base", LOGITS, "-c", str(CONTEXT), "-ngl", "0", *chunks)
    return Command((*argv, *asked.args), env=imatrix.tool_env(tool, asked.args))


def parse(said: str) -> dict[str, float]:
    """The numbers of the tool's table of one model against another; those that it does not tell are absent."""
    found = {}
    for key, words in WORDS.items():
        if match := re.search(rf"{words}{NUMBER}(?:\s*%)?(?:\s+\S+{NUMBER})?", said):
            found[key] = float(match[1])
            found |= {f"{key}_error": float(match[2])} if match[2] and key in UNCERTAIN else {}
    return found


def progress_of(line: str, total: str) -> str:
    """What a line of the table says about how far it is: "3/12", or nothing."""
    found = re.match(r"\s*(\d+)(?:\s+-?\d+\.\d+\s+\S+\s+-?\d+\.\d+){3}", line)
    return f"{found[1]}/{total}" if found and total else ""


def explain(error: CommandFailed) -> tuple[str, str]:
    """What the tool's end likely means, and what to do."""
    if "longer than" in error.message:
        return "", "give it more time (`minutes`) or less to do (`chunks`) under `quality`"
    for pattern, cause, hint in KNOWN:
        if lines := [line for line in error.tail.splitlines() if re.search(pattern, line)]:
            return f"{cause} ({lines[-1].split(': ', 1)[-1].strip()}): ", hint
    return "", "the log holds the tool's whole output"


def logits_bytes(chunks: int, vocabulary: int, context: int = CONTEXT) -> int:
    """The size of the file of answers: two bytes for each word of the vocabulary after each token of the second half."""
    row = 2 * ((vocabulary + 1) // 2) + 4
    return HEADER.size + chunks * (context * 4 + (context - 1 - context // 2) * row * 2)


def estimate(each: Asked) -> int:
    """About how large that file will be for a text; only once the unquantized file is there its vocabulary is known."""
    pieces = max(2, each.text.stat().st_size // BYTES_PER_TOKEN // CONTEXT)
    shards = building.shards(each.base.output)
    words = verify.contents(shards).metadata.get("tokenizer.ggml.tokens") if shards and all(map(Path.exists, shards)) else None
    return logits_bytes(min(pieces, each.asked.chunks or pieces), len(words) if words else USUAL_VOCABULARY)


def flaw(logits: Path) -> tuple[str, str]:
    """Why a file of answers is of no use, and what to do; the tool may have ended well, and its words may be lost."""
    try:
        with logits.open("rb") as file:
            head, size = file.read(HEADER.size), logits.stat().st_size
    except OSError:
        return NO_ROOM
    if size < HEADER.size:  # the tool begins to write, then counts the tokens, and only then goes on
        return TOO_SHORT
    _, context, vocabulary, chunks = HEADER.unpack(head)
    return NO_ROOM if size < logits_bytes(chunks, vocabulary, context) else ("", "")


def key(work: Work, lock: Lock, each: Asked, build: Build) -> str:
    """What decides the numbers of an output: it, the unquantized file, the text, how it is asked, and which llama.cpp answers."""
    files = [artifact.read(one.output.path) for one in (each.base, build)]
    digests = [[file.sha256 for file in receipt.files] if receipt else [] for receipt in files]
    asked = command(Path(TOOL), Path("{model}"), each.asked, Path("{text}")).argv
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
