"""Plans of the outputs: command, inputs, and the recipe by which an output is current or not."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llamacpp_orchestrator import translation
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.receipt import Input
from llamacpp_orchestrator.system.command import Command

if TYPE_CHECKING:
    from llamacpp_orchestrator.convert.imatrix import Matrix

TOOL = "{llama-quantize}"
# In the names of this process's stage folders: no run ever writes, or takes for its own, what another is making.
RUN = secrets.token_hex(4)
# What a recipe says of Dense modules, which `encoders.options` has written; raise it with every change of what is written.
DENSE_REVISION = "dense modules 1"


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One output with all that decides its bytes; a quantized one is made `of` an output, perhaps with a matrix.

    `needs` is what it is converted from, `views` where a converter is shown that: of the model, and of its adapter.
    `portable_argv` is the command as it reads on every machine; `recipes` are the digests of what decides the bytes, of which a
    receipt has one: the first is that of an output that is made now.
    """

    output: Output
    name: str
    command: Command
    portable_argv: tuple[str, ...]
    inputs: tuple[Input, ...]
    recipes: tuple[str, ...]
    needs: tuple[Ingredient, ...] = ()
    views: tuple[Path, ...] = ()
    of: Output | None = None
    matrix: Matrix | None = None

    @property
    def recipe(self) -> str:
        """The digest of what decides its bytes."""
        return self.recipes[0]

    @property
    def origin(self) -> str:
        """The name of what a quantized output is made from."""
        return self.inputs[0].name

    @property
    def stage(self) -> Path:
        """The folder beside the final place in which this run makes it."""
        return _stage_path(self.output).parent

    @property
    def stage_key(self) -> str:
        """What the names of the folders begin with in which any run makes it."""
        return _stage_key(self.output)


class Outputs(msgspec.Struct, frozen=True):
    """The outputs of a job, temporary ones only where needed, as they were at one moment; `current` are those up to date."""

    builds: tuple[Build, ...]
    current: frozenset[Path]

    @property
    def stale(self) -> list[Build]:
        """Those that are to be made."""
        return [build for build in self.builds if build.output.path not in self.current]

    @property
    def kept(self) -> list[Build]:
        """Those that stay."""
        return [build for build in self.builds if not build.output.temporary]


def verb(build: Build) -> str:
    """The kind of the step that makes an output."""
    return "quantize" if build.of else "keep" if build.output.kind == "merged" else "convert"


def is_converted(build: Build) -> bool:
    """Tell whether upstream's script makes an output."""
    return verb(build) == "convert"


def needs_programs(build: Build) -> bool:
    """Tell whether an output cannot be made, or not be checked as the job says, without the release's programs."""
    return bool(build.of) or (is_converted(build) and build.output.model.verify in check_levels.RUNNING)


def is_compared(build: Build) -> bool:
    """Tell whether the next tokens of an output are compared with its source's, in the reference environment."""
    return build.output.kind != "merged" and build.output.model.verify in check_levels.COMPARING


def is_loaded(build: Build, stale: Iterable[Build]) -> bool:
    """Whether an output is loaded to check it; `auto` does where the programs come anyway for the outputs that are `stale`."""
    model = build.output.model
    if build.output.kind == "merged":
        return False
    by_chance = model.verify == check_levels.AUTO and model.quantize and any(map(needs_programs, stale))
    return model.verify in check_levels.RUNNING or bool(by_chance)


def passed_on(output: Output) -> tuple[str, ...]:
    """The options that upstream's programs get for an output as the job has them; a quantized one has those of two programs."""
    model = output.model
    extra = {"mmproj": ("--mmproj",), "quantized": model.quantize_args}.get(output.kind, ())
    return (*(output.lora or model).args, *extra)


def builds(pinned: PinnedJob) -> list[Build]:
    """All outputs of a job in its order, quantized ones after what they are made from, temporary ones too."""
    by_path: dict[Path, Build] = {}
    for _, output in layout.placed(pinned.context.job, pinned.context.file.parent):
        if output.kind == "quantized":
            by_path[output.path] = _quantized(pinned, output, by_path.values())
        else:
            by_path[output.path] = (_kept if output.kind == "merged" else _converted)(pinned, output)
    return list(by_path.values())


