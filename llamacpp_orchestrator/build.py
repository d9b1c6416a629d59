"""What it takes to make each output: its command, inputs and recipe, and the actions that convert, check and publish it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from filelock import FileLock
from filelock import Timeout

import llamacpp_orchestrator
from llamacpp_orchestrator import adapters
from llamacpp_orchestrator import artifact
from llamacpp_orchestrator import convert
from llamacpp_orchestrator import environment
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import quantize
from llamacpp_orchestrator import spec
from llamacpp_orchestrator import verify
from llamacpp_orchestrator.artifact import Input
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import FilesPin
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.lock import Wanted
from llamacpp_orchestrator.pins import Work
from llamacpp_orchestrator.process import Command
from llamacpp_orchestrator.spec import Output
from llamacpp_orchestrator.steps import Action
from llamacpp_orchestrator.steps import Tell
from llamacpp_orchestrator.store import remove

TOOL = "{llama-quantize}"
Converter = Callable[[Command, Path, Tell], None]


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
    shards = _shards(of.output)
    command = quantize.command(
        Path(TOOL), shards[0] if shards else of.output.path, _stage_path(output), output.type, len(shards) > 1
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


def _shards(output: Output) -> list[Path]:
    receipt = artifact.read(output.path)
    return [output.path.parent / file.name for file in receipt.files] if receipt else []


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """Where one run makes things: its log folder, its converter, the locks that it holds, and whether it may overwrite."""

    work: Work
    lock: Lock
    logs: Path
    converter: Converter
    held: dict[Path, FileLock]
    force: bool = False

    def log(self, step: str) -> Path:
        """The log file of one step."""
        return self.logs / f"{''.join(letter if letter.isalnum() or letter in '-._' else '-' for letter in step)[:120]}.log"


def convert_action(bench: Bench, build: Build) -> Action:
    """Run upstream's script into the stage folder; "current" when another run has just made the same."""

    def action(tell: Tell) -> str:
        if not _prepare(bench, build, tell):
            return "current"
        _check_adapter(bench, build)
        env = converter_env(bench.work)
        bench.converter(msgspec.structs.replace(build.command, env=env), bench.log(f"convert {build.name}"), tell)
        return "done"

    return action


def _check_adapter(bench: Bench, build: Build) -> None:
    if build.output.lora:
        base, mine = (view(bench.work, bench.lock.files(wanted), name) for wanted, name in build.needs)
        adapters.check(mine, base, build.output.lora.name, build.output.model.name)


def quantize_action(bench: Bench, build: Build, tool: Callable[[], Path]) -> Action:
    """Run llama-quantize into the stage folder; "current" when another run has just made the same."""

    def action(tell: Tell) -> str:
        if not _prepare(bench, build, tell):
            return "current"
        assert build.of is not None
        shards = _shards(build.of)
        draft = build.stage / build.output.path.name
        quantize.run(
            quantize.command(tool(), shards[0], draft, build.output.type, len(shards) > 1),
            bench.log(f"quantize {build.name}"),
            tell,
        )
        return "done"

    return action


def _prepare(bench: Bench, build: Build, tell: Tell) -> bool:
    path, held = build.output.path, _lock(bench, build)
    try:
        held.acquire(timeout=0)
    except Timeout:
        tell("note: another run is making this file; waiting for it")
        held.acquire()
    bench.held[path] = held
    publish(build)
    if not bench.force and artifact.is_current(artifact.read(path), build.recipe, path.parent):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(build.stage)
        build.stage.mkdir()
    except OSError as error:
        raise OrchestrateError(f"cannot write into {path.parent}: {error.strerror}", "check the folder's rights") from error
    return True


def _lock(bench: Bench, build: Build) -> FileLock:
    key = hashlib.sha256(os.path.normcase(build.output.path.resolve()).encode()).hexdigest()[:32]
    return FileLock(bench.work.store.folder("locks") / f"output-{key}.lock", thread_local=False, is_singleton=False)


def heal(bench: Bench, build: Build) -> None:
    """End what a killed run left half published, so that its files are known as ours."""
    if build.stage.exists():
        with _lock(bench, build):
            publish(build)


def verify_action(bench: Bench, build: Build) -> Action:
    """Check what lies in the stage folder, rename it into its final place and write the receipt."""

    def action(tell: Tell) -> str:
        path = build.output.path
        if not build.stage.exists():
            release(bench, build)
            return "current"
        files = sorted(build.stage.glob("*.gguf"))
        if not files:
            raise OrchestrateError(
                f"upstream said that it was done, but wrote no {build.output.path.name}", "the log holds its output"
            )
        verify.check_set(tuple(files))
        known = artifact.read(path)
        for file in files:
            artifact.may_write(path.parent / file.name, known, bench.force)
        artifact.write(build.stage / path.name, _receipt(bench, build, files))
        publish(build)
        release(bench, build)
        return "done"

    return action


def publish(build: Build) -> None:
    """Rename a checked output into its final place, its receipt last.

    The receipt lies in the stage folder before the first rename: whoever finds it there, after a crash, ends the work.
    """
    path = build.output.path
    receipt = artifact.read(build.stage / path.name)
    if receipt is None:
        return
    known = artifact.read(path)
    for file in receipt.files:
        if (build.stage / file.name).exists():
            os.replace(build.stage / file.name, path.parent / file.name)
    artifact.write(path, receipt)
    for name in {file.name for file in known.files} - {file.name for file in receipt.files} if known else ():
        remove(path.parent / name)
    remove(build.stage)


def _receipt(bench: Bench, build: Build, files: list[Path]) -> artifact.Receipt:
    lock = bench.lock
    return artifact.Receipt(
        path=build.output.path.name,
        kind=build.output.kind,
        type=build.output.type,
        recipe=build.recipe,
        command=build.command.argv,
        inputs=build.inputs,
        versions=artifact.Versions(
            tool=llamacpp_orchestrator.__version__,
            tag=lock.llama_cpp.tag,
            commit=lock.llama_cpp.commit,
            tree=lock.llama_cpp.tree,
            environment=lock.environment.pin().digest() if lock.environment else "unpinned",
            lock=locks.digest(lock),
        ),
        files=tuple(artifact.record(file) for file in files),
        job=_way(bench.work.file, build.output.path.parent),
    )


def _way(job: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(job, folder)).as_posix()
    except ValueError:
        return ""  # on another drive: no relative way, and an absolute one would hold on one machine only


def release(bench: Bench, build: Build) -> None:
    """Let other runs make this output."""
    if held := bench.held.pop(build.output.path, None):
        held.release()


def clean(bench: Bench, made: list[Build]) -> None:
    """Remove what an interrupted or failed run has left beside its outputs."""
    for build in made:
        if build.output.path in bench.held:
            remove(build.stage)
            release(bench, build)
