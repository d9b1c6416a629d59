"""Source is parsed in several threads at once."""

from __future__ import annotations

import argparse
import ast
import gc
import sys
import threading
from pathlib import Path

import pytest

from llamacpp_orchestrator.source import syntax

SOURCE = Path(argparse.__file__).read_bytes()


class Slow:
    """Waste that runs code when it is collected, as what a library closes does: other threads get their turn in it."""

    def __del__(self) -> None:
        for _ in range(1000):
            pass


def waste() -> None:
    """Leave what only the collector can take away."""
    for _ in range(50):
        slow = Slow()
        vars(slow)["itself"] = slow


def test_threads_parse_at_once_while_a_library_does() -> None:
    ended, interval, trees, failures = threading.Event(), sys.getswitchinterval(), [], []

    def library(depth: int) -> None:
        if depth:
            return library(depth - 1)
        while not ended.is_set():
            compile("'3.11'", "marker", "eval", ast.PyCF_ONLY_AST)

    def ours() -> None:
        try:
            for _ in range(20):
                waste()
                trees.append(len(syntax.parse(SOURCE).body))
        except SystemError as error:
            failures.append(error)

    other, threads = threading.Thread(target=library, args=(20,)), [threading.Thread(target=ours) for _ in range(2)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in (other, *threads):
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        ended.set()
        other.join()
        sys.setswitchinterval(interval)
    assert not failures and len(trees) == 40 and len(set(trees)) == 1
    assert gc.isenabled()


@pytest.mark.parametrize("collecting", [True, False])
def test_what_is_no_python_is_told_and_the_collector_is_as_before(collecting: bool) -> None:
    if not collecting:
        gc.disable()
    try:
        with pytest.raises(SyntaxError):
            syntax.parse(b"def")
        assert gc.isenabled() == collecting
    finally:
        gc.enable()
