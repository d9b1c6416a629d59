"""The Python environment that a tag's scripts need: from its own requirements to one hashed set, and a venv of exactly that."""

from __future__ import annotations

import base64
import csv
import functools
import json
import os
import re
import sys
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.tags import compatible_tags
from packaging.tags import cpython_tags
from packaging.tags import platform_tags
from packaging.utils import InvalidWheelFilename
from packaging.utils import canonicalize_name
from packaging.utils import parse_wheel_filename

from llamacpp_orchestrator import indexes
from llamacpp_orchestrator import process
from llamacpp_orchestrator import reference
from llamacpp_orchestrator import resolution
from llamacpp_orchestrator.command import Command
from llamacpp_orchestrator.command import clean_env
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.interpreter import Pin
from llamacpp_orchestrator.interpreter import python_in
from llamacpp_orchestrator.settings import Index
from llamacpp_orchestrator.settings import Settings
from llamacpp_orchestrator.store import file_sha256

COMPILE = ("pip", "compile", "--quiet", "--no-config", "--universal", "--generate-hashes", "--no-header", "--no-annotate")
MINORS = ("3.12", "3.11", "3.10", "3.13", "3.14")
SCRIPTS = ("convert_hf_to_gguf", "convert_lora_to_gguf")
# Only these two have wheels for a few interpreters each: where both fit, everything else of upstream's set fits too.
DECISIVE = ("torch", "numpy")
PROBED = ("numpy", "sentencepiece", "torch", "transformers", "safetensors")
OTHER_WAY = "choose another tag, or name an environment of your own that has what the scripts need: `environment.path`"
MACHINES = ("x86_64", "AMD64", "aarch64", "arm64", "ARM64")


def upstream_requirements(tree: Path, tag: str = "this llama.cpp") -> tuple[str, ...]:
    """The requirement lines of both scripts at a tag, `-r` followed, index options left out.

    Raises OrchestrateError for a file that the tag lacks, and JobError for a line that pip itself would not take.
    """
    lines: dict[str, None] = {}
    for script in SCRIPTS:
        path = tree / "requirements" / f"requirements-{script}.txt"
        if not path.is_file():
            raise OrchestrateError(f"{tag} has no {path.relative_to(tree).as_posix()}", "choose a tag from b3878 on")
        _read(path, tree, tag, lines, ())
    return tuple(lines)


def _read(path: Path, tree: Path, tag: str, lines: dict[str, None], above: tuple[Path, ...]) -> None:
    if path in above:
        return
    for raw in path.read_text(encoding="utf-8").splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if match := re.match(r"(?:-r|--requirement)[\s=]*(.+)", line):
            nested = Path(os.path.normpath(path.parent / match[1]))
            if tree not in nested.parents or not nested.is_file():
                what = "is outside of the tree" if tree not in nested.parents else "it does not have"
                raise OrchestrateError(
                    f"{path.relative_to(tree).as_posix()} of {tag} includes {match[1]}, which {what}", OTHER_WAY
                )
            _read(nested, tree, tag, lines, (*above, path))
        elif line and not line.startswith("-") and _concerns_us(parse(line)):
            lines[line] = None


def parse(line: str) -> Requirement:
    """One PEP 508 line; JobError names the line that is none."""
    try:
        return Requirement(line)
    except InvalidRequirement as error:
        raise JobError(
            f"`{line}` is not a requirement: {str(error).splitlines()[0]}", "write it as in `torch==2.13.0`"
        ) from error


def _concerns_us(requirement: Requirement) -> bool:
    # Upstream has lines for machines that we do not serve (s390x nightlies); a universal resolution would fail on them.
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"platform_machine": machine}) for machine in MACHINES)


def merged(lines: Iterable[str], overrides: Iterable[str]) -> dict[str, Requirement]:
    """The requirement that counts for each name, overrides last."""
    return {canonicalize_name(found.name): found for found in map(parse, (*lines, *overrides))}


def supported(requirement: Requirement, files: Iterable[str]) -> set[str]:
    """The interpreters ("3.12") for which one of these files is a fitting wheel of a version that is wanted."""
    wheels = []
    for name in files:
        try:
            _, version, _, tags = parse_wheel_filename(name)
        except InvalidWheelFilename:
            continue
        if requirement.specifier.contains(version, prereleases=bool(requirement.specifier.prereleases)):
            wheels.append(tags)
    return {minor for minor in MINORS if any(not tags.isdisjoint(_tags(minor)) for tags in wheels)}


def _tags(minor: str) -> frozenset[Tag]:
    major, small = map(int, minor.split("."))
    platforms = list(platform_tags())
    ours = [*cpython_tags((major, small), platforms=platforms), *compatible_tags((major, small), f"cp{major}{small}", platforms)]
    return frozenset(ours)


def order(allowed: Iterable[set[str]], nearby: Iterable[set[str]], running: str, installed: Iterable[str]) -> list[str]:
    """Interpreters that every pin allows, the best first.

    A wheel in a folder of the user's own decides first (it was put there on purpose), then what is installed, then
    the interpreter we run on.
    """
    fitting = set(MINORS).intersection(*allowed) if allowed else set(MINORS)
    near = set(MINORS).intersection(*nearby)
    have = set(installed)
    return sorted(fitting, key=lambda minor: (minor not in near, minor not in have, minor != running, MINORS.index(minor)))


