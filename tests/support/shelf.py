"""A store of fsspec's own kind, in memory, that fails as stores do: `shelf://`."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any
from typing import ClassVar

from fsspec.implementations.memory import MemoryFileSystem

Fault = Callable[[str], None]


class Shelf(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Memory whose calls may fail: `faults` by the name of the call, each given the path; `asked` are all calls so far."""

    protocol = ("shelf",)
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[dict[str, Fault]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []
    flipped: ClassVar[set[str]] = set()

    @classmethod
    def empty(cls) -> None:
        """Begin anew."""
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.faults.clear()
        cls.asked.clear()
        cls.flipped.clear()

    @classmethod
    def names(cls) -> list[str]:
        """All files."""
        return sorted(name.lstrip("/") for name in cls.store)

    @classmethod
    def content(cls, name: str) -> bytes:
        """What a file holds."""
        return bytes(cls.store[f"/{name}"].getvalue())

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).replace("shelf://", "memory://")))

    def _fail(self, call: str, path: str) -> None:
        type(self).asked.append((call, str(path).lstrip("/")))
        if fault := self.faults.get(call):
            fault(str(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._fail("ls", path)
        return super().ls(path, detail=detail, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self._fail("put", rpath)
        super().put_file(lpath, rpath, **kwargs)
        self._fail("after put", rpath)

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        self._fail("get", rpath)
        super().get_file(rpath, lpath, **kwargs)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        self._fail("cat", path)
        content = bytes(super().cat_file(path, start=start, end=end, **kwargs))
        return content[:-1] + bytes([content[-1] ^ 1]) if str(path).lstrip("/") in self.flipped and content else content

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self._fail("mv", path2)
        super().mv(path1, path2, **kwargs)

    def rm_file(self, path: str) -> None:
        self._fail("rm", path)
        super().rm_file(path)


def full(path: str) -> None:
    """A disk without room."""
    raise OSError(errno.ENOSPC, "No space left on device")


def read_only(path: str) -> None:
    """A store that nothing may be written to."""
    raise PermissionError("Access Denied")


def unknown(path: str) -> None:
    """A store that asks who we are."""
    raise type("NoCredentialsError", (Exception,), {})("Unable to locate credentials")


def away(path: str) -> None:
    """A store that does not answer."""
    raise type("EndpointConnectionError", (Exception,), {})('Could not connect to the endpoint URL: "http://127.0.0.1:9/"')


def once(fault: Fault, ending: str = "") -> Fault:
    """A fault that happens the first time alone, to paths that end so."""
    left = [fault]

    def fail(path: str) -> None:
        if left and path.endswith(ending):
            left.pop()(path)

    return fail
