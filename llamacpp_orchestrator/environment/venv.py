"""The Python environment that a tag's scripts need: its requirements resolved to one hashed set, and a venv of exactly that."""

from __future__ import annotations

import base64
import csv
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.environment import resolution
from llamacpp_orchestrator.environment import uv_call
from llamacpp_orchestrator.environment import wheels
from llamacpp_orchestrator.environment.pin import Pin
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.environment.python_version import choose_python
from llamacpp_orchestrator.environment.python_version import decisive
from llamacpp_orchestrator.environment.python_version import fitting
from llamacpp_orchestrator.environment.requirements import merged
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.hashing import file_sha256

COMPILE = ("pip", "compile", "--quiet", "--no-config", "--universal", "--generate-hashes", "--no-header", "--no-annotate")
PROBED = ("numpy", "sentencepiece", "torch", "transformers", "safetensors")


def resolve(
    lines: tuple[str, ...],
    python: str,
    torch: str,
    overrides: tuple[str, ...],
    settings: Settings,
    work: Path,
    tell: Callable[[str], None],
    time: str = "",
) -> Pin:
    """Resolve upstream's requirements for every platform at once; a conflict is shown in uv's own words.

    With the tag's own `time` (ISO 8601, UTC) what they leave open becomes what there was then, as far as the index tells.
    """
    merged((), overrides)
    index, extra = indexes.places(torch, settings, tell)
    minor = choose_python(lines, overrides, index, extra) if python == "auto" else python
    tell(f"resolving for Python {minor}")
    env = indexes.uv_env(index, extra)

    def compiled(limits: tuple[str, ...], apart: tuple[str, ...]) -> str:
        return _compiled(lines, minor, overrides, env, work, limits=limits, apart=apart).requirements

    try:
        return Pin(python=minor, requirements=resolution.resolve(lines, overrides, time, compiled, tell))
    except CommandFailed as error:
        able = fitting(lines, overrides, index, extra) if python != "auto" else []
        if able and minor not in able:
            pins = decisive(lines, overrides)
            message = f"environment.python: upstream's pins have no wheels for Python {minor} on this machine ({pins})"
            raise JobError(message, f"it works with {', '.join(able)}: set one of them, or `auto`") from error
        raise _conflict(error, f"upstream's requirements cannot be resolved for Python {minor}") from error


def resolve_reference(
    python: str,
    torch: str,
    overrides: tuple[str, ...],
    beside: Pin | None,
    settings: Settings,
    work: Path,
    tell: Callable[[str], None],
) -> Pin:
    """Resolve the packages that outputs are compared with, in the versions that the environment `beside` has where they fit."""
    index, extra = indexes.places(torch, settings, tell)
    minor = beside.python if beside else python
    if minor not in reference.PYTHONS:
        minor = choose_python(reference.PACKAGES, overrides, index, extra, reference.PYTHONS)
    tell(f"resolving for Python {minor}")
    try:
        return _compiled(reference.PACKAGES, minor, overrides, indexes.uv_env(index, extra), work, beside)
    except CommandFailed as error:
        what = f"what `verify: logits` compares with ({', '.join(reference.PACKAGES)}) cannot be resolved for Python {minor}"
        failed = _conflict(error, what)
        failed.hint += "; `verify: load` does without"
        raise failed from error


def _compiled(
    lines: tuple[str, ...],
    minor: str,
    overrides: tuple[str, ...],
    env: tuple[tuple[str, str], ...],
    work: Path,
    beside: Pin | None = None,
    limits: tuple[str, ...] = (),
    apart: tuple[str, ...] = (),
) -> Pin:
    files = ("requirements.in", "overrides.txt", "constraints.txt", "requirements.txt")
    needed, replaced, kept_apart, pinned = (work / name for name in files)
    for file, texts in ((needed, lines), (replaced, overrides), (kept_apart, apart)):
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    # What the file holds already is preferred (uv's --output-file): both environments then share their largest downloads.
    pinned.write_text(beside.requirements if beside else "", encoding="utf-8")
    options = ("--no-build", "--python-version", minor, "--override", str(replaced), "--constraints", str(kept_apart), *limits)
    argv = (indexes.uv(), *COMPILE, *options, str(needed), "-o", str(pinned))
    uv_call.answer(Command(argv, cwd=str(work), env=env), 600.0)
    return Pin(python=minor, requirements=pinned.read_text(encoding="utf-8"))


def _conflict(error: CommandFailed, what: str) -> OrchestrateError:
    words = error.tail or error.message
    hint = "put the line that must give way under `environment.overrides`, for example `overrides: [torch==2.13.0]`"
    if re.search(r"(?i)dns|connect|timed out|fetch|network", words) and "No solution found" not in words:
        hint = "check the network, or set an index that can be reached (PIP_INDEX_URL or UV_DEFAULT_INDEX)"
    elif uv_call.UNKNOWN in words:
        hint = "set an index that has it (PIP_INDEX_URL or UV_DEFAULT_INDEX)"
    return indexes.failed(error, what, hint)


