"""From finished outputs to Ollama: a Modelfile beside each file of a model, and `ollama create` where it is asked for.

A chat template is not said here: Ollama takes the GGUF's own since 0.30.0.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.spec import Model
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.results import Handed
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import scheduler
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.scheduler import Action
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.store import write_atomically
from llamacpp_orchestrator.verify import gguf as verify_gguf

MARK = "# Written by orchestrate"
# The first Ollama that renders a GGUF's own chat template (shouldPreferChatTemplate in its server/images.go).
OLDEST = (0, 30, 0)
UPDATE = "update it (https://ollama.com/download), or leave --ollama-create out"
VERSION = re.compile(r"version is v?(\d+)\.(\d+)\.(\d+)")
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
FRONT = re.compile(r"---\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
LICENSE = re.compile(r"^license(?:_name|_link)?:[ \t]+([\"']?)([^\s\"'#\[\]{}]+)\1[ \t]*$", re.MULTILINE)
# Ollama's own words → what to do. First match wins.
KNOWN = (
    (r"connect|not responding|connection refused", "is Ollama running? start it, or `ollama serve`"),
    (r"command must be one of", UPDATE),
)


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """One Modelfile: its path, the model's name in Ollama, the file that it is made for, and the projector beside that.

    `note` is for the reader of a run; of a model's files the first has it.
    """

    path: Path
    name: str
    build: Build
    projector: Build | None = None
    note: str = ""

    @property
    def needs(self) -> tuple[Build, ...]:
        """The outputs that must be there."""
        return (self.build, self.projector) if self.projector else (self.build,)

    @property
    def commands(self) -> tuple[Command, Command]:
        """How a user makes it known to Ollama, and how it is run there."""
        return Command(("ollama", "create", self.name, "-f", str(self.path))), Command(("ollama", "run", self.name))


def find(builds: Iterable[Build]) -> list[Handoff]:
    """Every Modelfile that a job asks for: one for each file of a model; none for adapters, which Ollama does not take."""
    asking = [build for build in builds if build.output.model.ollama and not build.output.temporary]
    files = [build for build in asking if build.output.kind in ("quantized", "model")]
    names = [model_name(build.output.model.name, build.output.type) for build in files]
    handoffs = []
    noted: list[Model] = []
    for build, name in zip(files, names, strict=True):
        model = build.output.model
        if names.count(name) > 1:  # two models of one name, told apart by `outfile` alone
            name = model_name(model.name, build.name.removesuffix(".gguf"))
        path = build.output.path.with_name(build.output.path.name.removesuffix(".gguf") + ".Modelfile")
        beside = [other for other in asking if other.output.kind == "mmproj" and other.output.model == model]
        note = "" if model in noted else left_out(model)
        noted.append(model)
        handoffs.append(Handoff(path=path, name=name, build=build, projector=next(iter(beside), None), note=note))
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


def check_program(works: Iterable[Work]) -> None:
    """Raise JobError where `ollama create` is asked for and there is nothing to create, or no program that can."""
    if not any(model.ollama for work in works for model in work.job.models):
        raise JobError("--ollama-create: no model of the job says `ollama: true`", "add it to those that Ollama should know")
    program = shutil.which("ollama")
    if not program:
        raise JobError(
            "--ollama-create: there is no `ollama` on PATH", "install it (https://ollama.com), or leave the option out"
        )
    with suppress(CommandFailed):  # what is wrong with it `ollama create` will say
        version = oldest(process.capture(Command((program, "--version"), env=_env())))
        if version and version < OLDEST:
            installed, wanted = (".".join(map(str, each)) for each in (version, OLDEST))
            message = f"--ollama-create: Ollama {installed} is here; the chat template of a GGUF needs {wanted} or newer"
            raise JobError(message, UPDATE)


def oldest(text: str) -> tuple[int, ...]:
    """The lower of the versions that `ollama --version` gives, of its server and itself; () for none, and for a build (0.0.0)."""
    versions = [tuple(map(int, match.groups())) for match in VERSION.finditer(text)]
    return min((version for version in versions if any(version)), default=())


def check(handoffs: Iterable[Handoff], force: bool) -> None:
    """Raise JobError for what is in the way of a Modelfile and is not ours, and for names that one cannot hold."""
    for each in handoffs:
        if hidden := next((build.name for build in each.needs if not build.name.isprintable()), None):
            raise JobError(
                f"Ollama cannot read the file name {hidden!r}: it drops letters that cannot be seen", "set `name` or `outfile`"
            )
        if each.path.is_dir() or (not force and text_of(each.path) and not text_of(each.path).startswith(MARK)):
            raise JobError(f"{each.path} exists already, and orchestrate did not write it", "move it away, or use --force")


def ready(each: Handoff) -> bool:
    """Whether all that a Modelfile names is there, as the job makes it."""
    return all(
        receipt.is_current(receipt.read(build.output.path), build.recipe, build.output.path.parent) for build in each.needs
    )


def split(each: Handoff) -> str:
    """Why there can be no Modelfile: of these outputs one lies in several files; "" when there can."""
    many = next((build for build in each.needs if len(pipeline_build.shards(build.output)) > 1), None)
    if many is None:
        return ""
    return (
        f"{many.name} lies in several files, and Ollama wants one: leave --split-* out of `args`; no {each.path.name} was written"
    )


def modelfile(
    name: str, file: str, files: Sequence[str], *, parameters: Mapping[str, str], stops: Iterable[str], license: str = ""
) -> str:
    """The text of a Modelfile; `file` is its own name, `files` are paths relative to it, with slashes."""
    lines = [MARK, f'#   ollama create {name} -f "{file}"', f"#   ollama run {name}", f"REQUIRES {'.'.join(map(str, OLDEST))}"]
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
    return stops(ids, verify_gguf.contents([gguf]).metadata) if ids else ()


def stops(ids: Iterable[int], metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens of some ids as the metadata of a GGUF has them, without its EOS token, at which every runtime ends."""
    tokens, eos = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.eos_token_id")
    texts = tokens if isinstance(tokens, list) else []
    return tuple(dict.fromkeys(texts[number] for number in ids if 0 <= number < len(texts) and number != eos))


