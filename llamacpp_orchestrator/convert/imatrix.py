"""Importance matrices: a file that is given, or one that the tag's own `llama-imatrix` makes from a text."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from llamacpp_orchestrator.binaries.selection import build_number
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job.spec import Imatrix
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.system import command as system_command
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import UNLIMITED
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import Limits
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import Store

TOOL, SOURCE = "{llama-imatrix}", "{source}"
FOLDER = "imatrix"
FIRST_GGUF = 5942  # the tag whose llama-imatrix writes GGUF under such a name; before it had a format of its own
GPU_WORDS = {"-ngl", "--gpu-layers", "--n-gpu-layers"}


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix with what decides its bytes; `given` is a file of the user's, `text` what one is made from.

    `name` is a bare one, for the tool writes it into the result: the file of that name lies beside it.
    """

    name: str
    digest: str
    made: str = ""
    given: Path | None = None
    text: Path | None = None
    args: tuple[str, ...] = ()
    minutes: int = 0

    @property
    def on_gpu(self) -> bool:
        """Tell whether making it may compute on a GPU."""
        return bool(GPU_WORDS & set(self.args))

    def file(self, store: Store) -> Path:
        """Where it lies: the user's own, or the one in the store."""
        return self.given or store.entry(FOLDER, self.digest) / self.made


def find(asked: Imatrix, path: Path, store: Store, of: tuple[str, str], source: tuple[str, str]) -> Matrix:
    """The matrix that a model asks for, out of the file or text at `path`; JobError when that cannot be read.

    `of` is the model's name and the recipe of the file that is measured, `source` the tag and the digest of its tree.
    """
    try:
        content = store.sha256(path)
    except OSError as error:
        raise JobError(
            f"imatrix: {path} cannot be read: {error.strerror}", "is the path right? it is relative to the job file"
        ) from error
    if asked.file:
        return Matrix(name=path.name, digest=content, given=path)
    (name, recipe), (tag, tree) = of, source
    made = f"imatrix.{'gguf' if build_number(tag) >= FIRST_GGUF else 'dat'}"
    args = (*(("--chunks", str(asked.chunks)) if asked.chunks else ()), *asked.args)
    shown = command(Path(TOOL), Path(SOURCE), path.name, made, args, Path()).argv
    digest = hashlib.sha256(msgspec.json.encode([shown, content, recipe, tree])).hexdigest()
    return Matrix(name=f"{name}-{made}", digest=digest, made=made, text=path, args=args, minutes=asked.minutes)


def command(tool: Path, source: Path, text: str, made: str, args: tuple[str, ...], folder: Path) -> Command:
    """The call that makes a matrix in `folder`, where the text lies too; on the processor, for sums of a GPU vary."""
    words = ("-m", str(source), "-f", text, "-o", made, "-c", "512", "-ngl", "0", *args)
    return Command((str(tool), *words), cwd=str(folder), env=tool_env(tool, args))


def tool_env(tool: Path, args: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The environment of a program that is to compute on the processor, unless the arguments speak of a GPU."""
    # With no layers of its own a GPU would still be given the larger products.
    unseen = {} if GPU_WORDS & set(args) else {"CUDA_VISIBLE_DEVICES": ""}
    return tuple(sorted({**dict(system_command.tool_env(tool)), **unseen}.items()))


def ready(matrix: Matrix, store: Store) -> bool:
    """Whether nothing needs to be made for it."""
    return matrix.given is not None or store.has(FOLDER, matrix.digest)


def make(matrix: Matrix, store: Store, tool: Path, source: Path, log: Path, tell: Tell, limits: Limits = UNLIMITED) -> None:
    """Make a matrix in the store; CommandFailed says why it could not be made, or that it took too long."""

    def fill(dest: Path) -> None:
        assert matrix.text is not None
        shutil.copyfile(matrix.text, dest / matrix.text.name)
        tell(f"computing, for at most {matrix.minutes} minutes")
        try:
            asked = command(tool, source, matrix.text.name, matrix.made, matrix.args, dest)
            process.stream(sandbox.around(asked, limits, write=(dest,)), log, limit=matrix.minutes * 60.0)
        except CommandFailed as error:
            cause, hint = explain(error)
            raise error.retold(diagnose.pointed(f"{cause}{error.message}", error.tail, error.code), hint, log) from error
        if not (dest / matrix.made).is_file():
            cause, hint = explain(CommandFailed("", code=0, tail=process.words_of(log)))
            raise OrchestrateError(f"{cause}llama-imatrix said that it was done, but wrote no matrix", hint, log)

    store.ensure(FOLDER, matrix.digest, fill, about=matrix.name)


def explain(error: CommandFailed) -> tuple[str, str]:
    """What the tool's end likely means, and what to do."""
    cause, remedy = diagnose.machine(error.code, f"{error.message}\n{error.tail}")
    if remedy:
        return f"{cause}: " if cause else "", remedy
    cause, remedy = matched(error.tail, table("convert", "llama_imatrix"))
    if cause:
        return f"{cause}: ", remedy
    if "longer than" in error.message:
        return "", "give it more time (`minutes`) or less to do (`chunks`) under `imatrix`"
    return "", "the log holds the tool's whole output"


def lay(matrix: Matrix, store: Store, stage: Path) -> None:
    """Put a copy of the matrix where the tool is told to look for it; OrchestrateError when it has gone."""
    origin = matrix.file(store)
    try:
        shutil.copyfile(origin, stage / matrix.name)
    except OSError as error:
        raise OrchestrateError(f"{origin} cannot be read: {error.strerror}", "was it moved or removed?") from error


def keep(matrix: Matrix, stage: Path, folder: Path, ours: Collection[str]) -> tuple[str, ...]:
    """Move a laid matrix beside the output, for whoever wants to prove that; what is to be said where another file is in its way.

    `ours` are the digests of what may be overwritten, as made before.
    """
    laid, place = stage / matrix.name, folder / matrix.name
    there = file_sha256(place) if place.is_file() else ""
    if place.exists() and there not in (*ours, file_sha256(laid)):
        laid.unlink()
        return (f"another file named {matrix.name} lies beside it, so the matrix that it was made with is not kept there",)
    os.replace(laid, place) if not there or there in ours else laid.unlink()
    return ()
