"""From finished outputs to Ollama: which Modelfiles a job has, what they say, and `ollama create` where it is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llamacpp_orchestrator import artifact
from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import claims
from llamacpp_orchestrator import converter_view
from llamacpp_orchestrator import explain
from llamacpp_orchestrator import fence
from llamacpp_orchestrator import inside
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import ollama
from llamacpp_orchestrator import process
from llamacpp_orchestrator import stages
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.command import clean_env
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.report import Handed
from llamacpp_orchestrator.steps import Action
from llamacpp_orchestrator.steps import Step
from llamacpp_orchestrator.steps import Tell
from llamacpp_orchestrator.store import text_of
from llamacpp_orchestrator.store import write_atomically
from llamacpp_orchestrator.work import Work

SCRIPT = inside.path("chat")
SCRIPTS = (SCRIPT, inside.path("rendering"))
# Ollama's own words → what to do. First match wins.
KNOWN = (
    (r"connect|not responding|connection refused", "is Ollama running? start it, or `ollama serve`"),
    (
        r"adapters are no longer supported|ADAPTER|command must be one of",
        "this Ollama takes no LoRA adapters: merge it into its base and convert that, or use an Ollama before 0.34.1",
    ),
)


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """One Modelfile: what it is made for, the model's file that it starts from, and the projector beside that."""

    path: Path
    name: str
    made: Build
    base: Build
    projector: Build | None = None

    @property
    def needs(self) -> tuple[Build, ...]:
        """The outputs that must be there."""
        return tuple(dict.fromkeys(filter(None, (self.made, self.base, self.projector))))

    @property
    def commands(self) -> tuple[Command, Command]:
        """How a user makes it known to Ollama, and how it is run there."""
        return Command(("ollama", "create", self.name, "-f", str(self.path))), Command(("ollama", "run", self.name))


def find(made: Iterable[Build]) -> list[Handoff]:
    """Every Modelfile that a job asks for: one for each file of a model, one for each adapter on the model's best file."""
    made = list(made)
    found = []
    for build in made:
        output = build.output
        mine = [other for other in made if output.model.ollama and other.output.model == output.model]
        files = [other for other in mine if other.output.kind in ("quantized", "model")]
        if not files or output.kind == "mmproj":
            continue
        best = next((other for other in files if other.output.kind == "quantized"), files[0])
        projector = next((other for other in mine if other.output.kind == "mmproj"), None)
        path = output.path.with_name(output.path.name.removesuffix(".gguf") + ".Modelfile")
        name = ollama.model_name(build.name.removesuffix(".gguf"))
        base = best if output.kind == "adapter" else build
        found.append(Handoff(path=path, name=name, made=build, base=base, projector=projector))
    return found


def check_program(works: Iterable[Work]) -> None:
    """Raise JobError where `ollama create` is asked for and there is nothing to create, or nothing to do it with."""
    if not any(model.ollama for work in works for model in work.job.models):
        raise JobError("--ollama-create: no model of the job says `ollama: true`", "add it to those that Ollama should know")
    if not shutil.which("ollama"):
        raise JobError(
            "--ollama-create: there is no `ollama` on PATH", "install it (https://ollama.com), or leave the option out"
        )


def check(found: Iterable[Handoff], force: bool) -> None:
    """Raise JobError for what is in the way of a Modelfile and is not ours, and for names that one cannot hold."""
    for each in found:
        if hidden := next((build.name for build in each.needs if not build.name.isprintable()), None):
            raise JobError(
                f"Ollama cannot read the file name {hidden!r}: it drops letters that cannot be seen", "set `name` or `outfile`"
            )
        if each.path.is_dir() or (not force and text_of(each.path) and not text_of(each.path).startswith(ollama.MARK)):
            raise JobError(f"{each.path} exists already, and orchestrate did not write it", "move it away, or use --force")


def ready(each: Handoff) -> bool:
    """Whether all that a Modelfile names is there, as the job makes it."""
    return all(
        artifact.is_current(artifact.read(build.output.path), build.recipe, build.output.path.parent) for build in each.needs
    )


def text(work: Work, lock: Lock, each: Handoff) -> tuple[str, ollama.Chat] | None:
    """What a Modelfile says, and what it says about chatting; None as long as the source's template was not looked at."""
    entry = work.store.entry("chats", _key(work, lock, each))
    if not work.store.has("chats", entry.name):
        return None
    chat = ollama.chat(msgspec.json.decode((entry / "answer.json").read_bytes(), type=ollama.Answer))
    files = [_way(build, each.path) for build in (each.base, *([each.projector] if each.projector else []))]
    adapter = _way(each.made, each.path) if each.made.output.kind == "adapter" else ""
    return ollama.modelfile(files, adapter, chat, each.name, each.path.name), chat


def _way(build: Build, modelfile: Path) -> str:
    return Path(os.path.relpath(build.output.path, modelfile.parent)).as_posix()


