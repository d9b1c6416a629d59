"""From finished outputs to Ollama: a Modelfile beside each file of a model, and `ollama create` where it is asked for.

A chat template is not said here: Ollama takes the GGUF's own since 0.30.0.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.export import CarryOut
from llamacpp_orchestrator.export import may_write
from llamacpp_orchestrator.export import ollama_program
from llamacpp_orchestrator.job.spec import Model
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.build import is_current
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.results import ModelfileResult
from llamacpp_orchestrator.results import PlannedStep
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.disk import Need
from llamacpp_orchestrator.system.scheduler import CURRENT
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import NOTE
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import performing
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.store import write_atomically
from llamacpp_orchestrator.verify import gguf as verify_gguf

KEY = "ollama"
MARK = "# Written by orchestrate"
STOP = re.compile(r'^PARAMETER stop "(.+)"$', re.MULTILINE)
CARD, GENERATION = "README.md", "generation_config.json"
# A parameter of Ollama → its name in generation_config.json, which says `do_sample` besides; llama.cpp, too, takes the numbers
# without that (gguf-py/gguf/metadata.py).
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}
WHOLE = ("top_k",)
LARGEST = 2**31
STOPS = ("tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id")  # what a GGUF tells of where an answer ends
FRONT = re.compile(r"---\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_reading = threading.Lock()
LICENSE = re.compile(r"^license(?:_name|_link)?:[ \t]+([\"']?)([^\s\"'#\[\]{}]+)\1[ \t]*$", re.MULTILINE)


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """One Modelfile: its path, the model's name in Ollama, its file, the model's `first` file, and the projector beside it."""

    path: Path
    name: str
    build: Build
    first: Build
    projector: Build | None = None

    @property
    def key(self) -> str:
        """The key of the step that writes it: its path from the job's output folder."""
        return Path(self.build.name).with_name(self.path.name).as_posix()

    @property
    def outputs(self) -> tuple[Build, ...]:
        """The outputs that must be there."""
        return (self.build, self.projector) if self.projector else (self.build,)

    @property
    def commands(self) -> tuple[Command, Command]:
        """How a user makes it known to Ollama, and how it is run there."""
        return Command(("ollama", "create", self.name, "-f", str(self.path))), Command(("ollama", "run", self.name))


def find(pinned: PinnedJob, builds: Iterable[Build]) -> list[Handoff]:
    """Every Modelfile that a job asks for: one for each file of a model; none for adapters, which Ollama does not take."""
    asking = [build for build in builds if build.output.model.ollama and not build.output.temporary]
    files = [build for build in asking if build.output.kind in ("quantized", "model")]
    names = [model_name(build.output.model.name, build.output.type) for build in files]
    handoffs = []
    for build, name in zip(files, names, strict=True):
        model = build.output.model
        if names.count(name) > 1:  # two models of one name, told apart by `outfile` alone
            name = model_name(model.name, build.name.removesuffix(".gguf"))
        path = build.output.path.with_name(build.output.path.name.removesuffix(".gguf") + ".Modelfile")
        beside = [other for other in asking if other.output.kind == "mmproj" and other.output.model == model]
        first = next(other for other in files if other.output.model == model)
        handoffs.append(Handoff(path=path, name=name, build=build, first=first, projector=next(iter(beside), None)))
    return handoffs


def model_name(name: str, tag: str) -> str:
    """`name:tag` as Ollama takes it: lower case ASCII, at most 80 letters each; what was altered ends in a digest."""
    return f"{_name(name)}:{_name(tag)}"


def _name(text: str) -> str:
    lower = text.lower()
    kept = re.sub(r"[^a-z0-9._-]+", "-", lower).strip("-._")
    if kept == lower and len(kept) <= 80:
        return kept
    return f"{kept[:60] or 'model'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def left_out(model: Model) -> str:
    """Why a model's adapters get no Modelfile; "" where it has none."""
    names = ", ".join(lora.name for lora in model.loras)
    way = f"to use {names} there, merge into {model.name} and convert the merged model"
    return f"Ollama takes no adapters any more: {way}" if names else ""


def check(handoffs: Iterable[Handoff], force: bool) -> None:
    """Raise JobError for what is in the way of a Modelfile and is not ours, and for names that one cannot hold."""
    for handoff in handoffs:
        if hidden := next((build.name for build in handoff.outputs if not build.name.isprintable()), None):
            message = f"Ollama cannot read the file name {hidden!r}: it drops letters that cannot be seen"
            raise JobError(message, "set `name` or `outfile`")
        text = text_of(handoff.path)
        may_write(handoff.path, not text or text.startswith(MARK), force)


