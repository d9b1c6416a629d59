"""What it takes to make each output: its command, its inputs, and the recipe that tells whether it is current."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llamacpp_orchestrator import translation
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.receipt import Input
from llamacpp_orchestrator.system.command import Command

if TYPE_CHECKING:
    from llamacpp_orchestrator.convert.imatrix import Matrix

TOOL = "{llama-quantize}"
# What a recipe says of Dense modules, which `encoders.options` has written; raise it with every change of what is written.
DENSE_REVISION = "dense modules 1"


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One output with all that decides its bytes; a quantized one is made `of` an output, perhaps with a matrix.

    `shown` is the command as it reads on every machine.
    """

    output: Output
    name: str
    command: Command
    shown: tuple[str, ...]
    inputs: tuple[Input, ...]
    recipe: str
    current: bool
    needs: tuple[tuple[Wanted, str], ...] = ()
    of: Output | None = None
    matrix: Matrix | None = None

    @property
    def origin(self) -> str:
        """The name of what a quantized output is made from."""
        return self.inputs[0].name

    @property
    def stage(self) -> Path:
        """The folder beside the final place in which it is made."""
        return _stage_path(self.output).parent


def verb(build: Build) -> str:
    """What is done to make an output, as its step is called."""
    return "quantize" if build.of else "convert"


def needs_programs(build: Build) -> bool:
    """Whether an output cannot be made, or not be checked as the job says, without the release's programs."""
    return bool(build.of) or build.output.model.verify in spec.RUNNING


def is_compared(build: Build) -> bool:
    """Whether the next tokens of an output are compared with its source's, in the reference environment."""
    return build.output.model.verify == "logits"


def waiting(stale: list[Build]) -> dict[Path, set[Path]]:
    """For each temporary output what is to be made of it."""
    found: dict[Path, set[Path]] = {}
    for build in stale:
        if build.of and build.of.temporary:
            found.setdefault(build.of.path, set()).add(build.output.path)
    return found


def tree(work: Work, lock: Lock) -> Path:
    """Where the converter tree of a lock lies."""
    return work.store.entry("source", lock.llama_cpp.key())


def python(work: Work, lock: Lock) -> Path:
    """The interpreter that runs the scripts: the built one, or the user's own."""
    if lock.environment is None:
        return python_in(work.folder(str(work.job.environment.path)))
    return python_of(work, lock.environment)


def python_of(work: Work, pin: EnvironmentPin) -> Path:
    """The interpreter of a built environment."""
    return python_in(work.store.entry("environments", pin.pin().digest()) / "venv")


def converter_env(work: Work) -> tuple[tuple[str, str], ...]:
    """The environment of every converter: its home for models is an empty folder of our cache."""
    return commands.environment(work.store.folder("home"))


def home(work: Work, remote: bool = False) -> Path:
    """The folder besides its own that a converter may write to; code that a model brought must not reach what others load."""
    made = work.store.folder("home") / "modules" if remote else work.store.folder("home")
    made.mkdir(exist_ok=True)
    return made


def view(work: Work, pin: FilesPin, name: str) -> Path:
    """The folder that a converter is shown for these files; it bears the name that goes into the GGUF."""
    origin = str(work.folder(pin.wanted.source)) if spec.is_folder(pin.wanted.source) else ""
    key = msgspec.json.encode([name, origin, pin.commit, pin.files])
    return work.store.entry("views", hashlib.sha256(key).hexdigest()[:32]) / name


def passed_on(output: Output) -> tuple[str, ...]:
    """The options that upstream's programs get for an output as the job has them; a quantized one has those of two programs."""
    model = output.model
    extra = {"mmproj": ("--mmproj",), "quantized": model.quantize_args}.get(output.kind, ())
    return (*(output.lora or model).args, *extra)


