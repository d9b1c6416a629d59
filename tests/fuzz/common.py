"""What all targets have in common: how documents are altered, what a reader may do with them, and how often it is asked."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from typing import TypeVar

import msgspec
import yaml
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from llamacpp_orchestrator import console
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util import yaml_reader

T = TypeVar("T")
Test = Callable[..., None]
EXAMPLES, ROUND = 60, 500
SECONDS = 1.0  # of the processor, for one input; by the clock a busy machine may need more
MEMORY = 1 << 31
MOST_LINES, MOST_LETTERS = 4, 1500
# Of the mistakes of a job file the first are told at once, how many more there are, and what to do.
JOB_LINES, JOB_LETTERS = yaml_reader.MAX_LINES + 1, 5000
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
SUITE = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=timedelta(seconds=10), suppress_health_check=QUIET
)
LONG = settings(
    max_examples=ROUND,
    database=DirectoryBasedExampleDatabase(".hypothesis/examples"),
    deadline=timedelta(seconds=10),
    suppress_health_check=QUIET,
    print_blob=True,
)


class Target(msgspec.Struct, frozen=True):
    """One property of one kind of input."""

    name: str
    inputs: Any
    test: Test


TARGETS: list[Target] = []


def fuzzed(inputs: st.SearchStrategy[Any]) -> Callable[[Test], Test]:
    """Hold a test to inputs of a strategy: in the suite some, always the same; in `make fuzz` as many as there is time for."""

    def decorate(test: Test) -> Test:
        TARGETS.append(Target(f"{test.__module__.rpartition('.')[2].removesuffix('_test')}: {test.__name__[5:]}", inputs, test))
        made: Test = SUITE(given(inputs)(test))
        return made

    return decorate


def reading(read: Callable[[], T], most_lines: int = MOST_LINES, most_letters: int = MOST_LETTERS) -> T | None:
    """What a reader makes of its input; None where it refuses, which it does in few words. Soon, and in little memory."""
    began = time.process_time()
    try:
        with _little_memory():
            found = read()
    except OrchestrateError as error:
        told = "\n".join(map(console.plain_text, error.lines()))
        assert len(told.splitlines()) <= most_lines, told
        assert len(told) <= most_letters, told
        found = None
    assert time.process_time() - began < SECONDS
    return found


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Let no more be taken than some hundred megabytes: whoever believes a promise of 2**60 bytes ends with MemoryError."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for one input, in one that must then hold nothing else."""
    with tempfile.TemporaryDirectory() as name:
        inner = Path(name, "inner", "most")
        inner.mkdir(parents=True)
        yield inner
        assert [*Path(name).iterdir()] == [inner.parent] and [*inner.parent.iterdir()] == [inner]


ODD = (
    "", " ", ".", "..", "../x", "../../x", "/nowhere/x", "a/../b", "./x", "~", "C:x", "C:\\x", "..\\x", "\\\\host\\x",
    "con", "aux.json", "x.", "-flag", "--flag=x", "a\0b", "a\nb", "a\r\nhint: x", "\x1b[31mred", "\x9b2J", "\u202egpj",
    "\u2028", "\ufeff", "é" * 300, "x" * 5000, "{", "{0}", "{name", "%s", "%n", "$HOME",
    "`x`", "null", "true", "1e999", "0x10", "1_0", "-0",
    "٣", "²", "9" * 5000, "NaN", "!!python/tuple", "*a", "&a", "<<", "https://u:p@h/x", "file:///nowhere/x",
    "ext::x", "(a)+", "[", "\\", "(?P<x", "x" * 300 + "/y", "😀", "\udc80",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2, 255, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e308, float("inf"))
words = st.sampled_from(ODD) | st.text(max_size=20)
scalars = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | st.floats() | words
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=5
)


@st.composite
def altered(draw: Any, *valid: Any, most: int = 3) -> Any:
    """One of some valid documents with a few things wrong in it: dropped, twice, of another type, nested, renamed."""
    root = {"": copy.deepcopy(draw(st.sampled_from(valid)))}
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(root))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        way = draw(st.sampled_from(("drop", "retype", "retype", "retype", "nest", "deep", "twice", "rename", "other")))
        if way == "drop" and holder is not root:
            del holder[key]
        elif way == "retype":
            holder[key] = draw(values)
        elif way == "nest":
            holder[key] = draw(st.sampled_from(([holder[key]], {"x": holder[key]})))
        elif way == "deep":
            for _ in range(draw(st.sampled_from((20, 30)))):
                holder[key] = [holder[key]]
        elif way == "twice" and isinstance(holder, list):
            holder.append(holder[key])
        elif way == "rename" and isinstance(holder, dict) and holder is not root:
            holder[draw(words)] = holder.pop(key)
        elif way == "other":
            other = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(other[0][other[1]])
    return root[""]


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from _places(holder[key])


PIECES = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\t", b": ", b"- ", b"---\n", b"&a ", b"*a", b"<<: *a\n",
    b"!!python/tuple ",
    b"{", b"[" * 30, b'"', b"'", b"|\n", b"#", b"%YAML 9\n", b"\xc2\x85", b"?", b"\x1b[2J", b"9" * 5000, b"\\u0000", b"\\ud800",
)  # fmt: skip


@st.composite
def spoilt(draw: Any, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of which some are cut off, put in, doubled or turned."""
    text: bytes = draw(whole)
    for _ in range(draw(st.integers(0, 3))):
        at, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        way = draw(st.sampled_from(("cut", "put", "double", "turn", "lose", "line")))
        if way == "cut":
            text = text[:at]
        elif way == "put":
            text = text[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=8)) + text[at:]
        elif way == "double":
            text = text[:end] + text[at:end][:4000] + text[end:]
        elif way == "turn" and at < len(text):
            text = text[:at] + bytes([text[at] ^ (1 << draw(st.integers(0, 7)))]) + text[at + 1 :]
        elif way == "lose":
            text = text[:at] + text[end:]
        elif way == "line" and (lines := text.splitlines(keepends=True)):
            text = b"".join([*lines, lines[draw(st.integers(0, len(lines) - 1))]])
    return text


def json_bytes(document: Any) -> bytes:
    """A document as JSON, lone surrogates as their escapes."""
    return json.dumps(document).encode()


def json_text(*valid: Any) -> st.SearchStrategy[bytes]:
    """JSON near a valid document, and bytes of any kind."""
    made = altered(*valid).map(json_bytes)
    return made | spoilt(made) | st.binary(max_size=200)


def yaml_bytes(document: Any) -> bytes:
    """A document as YAML."""
    return yaml.safe_dump(document, allow_unicode=False, sort_keys=False).encode("utf-8", "surrogatepass")


def yaml_text(*valid: Any) -> st.SearchStrategy[bytes]:
    """YAML near a valid document (with an alias where a value stands twice), and bytes of any kind."""
    made = altered(*valid).map(yaml_bytes)
    return made | spoilt(made) | st.binary(max_size=200)