def needs(pinned: PinnedJob, handoffs: Iterable[Handoff], force: bool) -> tuple[Need, ...]:
    """Nothing to speak of: a Modelfile is a page of text."""
    return ()


def reads(pinned: PinnedJob, handoffs: Iterable[Handoff], options: Options) -> Iterator[Build]:
    """What a Modelfile is still to be written of, and all where Ollama gets it."""
    lacking = (handoff for handoff in handoffs if options.ollama_create or not text_of(handoff.path).startswith(MARK))
    return (build for handoff in lacking for build in handoff.outputs)


def writes(handoffs: Iterable[Handoff]) -> Iterator[Path]:
    """The Modelfiles."""
    return (handoff.path for handoff in handoffs)


def planned(pinned: PinnedJob, handoffs: Iterable[Handoff], current: frozenset[Path], force: bool) -> Iterator[PlannedStep]:
    """The Modelfiles that a run would write."""
    for handoff in handoffs:
        done = ready(handoff) and not split(handoff) and _written(pinned, handoff)
        yield PlannedStep(name=f"modelfile {handoff.key}", status="current" if done else "run", detail=handoff.name)


def ready(handoff: Handoff) -> bool:
    """Whether all that a Modelfile names is there, as the job makes it."""
    return all(map(is_current, handoff.outputs))


def split(handoff: Handoff) -> str:
    """Why there can be no Modelfile: of these outputs one lies in several files; "" when there can."""
    many = next((build for build in handoff.outputs if len(pipeline_build.shards(build.output)) > 1), None)
    if many is None:
        return ""
    why = f"{many.name} lies in several files, and Ollama wants one"
    return f"{why}: leave --split-* out of `args`; no {handoff.path.name} was written"


def modelfile(
    name: str, file: str, files: Sequence[str], *, parameters: Mapping[str, str], stops: Iterable[str], license: str = ""
) -> str:
    """The text of a Modelfile; `file` is its own name, `files` are paths relative to it, with slashes."""
    lines = [
        MARK,
        f'#   ollama create {name} -f "{file}"',
        f"#   ollama run {name}",
        f"REQUIRES {'.'.join(map(str, ollama_program.OLDEST))}",
    ]
    lines += [f"FROM ./{path}" for path in files]
    lines += [f"PARAMETER {parameter} {value}" for parameter, value in parameters.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in filter(is_plain, stops)]
    lines += [f'LICENSE "{license}"'] if license else []
    return "\n".join([*lines, ""])


def is_plain(text: str) -> bool:
    """Whether a Modelfile can hold a text between two quotes in one line: its parser drops letters that cannot be seen."""
    return bool(text) and text.isprintable() and not text.startswith('"') and not text.endswith('"')


def parameters(generation: Mapping[str, Any]) -> dict[str, str]:
    """What a generation_config.json says of sampling, by Ollama's names; what is no number is left out."""
    numbers = {parameter: generation.get(key) for parameter, key in PARAMETERS.items()}
    return {parameter: text for parameter, value in numbers.items() if (text := _number(value, parameter in WHOLE))}


def _number(value: Any, whole: bool) -> str:
    if type(value) not in (int, float) or not -LARGEST < value < LARGEST or (whole and value != int(value)):
        return ""
    return str(int(value)) if whole else str(value)


