"""A store in a folder, `deadly://`, whose process dies in the middle of the call that TEST_DEATH names: "put 3"."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from llamacpp_orchestrator.__main__ import main

DEATH = os.environ.get("TEST_DEATH")
calls: Counter[str] = Counter()


def die(call: str) -> None:
    """End this process as a kill does, if it is to die at this call."""
    calls[call] += 1
    if f"{call} {calls[call]}" == DEATH:
        os._exit(137)


class Deadly(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A folder, and half a file where death comes while one is sent."""

    protocol = ("deadly",)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        die("before put")
        with open(lpath, "rb") as source, open(rpath, "wb") as dest:  # noqa: PTH123 - as the library has it
            dest.write(source.read(100))
            dest.flush()
            die("put")
            dest.write(source.read())

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        die("before mv")
        super().mv(path1, path2, **kwargs)
        die("mv")

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        die("cat")
        return bytes(super().cat_file(path, start=start, end=end, **kwargs))

    def rm_file(self, path: str) -> None:
        die("rm")
        super().rm_file(path)


if __name__ == "__main__":
    fsspec.register_implementation("deadly", Deadly)
    raise SystemExit(main(sys.argv[1:]))