def outputs(pinned: PinnedJob, force: bool = False) -> Outputs:
    """The outputs of a job as they are now; with `force` none is up to date."""
    every = builds(pinned)
    current: set[Path] = set()
    for build in every if not force else ():
        # A file that will be made anew may come out differently, so what is made from it is not current either; a temporary
        # one is made anew only for what is not current by itself.
        if is_current(build) and (build.of is None or build.of.temporary or build.of.path in current):
            current.add(build.output.path)
    needed = {build.of.path for build in every if build.of and build.output.path not in current}
    kept = tuple(build for build in every if not build.output.temporary or build.output.path in needed)
    return Outputs(kept, frozenset(current))


def is_current(build: Build) -> bool:
    """Tell whether an output is what it would be if it were made now, by the size and time of its files alone."""
    receipt = pipeline_receipt.read(build.output.path)
    return any(pipeline_receipt.is_current(receipt, recipe, build.output.path.parent) for recipe in build.recipes)


def hidden(output: Output) -> Output:
    """An output where it lies: a temporary one in a folder of its own beside its place, which goes with it."""
    if not output.temporary:
        return output
    folder = f".{hashlib.sha256(output.path.name.encode()).hexdigest()[:12]}.unquantized"
    return msgspec.structs.replace(output, path=output.path.parent / folder / output.path.name)


def visible(output: Output) -> Path:
    """The path that an output would have if it were kept."""
    return output.path.parent.parent / output.path.name if output.temporary else output.path


def unneeded(context: Context, outputs: Outputs) -> list[Path]:
    """The folders of temporary outputs that a run before may have left, and that nothing is to be made of any more."""
    temporary = [hidden(output).path for _, output in layout.placed(context.job, context.file.parent) if output.temporary]
    needed = {build.output.path for build in outputs.builds}
    return [path.parent for path in temporary if path not in needed and path.parent.is_dir()]


def _converted(pinned: PinnedJob, placed: Output) -> Build:
    output = hidden(placed)
    model, lora = output.model, output.lora
    base = records.model_need(model)
    base_view = pinned.view(base)
    draft = _stage_path(output)
    if lora is None:
        args, metadata, named = _args(pinned.context, model)
        args += ("--mmproj",) if output.kind == "mmproj" else ()
        name = "" if named else model.name
        command = commands.model_command(str(pinned.python), pinned.tree, base_view, draft, output.type, name, args)
        inputs = _inputs(pinned, base, weights=True) + tuple(metadata.values())
        needs: tuple[Ingredient, ...] = (base,)
        views: tuple[Path, ...] = (base_view,)
        places = {str(base_view): "{model}", **dict.fromkeys(metadata, "{metadata}")}
    else:
        mine = Ingredient(records.lora_wanted(lora), lora.name)
        lora_view = pinned.view(mine)
        command = commands.adapter_command(str(pinned.python), pinned.tree, base_view, lora_view, draft, output.type, lora.args)
        inputs = _inputs(pinned, base, weights=False) + _inputs(pinned, mine, weights=True)
        needs, views = (base, mine), (base_view, lora_view)
        places = {str(base_view): "{model}", str(lora_view): "{adapter}"}
    places |= {str(pinned.python): "{python}", str(pinned.tree): "{tree}", str(draft.parent): "{output}"}
    dense = lora is None and any(
        re.fullmatch(r"\d_Dense/model\.safetensors", file.path) for file in pinned.files(base.wanted).files
    )
    rules = (translation.REVISION, *((adapter_scaling.RULE,) if lora else ()), *((DENSE_REVISION,) if dense else ()))
    rules += (pinned.merged_key(base),) if base.merged else ()
    words = portable(command.argv, places)
    return Build(
        output=output,
        name=name_of(pinned.context, placed),
        command=command,
        portable_argv=words,
        inputs=inputs,
        recipes=(_recipe(pinned, words, inputs, rules),),
        needs=needs,
        views=views,
    )


def _kept(pinned: PinnedJob, output: Output) -> Build:
    """The merged model itself, as a folder."""
    source = records.model_need(output.model)
    words = ("merge", "{model}", *(f"{adapter.name} x {weight:g}" for adapter, weight in source.merged))
    inputs = _inputs(pinned, source, weights=True)
    return Build(
        output=output,
        name=name_of(pinned.context, output),
        command=Command(()),
        portable_argv=words,
        inputs=inputs,
        recipes=(_recipe(pinned, words, inputs, (pinned.merged_key(source),)),),
        needs=(source,),
        views=(pinned.view(source),),
    )