def ends(generation: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the tokens at which a generation_config.json ends an answer."""
    listed = generation.get("eos_token_id")
    return tuple(number for number in (listed if isinstance(listed, list) else [listed]) if type(number) is int)


@functools.lru_cache(maxsize=64)  # the vocabulary is long, and a run asks twice
def _stops(ids: tuple[int, ...], gguf: Path, mtime_ns: int) -> tuple[str, ...]:
    return stops(ids, verify_gguf.contents([gguf], STOPS).metadata) if ids else ()


def stops(ids: Iterable[int], metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens of some ids as the metadata of a GGUF has them, without its EOS token, at which every runtime ends."""
    tokens, eos = (metadata.get(key) for key in STOPS)
    texts = tokens if isinstance(tokens, list) else []
    return tuple(dict.fromkeys(texts[number] for number in ids if 0 <= number < len(texts) and number != eos))


def licensed(card: str) -> str:
    """The licence that the front matter of a model's card names, with its name and address where these are there."""
    front = FRONT.match(card.removeprefix("\ufeff").replace("\r\n", "\n"))
    return ", ".join(match[2] for match in LICENSE.finditer(front[1]) if match[2].isprintable()) if front else ""


def text(pinned: PinnedJob, handoff: Handoff) -> str | None:
    """What a Modelfile says; None while the files of its source that it is written from are not here."""
    pin = _source(pinned.lock, handoff)
    lacking = lock_resolve.missing(pin, pinned.store.sha256)
    return None if lacking else _text(pinned.context, pin, handoff, lambda line: None)


def _source(lock: Lock, handoff: Handoff) -> FilesPin:
    """The two small files of a source that a Modelfile is written from."""
    pin = lock.files(records.base_wanted(handoff.build.output.model))
    return msgspec.structs.replace(pin, files=tuple(file for file in pin.files if file.path in (CARD, GENERATION)))


def _text(context: Context, pin: FilesPin, handoff: Handoff, tell: Tell) -> str:
    folder = lock_resolve.origin(context, pin, tell)
    generation = preflight.read_json(folder / GENERATION)
    gguf = (handoff.first if is_current(handoff.first) else handoff.build).output.path
    with _reading:  # all files of a model are asked about at once
        # Of a file that lies at an address alone, its Modelfile of before has them.
        there = gguf.is_file()
        ended = _stops(ends(generation), gguf, gguf.stat().st_mtime_ns) if there else tuple(STOP.findall(text_of(handoff.path)))
    return modelfile(
        handoff.name,
        handoff.path.name,
        [Path(os.path.relpath(build.output.path, handoff.path.parent)).as_posix() for build in handoff.outputs],
        parameters=parameters(generation),
        stops=ended,
        license=licensed(text_of(folder / CARD)),
    )


def _written(pinned: PinnedJob, handoff: Handoff) -> bool:
    there = text_of(handoff.path)
    return bool(there) and there == text(pinned, handoff)


def export(run: JobRun, handoffs: Iterable[Handoff], options: Options, carry_out: CarryOut) -> list[Event]:
    """Write each Modelfile and, where `--ollama-create` asks for it, hand it to Ollama."""
    steps: list[Step] = []
    here = [handoff for handoff in handoffs if ready(handoff)]
    for handoff in here:
        steps.append(Step(kind="modelfile", key=handoff.key))
        if options.ollama_create and not split(handoff):
            needs, log = (steps[-1].name,), run.log(f"ollama {handoff.name}")
            steps.append(Step(kind="ollama", key=handoff.name, needs=needs, heavy=True, log=log))
    by_key = {handoff.key: handoff for handoff in here} | {handoff.name: handoff for handoff in here}
    return carry_out(steps, performing({"modelfile": _write, "ollama": _create}, (run, by_key)), 0)


def results(pinned: PinnedJob, handoffs: Iterable[Handoff], events: Iterable[Event]) -> tuple[ModelfileResult, ...]:
    """What a run says of its Modelfiles: where they lie, and the two commands."""
    written = [handoff for handoff in handoffs if ready(handoff) and not split(handoff) and _written(pinned, handoff)]
    named = pinned.context.named
    # At an address the file is to be brought here first: then its name is enough.
    places = [handoff.path.name if pinned.context.address else str(handoff.path) for handoff in written]
    return tuple(
        ModelfileResult(
            name=handoff.name,
            path=named(handoff.path),
            create=str(Command(("ollama", "create", handoff.name, "-f", place))),
            run=str(handoff.commands[1]),
        )
        for handoff, place in zip(written, places, strict=True)
    )


def _write(at: tuple[JobRun, Mapping[str, Handoff]], key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    pinned, handoff = at[0].pinned, at[1][key]
    if handoff.build == handoff.first and (note := left_out(handoff.build.output.model)):
        tell(f"{NOTE}{note}")
    if reason := split(handoff):
        tell(f"{NOTE}{reason}")
        return DONE
    pin = _source(pinned.lock, handoff)
    lock_resolve.tell_moved(pinned.context, pin, tell)
    written = _text(pinned.context, pin, handoff, tell)
    if text_of(handoff.path) == written:
        return CURRENT
    write_atomically(handoff.path, written)
    return DONE


def _create(at: tuple[JobRun, Mapping[str, Handoff]], key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    run, handoff = at[0], at[1][key]
    program, log = shutil.which("ollama") or "ollama", run.log(f"ollama {key}")
    try:
        process.stream(
            Command((program, *handoff.commands[0].argv[1:]), cwd=str(handoff.path.parent), env=ollama_program.env()), log, tell
        )
    except CommandFailed as error:
        known = matched(error.tail, table("export", "ollama", UPDATE=ollama_program.UPDATE))[1]
        hint = diagnose.machine(error.code, f"{error.message}\n{error.tail}")[1] or known or "see the log"
        last = process.last_lines(error.tail).split("\n")[-1]
        message = f"Ollama did not take {handoff.path.name}: {error.message} ({last})"
        raise error.retold(message, hint, log) from error
    return DONE