def build(pin: Pin, torch: str, settings: Settings, dest: Path, log: Path, tell: Callable[[str], None]) -> None:
    """Make the venv in `dest` and install exactly the pinned files, wheels only, hashes required."""
    index, extra = indexes.places(torch, settings, tell)
    if torch == "cpu" and extra is None and index.index_urls and wheels.brings_cuda(pin.requirements, wheels.here(), pin.python):
        message = "PyTorch's index cannot be reached, and the package index has torch for this machine only with CUDA (some GB)"
        way = "set ORCHESTRATE_TORCH_INDEX to a mirror of download.pytorch.org/whl"
        raise OrchestrateError(message, f"{way}, or write `torch: upstream` under `environment` to take the large build")
    env = indexes.uv_env(index, extra, settings.offline)
    base = sys.executable if pin.python == f"{sys.version_info.major}.{sys.version_info.minor}" else pin.python
    pinned = dest / "requirements.txt"
    pinned.write_text(pin.requirements, encoding="utf-8", newline="\n")
    venv = dest / "venv"
    try:
        tell(f"making a venv for Python {pin.python}")
        process.stream(Command((indexes.uv(), "venv", "--no-config", "--no-project", "--python", base, str(venv)), env=env), log)
        python = str(python_in(venv))
        argv = (indexes.uv(), "pip", "sync", "--no-config", "--require-hashes", "--no-build", "--python", python, str(pinned))
        process.stream(Command((*argv, *(() if index.index_urls else ("--no-index",))), env=env), log, tell)
    except CommandFailed as error:
        hint = "check the network and the free space; for a Python that uv cannot fetch, install it or set `environment.python`"
        raise indexes.failed(error, "the environment could not be built", hint, log) from error


def unhealthy(dest: Path) -> str:
    """The reason why a built environment cannot be used any more, "" when it can: interpreter or packages may have gone."""
    venv = dest / "venv"
    if not python_in(venv).exists():
        return "its interpreter is gone"
    if not os.access(python_in(venv), os.X_OK):  # rights are lost in copies and archives that keep none
        return "its interpreter may not be started"
    packages = [
        *venv.glob("lib/*/site-packages/*.dist-info"),
        *venv.glob("Lib/site-packages/*.dist-info"),
    ]  # Windows' is the second
    records = [folder / "RECORD" for folder in packages]
    return "" if records and all(map(_begins, records)) else "files of its packages are gone"


def _begins(record: Path) -> bool:
    """Whether a package is there: its list of files, and the first of them that is not about the package itself."""
    if not record.is_file():  # also a link into a cache that was pruned
        return False
    with record.open(encoding="utf-8", newline="") as file:
        names = (row[0] for row in csv.reader(file) if row)
        own = next((name for name in names if ".dist-info/" not in name and not name.startswith("..")), None)
    return own is None or (record.parents[1] / own).is_file()


@functools.lru_cache(maxsize=8)  # a folder of outputs shares its environment
def altered(dest: Path) -> tuple[str, ...]:
    """The packages of a built environment whose files are no longer what their wheels, checked on arrival, recorded."""
    changed: dict[str, str] = {}
    for record in sorted((dest / "venv").rglob("site-packages/*.dist-info/RECORD")):
        with record.open(encoding="utf-8", newline="") as file:
            for name, digest, _ in csv.reader(file):
                path = record.parents[1] / name
                if digest.startswith("sha256=") and (not path.is_file() or _recorded(path) != digest):
                    changed.setdefault(record.parent.name.removesuffix(".dist-info"), name)
    return tuple(
        f"the environment's package {package} was changed after it was installed: {name}" for package, name in changed.items()
    )


def _recorded(path: Path) -> str:
    digest = bytes.fromhex(file_sha256(path))
    return "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def own(path: Path, job: Path) -> Path:
    """The interpreter of an environment that the user names, once its imports were probed; nothing is changed in it."""
    python = python_in(path)
    if not python.exists():
        raise JobError(f"{job.name}: environment.path: no Python in {path}", "name the folder of a venv or conda environment")
    script = "import importlib.util as u,sys;print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    missing = process.capture(Command((str(python), "-c", script, *PROBED), env=clean_env(PYTHONNOUSERSITE="1"))).split()
    if missing:
        raise JobError(
            f"{job.name}: environment.path: {path} lacks {', '.join(missing)}",
            "install upstream's requirements there, or remove `path` and let orchestrate build one",
        )
    return python
