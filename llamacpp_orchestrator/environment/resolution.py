"""Resolution of what upstream's requirements leave open: as of the tag's own time, without versions that break one another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llamacpp_orchestrator.errors import CommandFailed

# Versions that install together and cannot be imported together, and the line that keeps them apart. In sentencepiece 0.2.3
# is code that protobuf's compiler 7.36.1 wrote; it runs with a protobuf as new as that only, and its metadata do not say so.
PAIRS = (("sentencepiece>=0.2.3", "protobuf<7.36.1", "sentencepiece<0.2.3"),)
# Its own index tells no upload times, so it can be held to none; and every tag names one version of it, or a few.
TIMELESS = "torch"

# uv's resolution with some options and some constraints more.
Compile = Callable[[tuple[str, ...], tuple[str, ...]], str]


def resolve(lines: tuple[str, ...], overrides: tuple[str, ...], time: str, compiled: Compile, tell: Callable[[str], None]) -> str:
    """Resolve with `compiled` as of the time of a tag (ISO 8601 or ""), or as near to it as can be; CommandFailed otherwise."""
    for limits, until in ways(lines, overrides, time):
        tell(f"resolving {until}")
        try:
            text = compiled(limits, ())
        except CommandFailed as error:
            # An index without upload times has nothing of any time, and an override may need what is newer than the tag.
            if not limits or "No solution found" not in error.tail:
                raise
            continue
        apart = constraints(text, overrides)
        try:
            return compiled(limits, apart) if apart else text
        except CommandFailed:
            return text  # there is no way round here: the first import tells what does not fit
    raise AssertionError("the last way has no limits")


def ways(lines: tuple[str, ...], overrides: tuple[str, ...], time: str) -> list[tuple[tuple[str, ...], str]]:
    """Options of uv that hold a resolution to a time (ISO 8601, UTC), the strictest first, and words for each; the last has none.

    First every package but those of overrides, then those that upstream names. uv leaves out what an index lists without
    an upload time, and takes the files of a find-links folder at any time.
    """
    today = ((), "as of today")
    if not time or os.environ.get("UV_EXCLUDE_NEWER"):
        return [today]
    free = sorted({_name(line) for line in overrides} | {TIMELESS})
    named = sorted({_name(line) for line in lines} - set(free))
    day = time.partition("T")[0]
    whole = (f"--exclude-newer={time}", *(f"--exclude-newer-package={name}=false" for name in free))
    own = tuple(f"--exclude-newer-package={name}={time}" for name in named)
    return [(whole, f"as of {day}, the tag's time"), (own, f"what upstream names as of {day}, and the rest as of today"), today]


def constraints(requirements: str, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Lines that keep apart what a resolution took together and cannot be imported together; overrides are left alone."""
    versions = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", requirements, re.MULTILINE))
    free = {_name(line) for line in overrides}

    def has(line: str) -> bool:
        requirement = Requirement(line)
        return requirement.name in versions and requirement.specifier.contains(versions[requirement.name], prereleases=True)

    return tuple(apart for one, other, apart in PAIRS if has(one) and has(other) and _name(apart) not in free)


def _name(line: str) -> str:
    return canonicalize_name(Requirement(line).name)
