"""The Python source of a tree as syntax trees, read without running it."""

from __future__ import annotations

import ast
import gc
import threading

_building = threading.Lock()


def parse(source: bytes) -> ast.Module:
    """The syntax tree of a source; raises what `ast.parse` raises: SyntaxError, ValueError, RecursionError.

    Python 3.11 counts the depth of the trees that threads build at once together, and fails where that does not add up
    (SystemError). Our own are built one at a time; without the collector, which may run other code in the middle, no thread
    of a library builds one meanwhile.
    """
    with _building:
        collecting = gc.isenabled()
        gc.disable()
        try:
            return ast.parse(source)
        finally:
            if collecting:
                gc.enable()
