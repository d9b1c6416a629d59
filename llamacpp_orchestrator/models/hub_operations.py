"""Files to send as operations of the hub's library: hashed before, and counted while they are read."""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.util.background import load
from llamacpp_orchestrator.util.cancel import look_for_stop
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.units import size

Tell = Callable[[str], None]


class LocalFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file to send: its `path` in the repository, size in bytes, and where it lies here, or else its content."""

    path: str
    size: int
    sha256: str
    file: Path | None = None
    content: bytes = b""


def content_file(path: str, content: bytes) -> LocalFile:
    """A file to send that lies nowhere on this machine."""
    return LocalFile(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest(), content=content)


class Progress(msgspec.Struct, kw_only=True):
    """How far an upload is: `count` of `total` bytes, told in steps of five percent."""

    what: str
    total: int
    tell: Tell
    count: int = 0

    def add(self, number: int) -> None:
        """So many bytes more."""
        self.reach(self.count + number)

    def reach(self, count: int) -> None:
        """So many bytes in all; raises Stopped once a signal has asked us to end."""
        look_for_stop()
        self.count = count
        self.tell(f"{self.what}, {min(95, 5 * (20 * count // max(1, self.total)))}% of {size(self.total)}")


def progress_of(files: Sequence[LocalFile], tell: Tell) -> Progress:
    """The progress of sending files, at its beginning."""
    return Progress(what=f"sending {len(files)} files", total=sum(file.size for file in files), tell=tell)


def operations(files: Sequence[LocalFile], progress: Progress, tell: Tell) -> list[Any]:
    """Files as the library's operations, which are read before they are sent: they must be what was checked once."""
    load("huggingface_hub.hf_api")
    from huggingface_hub import CommitOperationAdd

    class Counted(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            with super().as_file() as file:
                yield Reader(file, progress.add) if with_tqdm else file

    listed = []
    for file in files:
        if file.file:
            tell(f"hashing {file.path}")
            if file_sha256(file.file) != file.sha256:
                hint = "was it changed by hand? make it again: orchestrate run JOB --force"
                raise IntegrityError(f"{file.file} is not what its receipt says", hint)
        operation = Counted(path_in_repo=file.path, path_or_fileobj=str(file.file) if file.file else file.content)
        operation.upload_info.sha256 = bytes.fromhex(file.sha256)
        listed.append(operation)
    return listed


@contextmanager
def reporting(progress: Progress) -> Iterator[None]:
    """Let the client of the hub's newer store report to us: it has no other way than bars on the terminal."""
    from huggingface_hub import constants

    utils: Any = importlib.import_module("huggingface_hub.utils")
    bars: Any = importlib.import_module("huggingface_hub.utils._xet_progress_reporting")
    own = getattr(bars, "XetUploadProgressReporter", None)
    if own is None or constants.HF_HUB_DISABLE_PROGRESS_BARS or constants.HF_HUB_DISABLE_XET:  # without it, bars are shown
        yield
        return

    bar = SimpleNamespace(
        update_progress=lambda whole, files=None: progress.reach(whole.total_bytes_completed), close=lambda: None
    )
    bars.XetUploadProgressReporter = lambda: bar
    utils.enable_progress_bars()
    try:
        yield
    finally:
        utils.disable_progress_bars()
        bars.XetUploadProgressReporter = own


class Reader(io.BufferedIOBase):
    """A file that tells how many bytes were read of it."""

    def __init__(self, file: Any, advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance

    def read(self, count: int | None = -1) -> bytes:
        """The next bytes."""
        data = bytes(self._file.read(count))
        self._advance(len(data))
        return data

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place of the file."""
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        """The place in the file."""
        return int(self._file.tell())

    def fileno(self) -> int:
        """The file itself, by which its size is found out."""
        return int(self._file.fileno())
