"""Measuring the quality of a job's files, as steps: llama-perplexity runs, and the report and its plot are kept up to date."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import encoders
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.export import quality
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.results import Measure
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.scheduler import NOTE
from llamacpp_orchestrator.system.scheduler import Action
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import log_of
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.store import write_atomically
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import perplexity
from llamacpp_orchestrator.verify import plot

TRIES = 3


@contextlib.contextmanager
def alone(work: Work, each: quality.Asked) -> Iterator[Path]:
    """A folder for the answers of the unquantized model, which goes afterwards; other runs wait for their turn."""
    mark = f"quality-{hashlib.sha256(str(each.path).encode()).hexdigest()[:16]}"
    folder = work.store.folder("downloads") / mark
    with work.store.lock(mark):
        remove(folder)  # of a run that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            remove(folder)


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """Where one report is made: its folder and logs, the tool, the check for space, and what is known so far."""

    work: Work
    lock: Lock
    each: quality.Asked
    folder: Path
    logs: Path
    tool: Callable[[], Path]
    space: Callable[[], None]
    known: dict[str, Measure]


def steps(desk: Desk, needs: tuple[str, ...], force: bool) -> list[Step]:
    """Measure what is not measured yet, the unquantized file first, and write the report."""
    each, made = desk.each, list[Step]()
    asked = (each.base, *each.made) if force else quality.stale(desk.work, desk.lock, each)
    for build in asked:
        log = log_of(quality.name(build), desk.logs)
        before = needs if build == each.base else (quality.name(each.base),)
        action = _keep(desk, log) if build == each.base else _compare(desk, build, log)
        made.append(Step(name=quality.name(build), action=action, needs=before, heavy=True, log=log))
    last = Step(name=f"quality {each.path.name}", action=lambda tell: _write(desk), needs=tuple(step.name for step in made))
    return [*made, last]


def _keep(desk: Desk, log: Path) -> Action:
    """Keep the answers of the unquantized model, with which the others are compared."""

    def action(tell: Tell) -> str:
        each, shards = desk.each, pipeline_build.shards(desk.each.base.output)
        _row(desk, each.base, shards)
        desk.space()
        said = _run(desk, perplexity.command(desk.tool(), shards[0], each.asked, each.text), log, tell)
        if any(flaw := perplexity.flaw(desk.folder / perplexity.LOGITS)):
            cause, hint = perplexity.explain(CommandFailed("", code=0, tail=said))
            cause, hint = (cause, hint) if cause else (f"{flaw[0]}: ", flaw[1])
            raise OrchestrateError(f"{cause}llama-perplexity said that it was done, but did not answer to all of it", hint, log)
        return "done"

    return action


def _compare(desk: Desk, build: Build, log: Path) -> Action:
    def action(tell: Tell) -> str:
        each, shards = desk.each, pipeline_build.shards(build.output)
        rows = [_row(desk, build, shards), _row(desk, each.base, pipeline_build.shards(each.base.output))]
        found = _table(desk, perplexity.command(desk.tool(), shards[0], each.asked), log, tell)
        base = {name: found.pop(f"base_{name}") for name in ("ppl", "ppl_error") if f"base_{name}" in found}
        for row, numbers in zip(rows, (found, base), strict=True):
            desk.known[row.key] = msgspec.structs.replace(row, **numbers)
        _write(desk)
        return "done"

    return action


def _table(desk: Desk, asked: Command, log: Path, tell: Tell) -> dict[str, float]:
    """What the tool finds out; asked again where it ended before its own logger had written all, as today's tags may."""
    for left in reversed(range(TRIES)):
        said = _run(desk, asked, log, tell)
        found = perplexity.parse(said)
        if found.keys() >= perplexity.WORDS.keys():
            return found
        cause, hint = perplexity.explain(CommandFailed("", code=0, tail=said))
        if cause or not left:
            break
        tell(f"{NOTE}llama-perplexity ended before its result was written; asking again")
    raise OrchestrateError(f"{cause}llama-perplexity said that it was done, but its result is not whole", hint, log)


def _row(desk: Desk, build: Build, shards: list[Path]) -> Measure:
    """What is known of a file before it is measured; OrchestrateError for an encoder."""
    contents = gguf.contents(shards)
    architecture = str(contents.metadata.get("general.architecture", ""))
    if encoders.ENCODERS.fullmatch(architecture) or contents.metadata.get(f"{architecture}.attention.causal") is False:
        raise OrchestrateError(
            f"{build.name} is an encoder ({architecture}): it guesses no next word, so it has no perplexity",
            "leave `quality` out for this model",
        )
    tensors = [tensor for _, tensor in contents.tensors.values()]
    size = sum(path.stat().st_size for path in shards)
    held = sum(tensor.size for tensor in tensors) if all(tensor.size for tensor in tensors) else size
    bits = round(8 * held / max(1, sum(tensor.elements for tensor in tensors)), 4)
    mark = quality.key(desk.work, desk.lock, desk.each, build)
    file = Path(os.path.relpath(shards[0], desk.each.path.parent)).as_posix()
    return Measure(file=file, type=build.output.type, size=size, bits=bits, ppl=0.0, key=mark)


def _run(desk: Desk, asked: Command, log: Path, tell: Tell) -> str:
    lines: list[str] = []
    minutes, total = desk.each.asked.minutes, ""

    def on_line(line: str) -> None:
        nonlocal total
        lines.append(line)
        if found := re.search(r"over (\d+) chunks", line):
            total = found[1]
        if now := perplexity.progress_of(line, total):
            tell(now)

    tell(f"computing, for at most {minutes} minutes")
    try:
        asked = msgspec.structs.replace(asked, cwd=str(desk.folder))
        process.stream(
            sandbox.around(asked, limits.limits(desk.work.settings), write=(desk.folder,)), log, on_line, limit=minutes * 60.0
        )
    except CommandFailed as error:
        cause, hint = perplexity.explain(error)
        raise error.retold(diagnose.pointed(f"{cause}{error.message}", error.tail, error.code), hint, log) from error
    return "\n".join(lines)


def _write(desk: Desk) -> str:
    """Write what is known by now: what took hours must not be lost with the next measurement."""
    each, work, lock = desk.each, desk.work, desk.lock
    base, *others = (desk.known.get(quality.key(work, lock, each, build)) for build in (each.base, *each.made))
    assert base is not None
    report = quality.Report(
        made_by=quality.MAKER,
        format=1,
        model=each.base.output.model.name,
        tag=lock.llama_cpp.tag,
        text=each.text.name,
        text_sha256=work.store.sha256(each.text),
        command=perplexity.command(Path(perplexity.TOOL), Path("{model}"), each.asked, Path("{text}")).argv,
        unquantized=base,
        types=tuple(filter(None, others)),
    )
    title = f"{report.model}: what quantizing has cost"
    points = [plot.Point(label=row.type, x=row.bits, y=row.kld or 0.0) for row in report.types]
    texts = {each.path: msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"}
    texts |= {each.plot: plot.svg(title, "bits per weight", "mean KL divergence", points)} if points else {}
    changed = [path for path, text in texts.items() if text_of(path) != text]
    for path in changed:
        write_atomically(path, texts[path])
    return "done" if changed else "current"