def builds(work: Work, lock: Lock, force: bool = False) -> list[Build]:
    """All outputs of a job in its order, quantized ones after what they are made from; temporary ones only where needed."""
    made: dict[Path, Build] = {}
    for _, output in layout.placed(work.job, work.file.parent):
        made[output.path] = (
            _quantized(work, lock, output, made, force) if output.kind == "quantized" else _converted(work, lock, output, force)
        )
    needed = {build.of.path for build in made.values() if build.of and not build.current}
    return [build for build in made.values() if not build.output.temporary or build.output.path in needed]


def hidden(output: Output) -> Output:
    """An output where it lies: a temporary one in a folder of its own beside its place, which goes with it."""
    if not output.temporary:
        return output
    folder = f".{hashlib.sha256(output.path.name.encode()).hexdigest()[:12]}.unquantized"
    return msgspec.structs.replace(output, path=output.path.parent / folder / output.path.name)


def visible(output: Output) -> Path:
    """Where an output would lie if it were kept."""
    return output.path.parent.parent / output.path.name if output.temporary else output.path


def unneeded(work: Work, made: list[Build]) -> list[Path]:
    """The folders of temporary outputs that a run before may have left, and that nothing is to be made of any more."""
    asked = [hidden(output).path for _, output in layout.placed(work.job, work.file.parent) if output.temporary]
    needed = {build.output.path for build in made}
    return [path.parent for path in asked if path not in needed and path.parent.is_dir()]


def _converted(work: Work, lock: Lock, asked: Output, force: bool) -> Build:
    output = hidden(asked)
    model, lora = output.model, output.lora
    base = lock.files(records.base_wanted(model))
    base_view = view(work, base, model.name)
    draft = _stage_path(output)
    if lora is None:
        args, metadata, named = _args(work, model)
        args += ("--mmproj",) if output.kind == "mmproj" else ()
        name = "" if named else model.name
        command = commands.model_command(str(python(work, lock)), tree(work, lock), base_view, draft, output.type, name, args)
        inputs = _inputs(model.name, base, weights=True) + tuple(metadata.values())
        needs: tuple[tuple[Wanted, str], ...] = ((base.wanted, model.name),)
        known = {str(base_view): "{model}", **dict.fromkeys(metadata, "{metadata}")}
    else:
        mine = lock.files(records.lora_wanted(lora))
        lora_view = view(work, mine, lora.name)
        command = commands.adapter_command(
            str(python(work, lock)), tree(work, lock), base_view, lora_view, draft, output.type, lora.args
        )
        inputs = _inputs(model.name, base, weights=False) + _inputs(lora.name, mine, weights=True)
        needs = ((base.wanted, model.name), (mine.wanted, lora.name))
        known = {str(base_view): "{model}", str(lora_view): "{adapter}"}
    known |= {str(python(work, lock)): "{python}", str(tree(work, lock)): "{tree}", str(draft.parent): "{output}"}
    dense = lora is None and any(re.fullmatch(r"\d_Dense/model\.safetensors", file.path) for file in base.files)
    rules = (translation.REVISION, *((adapter_scaling.RULE,) if lora else ()), *((DENSE_REVISION,) if dense else ()))
    return _build(work, lock, output, command, known, inputs, force, name=_name(work, asked), needs=needs, rules=rules)


def _args(work: Work, model: spec.Model) -> tuple[tuple[str, ...], dict[str, Input], bool]:
    """A model's arguments with the file of `--metadata` in full, that file as an input, and whether it names the model.

    JobError when it is not there, which upstream would pass over.
    """
    args, file = commands.metadata(model.args)
    if not file:
        return model.args, {}, False
    path = spec.folder(file, work.file.parent)
    if not path.is_file():
        raise JobError(f"{model.name}: --metadata {file} is not there", "is the path right? it is relative to the job file")
    names = safetensors.read_json(path)
    return (
        (*args, commands.METADATA, str(path)),
        {str(path): Input(name=path.name, digest=work.store.sha256(path))},
        "general.name" in names,
    )


