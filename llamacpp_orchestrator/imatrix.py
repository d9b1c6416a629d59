"""Importance matrices: a file that is given, or one that the tag's own `llama-imatrix` makes from a text."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path

import msgspec

from llamacpp_orchestrator import calls
from llamacpp_orchestrator import explain as explaining
from llamacpp_orchestrator import fence
from llamacpp_orchestrator import process
from llamacpp_orchestrator import spec
from llamacpp_orchestrator.artifact import Input
from llamacpp_orchestrator.command import UNLIMITED
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.command import Limits
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.spec import Imatrix
from llamacpp_orchestrator.steps import Tell
from llamacpp_orchestrator.store import Store

TOOL, SOURCE = "{llama-imatrix}", "{source}"
FOLDER = "imatrix"
GPU_WORDS = {"-ngl", "--gpu-layers", "--n-gpu-layers"}
LACKING = r"need at least (\d+) tokens|tokenizes to only (\d+) tokens"


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix with what decides its bytes; `given` is a file of the user's, `text` what one is made from."""

    name: str
    digest: str
    given: Path | None = None
    text: Path | None = None
    args: tuple[str, ...] = ()
    minutes: int = 0

    def word(self) -> str:
        """Its path as the tool is told it, and writes it into the result: relative, so that it is the same everywhere."""
        return f"{FOLDER}/{self.name}"

    def input(self) -> Input:
        """The same as an input of a quantized file."""
        return Input(name=self.word(), digest=self.digest)


def find(asked: Imatrix | None, place: Path, store: Store, source_recipe: str, tree: str) -> Matrix | None:
    """The matrix that a model in the folder `place` asks for; JobError when its file or text cannot be read."""
    if asked is None:
        return None
    path = spec.folder(asked.file or asked.text or "", place)
    try:
        content = store.sha256(path)
    except OSError as error:
        raise JobError(
            f"imatrix: {path} cannot be read: {error.strerror}", "is the path right? it is relative to the job file"
        ) from error
    if asked.file:
        return Matrix(name=path.name, digest=content, given=path)
    args = (*(("--chunks", str(asked.chunks)) if asked.chunks else ()), *asked.args)
    shown = command(Path(TOOL), Path(SOURCE), path.name, args, Path()).argv
    digest = hashlib.sha256(msgspec.json.encode([shown, content, source_recipe, tree])).hexdigest()
    return Matrix(name=_name(path.name), digest=digest, text=path, args=args, minutes=asked.minutes)


def _name(text: str) -> str:
    return f"{text}.imatrix.gguf"


def command(tool: Path, source: Path, text: str, args: tuple[str, ...], folder: Path) -> Command:
    """The call that makes a matrix in `folder`, where the text lies too; on the processor, for sums of a GPU vary."""
    words = ("-m", str(source), "-f", text, "-o", _name(text), "-c", "512", "-ngl", "0", *args)
    return Command((str(tool), *words), cwd=str(folder), env=tool_env(tool, args))


def tool_env(tool: Path, args: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The environment of a program that is to compute on the processor, unless the arguments speak of a GPU."""
    # With no layers of its own a GPU would still be given the larger products.
    unseen = {} if GPU_WORDS & set(args) else {"CUDA_VISIBLE_DEVICES": ""}
    return tuple(sorted({**dict(calls.tool_env(tool)), **unseen}.items()))


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
            asked = command(tool, source, matrix.text.name, matrix.args, dest)
            process.stream(fence.around(asked, limits, write=(dest,)), log, limit=matrix.minutes * 60.0)
        except CommandFailed as error:
            cause, hint = explain(error)
            raise error.retold(explaining.pointed(f"{cause}{error.message}", error.tail, error.code), hint, log) from error
        if not (dest / matrix.name).is_file():
            cause, hint = explain(CommandFailed("", code=0, tail=process.tail_of(log)))
            raise OrchestrateError(f"{cause}llama-imatrix said that it was done, but wrote no matrix", hint, log)

    store.ensure(FOLDER, matrix.digest, fill)


def explain(error: CommandFailed) -> tuple[str, str]:
    """What the tool's end likely means, and what to do."""
    if re.search(LACKING, error.tail):
        return "the text is too short: ", "give one of at least 1024 tokens, better of 50,000 or more"
    if "longer than" in error.message:
        return "", "give it more time (`minutes`) or less to do (`chunks`) under `imatrix`"
    return "", "the log holds the tool's whole output"


def lay(matrix: Matrix, store: Store, stage: Path) -> None:
    """Put the matrix where the tool is told to look for it; OrchestrateError when it has gone."""
    origin = matrix.given or store.entry(FOLDER, matrix.digest) / matrix.name
    (stage / FOLDER).mkdir(exist_ok=True)
    try:
        with contextlib.suppress(OSError):
            os.link(origin, stage / FOLDER / matrix.name)
            return
        shutil.copyfile(origin, stage / FOLDER / matrix.name)
    except OSError as error:
        raise OrchestrateError(f"{origin} cannot be read: {error.strerror}", "was it moved or removed?") from error
