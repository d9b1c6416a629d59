"""Requirements of upstream's scripts, with a job's overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError

SCRIPTS = ("convert_hf_to_gguf", "convert_lora_to_gguf")
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
    return {canonicalize_name(requirement.name): requirement for requirement in map(parse, (*lines, *overrides))}