def source_of(model: spec.Model) -> tuple[tuple[Wanted, str], ...]:
    """The files of a model, with the name of its view, as in `needs`."""
    return ((records.base_wanted(model), model.name),)


def _name(work: Work, output: Output) -> str:
    return Path(os.path.relpath(output.path, work.file.parent / work.job.output)).as_posix()


def _quantized(work: Work, lock: Lock, output: Output, made: dict[Path, Build], force: bool) -> Build:
    of = next(
        build
        for build in made.values()
        if build.output.model == output.model and build.output.kind == "model" and build.output.type in spec.UNQUANTIZED
    )
    model = output.model
    matrix = _matrix(work, lock, model, of)
    word, draft = matrix.name if matrix else "", _stage_path(output)

    def command(source: Path, split: bool) -> Command:
        return commands.quantize_command(Path(TOOL), source, draft, output.type, split, model.quantize_args, word)

    known = {str(of.output.path.parent): "{source}", str(draft.parent): "{output}"}
    inputs = (Input(name=of.name, digest=of.recipe), *([Input(name=matrix.name, digest=matrix.digest)] if matrix else []))
    # A file that will be made anew may come out differently, so what is made from it is not current either; a temporary
    # one is made anew only for what is not current by itself.
    anew = force or not (of.current or of.output.temporary)
    build = _build(
        work,
        lock,
        output,
        command(of.output.path, False),
        known,
        inputs,
        anew,
        name=_name(work, output),
        # It is compared with the source itself, which is otherwise needed only for what it is made of.
        needs=source_of(model) if model.verify == "logits" else (),
        of=of.output,
        matrix=matrix,
    )
    if len(files := shards(of.output)) < 2:
        return build
    # The recipe is the one of before the source was there, in how many files ever it came; receipts may have the other.
    split = command(files[0], True)
    shown = portable(split.argv, known)
    recipe = _recipe(work, lock, shown, inputs)
    current = build.current or (
        not anew and pipeline_receipt.is_current(pipeline_receipt.read(output.path), recipe, output.path.parent)
    )
    return msgspec.structs.replace(build, command=split, shown=shown, current=current)


def _matrix(work: Work, lock: Lock, model: spec.Model, of: Build) -> Matrix | None:
    if model.imatrix is None:
        return None
    from llamacpp_orchestrator.convert import imatrix  # with the programs that make one, which few jobs need

    source = lock.llama_cpp.tag, lock.llama_cpp.tree
    return imatrix.find(model.imatrix, work.file.parent, work.store, (model.name, of.recipe), source)


def _build(
    work: Work,
    lock: Lock,
    output: Output,
    command: Command,
    known: dict[str, str],
    inputs: tuple[Input, ...],
    force: bool,
    *,
    name: str,
    needs: tuple[tuple[Wanted, str], ...] = (),
    of: Output | None = None,
    rules: tuple[str, ...] = (),
    matrix: Matrix | None = None,
) -> Build:
    shown = portable(command.argv, known)
    recipe = _recipe(work, lock, shown, inputs, rules)
    current = not force and pipeline_receipt.is_current(pipeline_receipt.read(output.path), recipe, output.path.parent)
    return Build(
        output=output,
        name=name,
        command=command,
        shown=shown,
        inputs=inputs,
        recipe=recipe,
        current=current,
        needs=needs,
        of=of,
        matrix=matrix,
    )


def _recipe(work: Work, lock: Lock, shown: tuple[str, ...], inputs: tuple[Input, ...], rules: tuple[str, ...] = ()) -> str:
    made_by = lock.environment.pin().digest() if lock.environment else f"unpinned {work.job.environment.path}"
    made_from = [(each.name, each.digest) for each in inputs]
    parts = [shown, made_from, lock.llama_cpp.tree, made_by, *rules]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


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
    receipt = pipeline_receipt.read(output.path)
    return [output.path.parent / file.name for file in receipt.files] if receipt else []
