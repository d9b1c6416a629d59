"""What it takes to make each output: its command, its inputs, and the recipe that tells whether it is current."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from llamacpp_orchestrator import artifact
from llamacpp_orchestrator import convert
from llamacpp_orchestrator import environment
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import quantize
from llamacpp_orchestrator import spec
from llamacpp_orchestrator.artifact import Input
from llamacpp_orchestrator.lock import FilesPin
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.lock import Wanted
from llamacpp_orchestrator.pins import Work
from llamacpp_orchestrator.process import Command
from llamacpp_orchestrator.spec import Output

TOOL = "{llama-quantize}"


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One output with all that decides its bytes; `of` is the output that a quantized one is made from."""

    output: Output
    name: str
    command: Command
    inputs: tuple[Input, ...]
    recipe: str
    current: bool
    needs: tuple[tuple[Wanted, str], ...] = ()
    of: Output | None = None

    @property
    def stage(self) -> Path:
        """The folder beside the final place in which it is made."""
        return _stage_path(self.output).parent


def needs_programs(build: Build) -> bool:
    """Whether an output cannot be made, or not be checked as the job says, without the release's programs."""
    return bool(build.of) or build.output.model.verify == "load"


def tree(work: Work, lock: Lock) -> Path:
    """Where the converter tree of a lock lies."""
    return work.store.entry("source", lock.llama_cpp.key())


def python(work: Work, lock: Lock) -> Path:
    """The interpreter that runs the scripts: the built one, or the user's own."""
    if lock.environment is None:
        return environment.python_in(work.folder(str(work.job.environment.path)))
    return environment.python_in(work.store.entry("environments", lock.environment.pin().digest()) / "venv")


def converter_env(work: Work) -> tuple[tuple[str, str], ...]:
    """The environment of every converter: its home for models is an empty folder of our cache."""
    return convert.environment(work.store.folder("home"))


def view(work: Work, pin: FilesPin, name: str) -> Path:
    """The folder that a converter is shown for these files; it bears the name that goes into the GGUF."""
    origin = str(work.folder(pin.wanted.source)) if spec.is_folder(pin.wanted.source) else ""
    key = msgspec.json.encode([name, origin, pin.commit, pin.files])
    return work.store.entry("views", hashlib.sha256(key).hexdigest()[:32]) / name


def builds(work: Work, lock: Lock, force: bool = False) -> list[Build]:
    """All outputs of a job in its order, quantized ones after what they are made from."""
    made: dict[Path, Build] = {}
    for output in spec.outputs(work.job, work.file.parent):
        made[output.path] = (
            _quantized(work, lock, output, made, force) if output.kind == "quantized" else _converted(work, lock, output, force)
        )
    return list(made.values())


def _converted(work: Work, lock: Lock, output: Output, force: bool) -> Build:
    model, lora = output.model, output.lora
    base = lock.files(locks.base_wanted(model))
    base_view = view(work, base, model.name)
    draft = _stage_path(output)
    if lora is None:
        command = convert.model_command(
            str(python(work, lock)), tree(work, lock), base_view, draft, output.type, model.name, model.args
        )
        inputs = _inputs(model.name, base, weights=True)
        needs: tuple[tuple[Wanted, str], ...] = ((base.wanted, model.name),)
        known = {str(base_view): "{model}"}
    else:
        mine = lock.files(locks.lora_wanted(lora))
        lora_view = view(work, mine, lora.name)
        command = convert.adapter_command(
            str(python(work, lock)), tree(work, lock), base_view, lora_view, draft, output.type, lora.args
        )
        inputs = _inputs(model.name, base, weights=False) + _inputs(lora.name, mine, weights=True)
        needs = ((base.wanted, model.name), (mine.wanted, lora.name))
        known = {str(base_view): "{model}", str(lora_view): "{adapter}"}
    known |= {str(python(work, lock)): "{python}", str(tree(work, lock)): "{tree}", str(draft.parent): "{output}"}
    return _build(work, lock, output, command, known, inputs, force, needs=needs)


def _quantized(work: Work, lock: Lock, output: Output, made: dict[Path, Build], force: bool) -> Build:
    of = next(
        build
        for build in made.values()
        if build.output.model == output.model and build.output.kind == "model" and build.output.type in spec.UNQUANTIZED
    )
    files = shards(of.output)
    command = quantize.command(
        Path(TOOL), files[0] if files else of.output.path, _stage_path(output), output.type, len(files) > 1
    )
    known = {str(of.output.path.parent): "{source}", str(_stage_path(output).parent): "{output}"}
    inputs = (Input(name=of.name, digest=of.recipe),)
    # A file that will be made anew may come out differently, so what is made from it is not current either.
    return _build(work, lock, output, command, known, inputs, force or not of.current, of=of.output)


def _build(
    work: Work,
    lock: Lock,
    output: Output,
    command: Command,
    known: dict[str, str],
    inputs: tuple[Input, ...],
    force: bool,
    *,
    needs: tuple[tuple[Wanted, str], ...] = (),
    of: Output | None = None,
) -> Build:
    shown = portable(command.argv, known)
    made_by = lock.environment.pin().digest() if lock.environment else f"unpinned {work.job.environment.path}"
    recipe = hashlib.sha256(msgspec.json.encode([shown, inputs, lock.llama_cpp.tree, made_by])).hexdigest()
    current = not force and artifact.is_current(artifact.read(output.path), recipe, output.path.parent)
    name = Path(os.path.relpath(output.path, work.file.parent / work.job.output)).as_posix()
    return Build(output=output, name=name, command=command, inputs=inputs, recipe=recipe, current=current, needs=needs, of=of)


def portable(argv: tuple[str, ...], known: dict[str, str]) -> tuple[str, ...]:
    """A command with this machine's folders replaced by what they are, so that it reads the same everywhere."""
    ordered = sorted(known.items(), key=lambda item: -len(item[0]))
    shown = []
    for word in argv:
        for path, name in ordered:
            if word == path or word.startswith((path + "/", path + "\\")):
                word = name + word[len(path) :].replace("\\", "/")
                break
        shown.append(word)
    return tuple(shown)


def _inputs(name: str, pin: FilesPin, weights: bool) -> tuple[Input, ...]:
    files = [file for file in pin.files if weights or not file.path.endswith(".safetensors")]
    return tuple(Input(name=f"{name}/{file.path}", digest=file.sha256 or f"git:{file.oid}") for file in files)


def _stage_path(output: Output) -> Path:
    # A digest, for the file's own name may already be as long as a name can be.
    return output.path.parent / f".{hashlib.sha256(output.path.name.encode()).hexdigest()[:12]}.stage" / output.path.name


def shards(output: Output) -> list[Path]:
    """The files that an output has now, by its receipt."""
    receipt = artifact.read(output.path)
    return [output.path.parent / file.name for file in receipt.files] if receipt else []