def licensed(card: str) -> str:
    """The licence that the front matter of a model's card names, with its name and address where these are there."""
    front = FRONT.match(card.removeprefix("\ufeff").replace("\r\n", "\n"))
    return ", ".join(match[2] for match in LICENSE.finditer(front[1]) if match[2].isprintable()) if front else ""


def text(work: Work, lock: Lock, each: Handoff) -> str | None:
    """What a Modelfile says; None while the files of its source that it is written from are not here."""
    pin = _source(lock, each)
    at = hub.Snapshot(source=pin.wanted.source, commit=pin.commit, files=pin.files)
    here = spec.is_folder(pin.wanted.source) or not hub.missing(at, work.store.sha256)
    return _text(work, pin, each, lambda line: None) if here else None


def _source(lock: Lock, each: Handoff) -> FilesPin:
    """The two small files of a source that a Modelfile is written from."""
    pin = lock.files(records.base_wanted(each.build.output.model))
    return msgspec.structs.replace(pin, files=tuple(file for file in pin.files if file.path in (CARD, GENERATION)))


def _text(work: Work, pin: FilesPin, each: Handoff, tell: Tell) -> str:
    folder = lock_resolve.origin(work, pin, tell)
    generation, gguf = preflight.read_json(folder / GENERATION), each.build.output.path
    return modelfile(
        each.name,
        each.path.name,
        [Path(os.path.relpath(build.output.path, each.path.parent)).as_posix() for build in each.needs],
        parameters=parameters(generation),
        stops=_stops(ends(generation), gguf, gguf.stat().st_mtime_ns),
        license=licensed(text_of(folder / CARD)),
    )


def status(work: Work, lock: Lock, each: Handoff) -> str:
    """Whether a run would write a Modelfile: "run" or "current"."""
    return "current" if ready(each) and not split(each) and _written(work, lock, each) else "run"


def _written(work: Work, lock: Lock, each: Handoff) -> bool:
    there = text_of(each.path)
    return bool(there) and there == text(work, lock, each)


def steps(work: Work, lock: Lock, handoffs: Iterable[Handoff], logs: Path, create: bool) -> list[Step]:
    """Write each Modelfile and, where it is asked for, hand it to Ollama."""
    made = []
    for each in handoffs:
        wrote = Step(name=f"modelfile {each.path.name}", action=_write(work, lock, each))
        made.append(wrote)
        if create and not split(each):
            name = f"ollama {each.name}"
            log = scheduler.log_of(name, logs)
            made.append(Step(name=name, action=_create(each, log), needs=(wrote.name,), heavy=True, log=log))
    return made


def _write(work: Work, lock: Lock, each: Handoff) -> Action:
    def action(tell: Tell) -> str:
        if each.note:
            tell(f"note: {each.note}")
        if reason := split(each):
            tell(f"note: {reason}")
            return "done"
        written = _text(work, _source(lock, each), each, tell)
        if text_of(each.path) == written:
            return "current"
        write_atomically(each.path, written)
        return "done"

    return action


def _env() -> tuple[tuple[str, str], ...]:
    return clean_env(**{name: value for name, value in os.environ.items() if name.startswith("OLLAMA_")})


def _create(each: Handoff, log: Path) -> Action:
    def action(tell: Tell) -> str:
        program = shutil.which("ollama") or "ollama"
        try:
            process.stream(Command((program, *each.commands[0].argv[1:]), cwd=str(each.path.parent), env=_env()), log, tell)
        except CommandFailed as error:
            hint = next((hint for pattern, hint in KNOWN if re.search(pattern, error.tail, re.IGNORECASE)), "see the log")
            last = process.last_lines(error.tail).split("\n")[-1]
            message = f"Ollama did not take {each.path.name}: {error.message} ({last})"
            raise error.retold(message, hint, log) from error
        return "done"

    return action


def handed(work: Work, lock: Lock, handoffs: Iterable[Handoff]) -> tuple[Handed, ...]:
    """What a run says of its Modelfiles: where they lie, and the two commands."""
    written = [each for each in handoffs if not split(each) and _written(work, lock, each)]
    return tuple(
        Handed(name=each.name, path=str(each.path), create=str(each.commands[0]), run=str(each.commands[1])) for each in written
    )