def choose_python(
    lines: tuple[str, ...], overrides: tuple[str, ...], index: Index, torch_index: str | None, minors: Iterable[str] = MINORS
) -> str:
    """The interpreter's minor version, of some, that such pins allow here; OrchestrateError names those it would take."""
    ranked = [minor for minor in fitting(lines, overrides, index, torch_index) if minor in minors]
    if not ranked:
        raise OrchestrateError(
            f"no interpreter has wheels for these pins on this machine ({decisive(lines, overrides)})",
            "put a version that this platform has under `environment.overrides`, for example `overrides: [torch==2.13.0]`",
        )
    return ranked[0]


def decisive(lines: tuple[str, ...], overrides: tuple[str, ...]) -> str:
    """The pins that decide which interpreters will do, as they count."""
    wanted = merged(lines, overrides)
    return ", ".join(str(wanted[name]) for name in DECISIVE if name in wanted)


def fitting(lines: tuple[str, ...], overrides: tuple[str, ...], index: Index, torch_index: str | None) -> list[str]:
    """The interpreters ("3.12") that upstream's pins allow here, the best first."""
    wanted = merged(lines, overrides)
    allowed: list[set[str]] = []
    nearby: list[set[str]] = []
    local = [path.name for path in indexes.find_links_paths(index.find_links)]
    for name in DECISIVE:
        if name not in wanted:
            continue
        near = supported(wanted[name], local)
        nearby += [near] if near else []
        files = [
            file.filename
            for url in (*indexes.pages(index), *([torch_index] if torch_index else []))
            for file in indexes.listed(url, name)
        ]
        if files or near:
            allowed.append(near | supported(wanted[name], files))
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    ranked = order(allowed, nearby, running, (running,))
    # Ours is at hand, so others are only looked for where it will not do.
    return ranked if ranked and ranked[0] == running else order(allowed, nearby, running, _installed(index))


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
    wanted, replaced, kept_apart, pinned = (work / name for name in files)
    for file, texts in ((wanted, lines), (replaced, overrides), (kept_apart, apart)):
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    # What the file holds already is preferred (uv's --output-file): both environments then share their largest downloads.
    pinned.write_text(beside.requirements if beside else "", encoding="utf-8")
    asked = ("--no-build", "--python-version", minor, "--override", str(replaced), "--constraints", str(kept_apart), *limits)
    argv = (indexes.uv(), *COMPILE, *asked, str(wanted), "-o", str(pinned))
    process.capture(Command(argv, cwd=str(work), env=env), timeout=600)
    return Pin(python=minor, requirements=pinned.read_text(encoding="utf-8"))


def _conflict(error: CommandFailed, what: str) -> OrchestrateError:
    said = error.tail or error.message
    hint = "put the line that must give way under `environment.overrides`, for example `overrides: [torch==2.13.0]`"
    if re.search(r"(?i)dns|connect|timed out|fetch|network", said) and "No solution found" not in said:
        hint = "check the network, or set an index that can be reached (PIP_INDEX_URL or UV_DEFAULT_INDEX)"
    elif "not found in the package registry" in said:
        hint = "set an index that has it (PIP_INDEX_URL or UV_DEFAULT_INDEX)"
    return indexes.failed(error, what, hint)


def build(pin: Pin, torch: str, settings: Settings, dest: Path, log: Path, tell: Callable[[str], None]) -> None:
    """Make the venv in `dest` and install exactly the pinned files, wheels only, hashes required."""
    index, extra = indexes.places(torch, settings, tell)
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
    """Why a built environment cannot be used any more, "" when it can; its base interpreter may have gone."""
    return "" if python_in(dest / "venv").exists() else "its interpreter is gone"


@functools.lru_cache(maxsize=8)  # a folder of outputs shares its environment
def altered(dest: Path) -> tuple[str, ...]:
    """The packages of a built environment whose files are no longer what their wheels, checked on arrival, recorded."""
    found: dict[str, str] = {}
    for record in sorted((dest / "venv").rglob("site-packages/*.dist-info/RECORD")):
        with record.open(encoding="utf-8", newline="") as file:
            for name, digest, _ in csv.reader(file):
                path = record.parents[1] / name
                if digest.startswith("sha256=") and (not path.is_file() or _recorded(path) != digest):
                    found.setdefault(record.parent.name.removesuffix(".dist-info"), name)
    return tuple(
        f"the environment's package {package} was changed after it was installed: {name}" for package, name in found.items()
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


def _installed(index: Index) -> list[str]:
    try:
        env = indexes.uv_env(index, None)
        text = process.capture(
            Command((indexes.uv(), "python", "list", "--quiet", "--only-installed", "--output-format", "json"), env=env)
        )
        return [".".join(found["version"].split(".")[:2]) for found in json.loads(text) if found["implementation"] == "cpython"]
    except (CommandFailed, ValueError):
        return []