def _args(context: Context, model: spec.Model) -> tuple[tuple[str, ...], dict[str, Input], bool]:
    """A model's arguments with the file of `--metadata` in full, that file as an input, and whether it names the model.

    JobError when it is not there, which upstream would pass over.
    """
    args, file = commands.metadata(model.args)
    if not file:
        return model.args, {}, False
    path = context.folder(file)
    if not path.is_file():
        raise JobError(f"{model.name}: --metadata {file} is not there", "is the path right? it is relative to the job file")
    names = safetensors.read_json(path)
    return (
        (*args, commands.METADATA, str(path)),
        {str(path): Input(name=path.name, digest=context.store.sha256(path))},
        "general.name" in names,
    )


def name_of(context: Context, output: Output) -> str:
    """What an output is called: its path below the output folder."""
    return Path(os.path.relpath(output.path, context.file.parent / context.job.output)).as_posix()


def _quantized(pinned: PinnedJob, output: Output, others: Iterable[Build]) -> Build:
    of = next(
        build
        for build in others
        if build.output.model == output.model and build.output.kind == "model" and build.output.type in spec.UNQUANTIZED
    )
    model = output.model
    matrix = _matrix(pinned, model, of)
    word, draft = matrix.name if matrix else "", _stage_path(output)
    places = {str(of.output.path.parent): "{source}", str(draft.parent): "{output}"}
    inputs = (Input(name=of.name, digest=of.recipe), *([Input(name=matrix.name, digest=matrix.digest)] if matrix else []))

    def command(source: Path, split: bool) -> Command:
        return commands.quantize_command(Path(TOOL), source, draft, output.type, model, split, word)

    # The recipe is the one of before the source was there, in how many files ever it came; receipts may have the other.
    ways, files = [command(of.output.path, False)], shards(of.output)
    ways += [command(files[0], True)] if len(files) > 1 else []
    forms = [portable(way.deciding, places) for way in ways]
    # It is compared with the source itself, which is otherwise needed only for what it is made of.
    needs = (records.model_need(model),) if model.verify in check_levels.COMPARING else ()
    return Build(
        output=output,
        name=name_of(pinned.context, output),
        command=ways[-1],
        portable_argv=forms[-1],
        inputs=inputs,
        recipes=tuple(_recipe(pinned, words, inputs) for words in forms),
        needs=needs,
        views=tuple(map(pinned.view, needs)),
        of=of.output,
        matrix=matrix,
    )


def _matrix(pinned: PinnedJob, model: spec.Model, of: Build) -> Matrix | None:
    if model.imatrix is None:
        return None
    from llamacpp_orchestrator.convert import imatrix  # with the programs that make one, which few jobs need

    path, source = pinned.context.folder(model.imatrix.file or model.imatrix.text or ""), (pinned.tag, pinned.lock.llama_cpp.tree)
    return imatrix.find(model.imatrix, path, pinned.store, (model.name, of.recipe), source)


def _recipe(pinned: PinnedJob, words: tuple[str, ...], inputs: tuple[Input, ...], rules: tuple[str, ...] = ()) -> str:
    ingredients = [(item.name, item.digest) for item in inputs]
    parts = [words, ingredients, pinned.lock.llama_cpp.tree, pinned.environment_key, *rules]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def portable(argv: tuple[str, ...], places: dict[str, str]) -> tuple[str, ...]:
    """A command with this machine's folders replaced by what they are, so that it reads the same everywhere."""
    ordered = sorted(places.items(), key=lambda item: -len(item[0]))
    words = []
    for word in argv:
        for path, name in ordered:
            if word == path or word.startswith((path + "/", path + "\\")):
                word = name + word[len(path) :].replace("\\", "/")
                break
        words.append(word)
    return tuple(words)


def _inputs(pinned: PinnedJob, need: Ingredient, weights: bool) -> tuple[Input, ...]:
    """The files that something is made of; of what is merged the weights count in any case, for they decide what it is."""
    pins = [(part.name, pinned.files(part.wanted)) for part in need.parts]
    files = [(name, file) for name, pin in pins for file in (pin.files if weights or need.merged else pin.small.files)]
    return tuple(Input(name=f"{name}/{file.path}", digest=file.sha256 or f"git:{file.oid}") for name, file in files)


def _stage_path(output: Output) -> Path:
    return output.path.parent / f".{_stage_key(output)}.{RUN}.stage" / output.path.name


def _stage_key(output: Output) -> str:
    # A digest, for the file's own name may already be as long as a name can be.
    return hashlib.sha256(output.path.name.encode()).hexdigest()[:12]


def shards(output: Output) -> list[Path]:
    """The files that an output has now, by its receipt."""
    receipt = pipeline_receipt.read(output.path)
    return [output.path.parent / file.name for file in receipt.files] if receipt else []
