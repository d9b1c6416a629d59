"""Level `load`: run the tag's own program on an output for one token."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path

from llamacpp_orchestrator.convert.encoders import ENCODERS
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import UNLIMITED
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import Limits
from llamacpp_orchestrator.system.command import tool_env
from llamacpp_orchestrator.verify.gguf import Checks

# In the order of choice: from b7356 llama-cli is a chat alone, and from then on the first is there.
PROGRAMS = ("llama-completion", "llama-cli")
EMBEDDING = "llama-embedding"
# What the loader says when the file itself is to blame (src/llama-model-loader.cpp, src/llama-model.cpp).
BLAME = re.compile(
    r"missing tensor '[^']*'|tensor '[^']*' (?:not found|has wrong shape[^\n]*)|wrong number of tensors[^\n]*"
    r"|unknown[^\n]*architecture[^\n]*|error loading model[^\n]*"
)
# What is said once a model is in memory; newer programs do not say that they have read it, but go on to what comes next.
LOADED = re.compile(r"llama_model_loader: loaded meta data|print_info: |llm_load_print_meta: |system_info: n_threads")
ABORTED = (134, -6, 3)
LIMIT_SECONDS, BYTES_PER_SECOND = 120.0, 10_000_000


def command(tool: Path, files: Sequence[Path], base: Sequence[Path], help_text: str) -> Command:
    """The call that loads a model, or an adapter on its base, and makes one token, on the processor."""
    model, more = (base[0], ("--lora", str(files[0]))) if base else (files[0], ())
    words = ["-m", str(model), *more, "-p", "a", "-c", "64", "-ngl", "0"]
    if tool.stem != EMBEDDING:
        words += ["-n", "1"]
        # To warm up is to run the model once more, and nothing is measured here.
        words += [option for option in ("-no-cnv", "--no-warmup") if option in help_text]
    return Command((str(tool), *words), cwd=str(model.parent), env=tool_env(tool))


def limit(files: Sequence[Path], base: Sequence[Path]) -> float:
    """Seconds that loading may take: a slow disk reads 10 MB in one."""
    return LIMIT_SECONDS + sum(path.stat().st_size for path in (*files, *base)) / BYTES_PER_SECOND


def program(architecture: str, find: Callable[[str], Path]) -> Path:
    """The program of this tag that fits an architecture; raises as `find` does when there is none."""
    names = (EMBEDDING, *PROGRAMS) if ENCODERS.fullmatch(architecture) else PROGRAMS
    for name in names[:-1]:
        try:
            return find(name)
        except OrchestrateError:
            continue
    return find(names[-1])


@functools.lru_cache(maxsize=8)
def help_of(tool: Path) -> str:
    """The help text of a program; some end it with a failure."""
    try:
        return process.capture(sandbox.around(Command((str(tool), "--help"), env=tool_env(tool)), UNLIMITED))
    except CommandFailed as error:
        return error.tail


def blames(error: OrchestrateError) -> bool:
    """Tell whether a failure to load is the file's own fault, and not the machine's."""
    return bool(BLAME.search(error.message))


def cause(words: str, error: CommandFailed, architecture: str) -> str:
    """The cause of a program's failure by its words, or "" where it had loaded well."""
    if blame := BLAME.search(words):
        return blame[0].strip()
    if ENCODERS.fullmatch(architecture) and error.code in ABORTED and LOADED.search(words):
        return ""
    return error.message


def check(
    files: Sequence[Path],
    base: Sequence[Path],
    checks: Checks,
    find: Callable[[str], Path],
    log: Path,
    limits: Limits = UNLIMITED,
) -> None:
    """Load an output; CommandFailed with the loader's own words when it cannot be."""
    architecture = checks.architecture
    tool = program(architecture, find)
    call = command(tool, files, base, help_of(tool))
    begin = log.stat().st_size if log.exists() else 0
    try:
        process.stream(sandbox.around(call, limits), log, limit=limit(files, base))
    except CommandFailed as error:
        words = log.read_bytes()[begin:].decode(errors="replace") if log.exists() else error.tail
        refused, remedy = diagnose.machine(error.code, f"{error.message}\n{words}")
        if remedy:
            message = f"{tool.stem} cannot load {files[0].name}: {refused or error.message}"
            raise error.retold(message, remedy, log) from error
        if why := cause(words, error, architecture):
            hint = "the source is damaged or this tag converts it wrongly: get the source's files again, or pin a newer tag"
            raise error.retold(f"{tool.stem} cannot load {files[0].name}: {why}", hint, log) from error
