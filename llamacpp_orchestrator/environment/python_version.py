"""Choice of the Python of an environment: the one for which the wheels of all pins are there."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.tags import compatible_tags
from packaging.tags import cpython_tags
from packaging.tags import platform_tags
from packaging.utils import InvalidWheelFilename
from packaging.utils import parse_wheel_filename

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment.requirements import merged
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.settings import Index

MINORS = ("3.12", "3.11", "3.10", "3.13", "3.14")
# Only these two have wheels for a few interpreters each: where both fit, everything else of upstream's set fits too.
DECISIVE = ("torch", "numpy")


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


@functools.cache
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
    counting = merged(lines, overrides)
    return ", ".join(str(counting[name]) for name in DECISIVE if name in counting)


def fitting(lines: tuple[str, ...], overrides: tuple[str, ...], index: Index, torch_index: str | None) -> list[str]:
    """The interpreters ("3.12") that upstream's pins allow here, the best first."""
    counting = merged(lines, overrides)
    allowed: list[set[str]] = []
    nearby: list[set[str]] = []
    local = [path.name for path in indexes.find_links_paths(index.find_links)]
    for name in DECISIVE:
        if name not in counting:
            continue
        near = supported(counting[name], local)
        nearby += [near] if near else []
        files = [
            file.filename
            for url in (*indexes.pages(index), *([torch_index] if torch_index else []))
            for file in indexes.listed(url, name)
        ]
        if files or near:
            allowed.append(near | supported(counting[name], files))
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    ranked = order(allowed, nearby, running, (running,))
    # Ours is at hand, so others are only looked for where it will not do.
    return ranked if ranked and ranked[0] == running else order(allowed, nearby, running, _installed(index))


def _installed(index: Index) -> list[str]:
    try:
        env = indexes.uv_env(index, None)
        text = process.capture(
            Command((indexes.uv(), "python", "list", "--quiet", "--only-installed", "--output-format", "json"), env=env)
        )
        return [".".join(entry["version"].split(".")[:2]) for entry in json.loads(text) if entry["implementation"] == "cpython"]
    except (CommandFailed, ValueError):
        return []