def status(work: Work, lock: Lock, each: Handoff) -> str:
    """Whether a run would write a Modelfile: "run" or "current"."""
    made = text(work, lock, each) if ready(each) and not split(each) else None
    return "current" if made and text_of(each.path) == made[0] else "run"


def split(each: Handoff) -> str:
    """Why there can be no Modelfile: of these outputs one lies in several files; "" when there can."""
    many = next((build for build in each.needs if len(building.shards(build.output)) > 1), None)
    if many is None:
        return ""
    return (
        f"{many.name} lies in several files, and Ollama wants one: leave --split-* out of `args`; no {each.path.name} was written"
    )


def _key(work: Work, lock: Lock, each: Handoff) -> str:
    pin = lock.files(locks.base_wanted(each.made.output.model))
    files = [(file.path, file.sha256 or file.oid) for file in pin.files if not file.path.endswith(".safetensors")]
    made_by = lock.environment.pin().digest() if lock.environment else f"unpinned {work.job.environment.path}"
    scripts = hashlib.sha256(b"".join(script.read_bytes() for script in SCRIPTS)).hexdigest()
    asked = [files, lock.llama_cpp.tree, made_by, ollama.TALKS, scripts]
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()[:32]


def steps(work: Work, lock: Lock, found: Iterable[Handoff], logs: Path, create: bool) -> list[Step]:
    """Write each Modelfile and, where it is asked for, hand it to Ollama."""
    made = []
    for each in found:
        log = logs / f"modelfile-{each.name}.log"
        wrote = Step(name=f"modelfile {each.path.name}", action=_write(work, lock, each, log), log=log)
        made.append(wrote)
        if create and not split(each):
            log = logs / f"ollama-{each.name}.log"
            made.append(Step(name=f"ollama {each.name}", action=_create(each, log), needs=(wrote.name,), heavy=True, log=log))
    return made


def _write(work: Work, lock: Lock, each: Handoff, log: Path) -> Action:
    def action(tell: Tell) -> str:
        if reason := split(each):
            tell(f"note: {reason}")
            return "done"
        made = text(work, lock, each)
        if made is None:
            work.store.ensure("chats", _key(work, lock, each), lambda dest: _ask(work, lock, each, dest, log, tell))
            made = text(work, lock, each)
        assert made is not None
        if made[1].reason:
            tell(f"note: {each.path.name} has no TEMPLATE: {made[1].reason}")
        if text_of(each.path) == made[0]:
            return "current"
        write_atomically(each.path, made[0])
        return "done"

    return action


def _ask(work: Work, lock: Lock, each: Handoff, dest: Path, log: Path, tell: Tell) -> None:
    model = each.made.output.model
    wanted = locks.base_wanted(model)
    for before in (
        stages.source_action(work, lock),
        stages.environment_action(work, lock, log),
        stages.fetch_action(work, lock, wanted, model.name),
    ):
        before(tell)
    gguf = building.shards(each.base.output)[0]
    view = converter_view.folder(work, lock, building.view(work, lock.files(wanted), model.name))
    asked = {"view": str(view), "gguf": str(gguf), "talks": ollama.TALKS}
    (dest / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    package = building.tree(work, lock) / "gguf-py"
    argv = (str(building.python(work, lock)), str(SCRIPT), str(package), str(dest / "asked.json"), str(dest / "answer.json"))
    try:
        asking = Command(argv, cwd=str(dest), env=building.converter_env(work))
        process.stream(fence.around(asking, claims.limits(work.settings), (view, gguf), (dest,)), log)
    except CommandFailed as error:
        message = f"the chat template of {model.name} could not be looked at: {error.message}"
        hint = "leave `ollama` out for this model, or see the log"
        raise error.retold(explain.pointed(message, error.tail), hint, log) from error


def _create(each: Handoff, log: Path) -> Action:
    def action(tell: Tell) -> str:
        program = shutil.which("ollama") or "ollama"
        mine = {name: value for name, value in os.environ.items() if name.startswith("OLLAMA_")}
        command = Command((program, *each.commands[0].argv[1:]), cwd=str(each.path.parent), env=clean_env(**mine))
        try:
            process.stream(command, log, tell)
        except CommandFailed as error:
            hint = next((hint for pattern, hint in KNOWN if re.search(pattern, error.tail, re.IGNORECASE)), "see the log")
            said = process.last_lines(error.tail).split("\n")[-1]
            message = f"Ollama did not take {each.path.name}: {error.message} ({said})"
            raise error.retold(message, hint, log) from error
        return "done"

    return action


def handed(work: Work, lock: Lock, found: Iterable[Handoff]) -> tuple[Handed, ...]:
    """What a run says of its Modelfiles: where they lie, and the two commands."""
    shown = []
    for each in found:
        made = None if split(each) else text(work, lock, each)
        if made is None or text_of(each.path) != made[0]:
            continue
        create, run = map(str, each.commands)
        reason = made[1].reason
        shown.append(Handed(name=each.name, path=str(each.path), create=create, run=run, template=not reason, reason=reason))
    return tuple(shown)
