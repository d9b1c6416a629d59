"""What is done at an address: look, put, get, read, remove; all of fsspec that we know is here."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import secrets
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.storage import failures
from llamacpp_orchestrator.util import background
from llamacpp_orchestrator.util.cancel import look_for_stop
from llamacpp_orchestrator.util.units import size

PIECE = 32 << 20  # bytes, of what is read back at a time
LARGEST_SMALL = 16 << 20  # bytes, of what is read at once
AT_A_TIME = 2  # transfers: one of s3fs holds up to ten pieces of 50 MB
RUN = secrets.token_hex(4)
# What tells two versions of a file apart, the first that a store says: a time may have other digits in a list than of one file.
VERSIONS = (
    "ETag",
    "etag",
    "generation",
    "content_md5",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
Tell = Callable[[str], None]
_transfers = threading.BoundedSemaphore(AT_A_TIME)


class Place(msgspec.Struct, frozen=True):
    """An address with the file system that it is in, and what it is called there."""

    address: str
    files: Any
    root: str

    def at(self, name: str) -> str:
        """What a name below the address is called in its file system."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root


class Entry(msgspec.Struct, frozen=True):
    """A file as its store tells of it: bytes, and what changes with its content or its time."""

    size: int
    version: str


@functools.lru_cache(maxsize=8)
def place(address: str) -> Place:
    """An address, ready to be used; JobError where a package for it is not installed."""
    try:
        background.load("fsspec.core")
        core: Any = importlib.import_module("fsspec.core")
        files, root = core.url_to_fs(address, use_listings_cache=False, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise failures.absent(address, error) from error
    except Exception as error:
        raise failures.told(address, error) from error
    return Place(address, files, root)


@contextlib.contextmanager
def _telling(place: Place, name: str) -> Iterator[None]:
    """Tell what fails in our words; of what begins with a dot, which is ours alone, the address is told."""
    try:
        yield
    except Exception as error:
        known = name and not name.rpartition("/")[2].startswith(".")
        raise failures.told(storage_address.join(place.address, name) if known else place.address, error) from error


def look(place: Place, folder: str, deep: bool = False) -> dict[str, Entry]:
    """The files in a folder, by their names from there; none where it is not there. `deep` for those below it, too."""
    path = place.at(folder).rstrip("/")
    with _telling(place, folder):
        try:
            listed = list(place.files.find(path, detail=True).values()) if deep else place.files.ls(path, detail=True)
        except FileNotFoundError:
            return {}
    begin = path.lstrip("/") + "/"
    names = ((info["name"].lstrip("/"), info) for info in listed if info["type"] == "file")
    return {name.removeprefix(begin): _entry(info) for name, info in names if name.startswith(begin)}


def entry(place: Place, name: str) -> Entry | None:
    """One file; None where it is not there."""
    with _telling(place, name):
        try:
            info = place.files.info(place.at(name))
        except FileNotFoundError:
            return None
    return _entry(info) if info["type"] == "file" else None


def _entry(info: dict[str, Any]) -> Entry:
    version = next((info[key] for key in VERSIONS if info.get(key)), "")
    stamp = version.timestamp() if hasattr(version, "timestamp") else version  # a list and one file may say it differently
    return Entry(int(info["size"] or 0), str(stamp).strip('"'))


def read(place: Place, name: str) -> bytes:
    """What a small file holds; b"" for one that is not there, or is large."""
    there = entry(place, name)
    if there is None or there.size > LARGEST_SMALL:
        return b""
    with _telling(place, name):
        return bytes(place.files.cat_file(place.at(name)))


def sha256(place: Place, name: str, bytes_: int, tell: Tell) -> str:
    """The digest of a file of so many bytes, read back."""
    digest, done = hashlib.sha256(), 0
    with _telling(place, name):
        while done < bytes_:
            look_for_stop()
            piece = place.files.cat_file(place.at(name), start=done, end=min(done + PIECE, bytes_))
            if not piece:
                break
            digest.update(piece)
            done += len(piece)
            tell(f"{size(done)} of {size(bytes_)} read back")
    return digest.hexdigest()


def put(place: Place, path: Path, name: str, tell: Tell) -> None:
    """Send a file, which is seen there once it is whole."""
    with _transfers, _telling(place, name):
        callback = _progress(tell)
        if storage_address.is_atomic(place.address):
            place.files.put_file(str(path), place.at(name), callback=callback)
            return
        draft, final = place.at(storage_address.draft(name, RUN)), place.at(name)
        place.files.makedirs(final.rpartition("/")[0], exist_ok=True)
        try:
            place.files.put_file(str(path), draft, callback=callback)
            try:
                place.files.mv(draft, final)
            except FileExistsError:  # Windows renames over nothing
                place.files.rm_file(final)
                place.files.mv(draft, final)
        except BaseException:
            with contextlib.suppress(Exception):
                place.files.rm_file(draft)
            raise


def get(place: Place, name: str, path: Path, tell: Tell) -> None:
    """Bring a file here."""
    with _transfers, _telling(place, name):
        place.files.get_file(place.at(name), str(path), callback=_progress(tell))


def remove(place: Place, name: str) -> None:
    """Take a file away; absent is fine."""
    with _telling(place, name), contextlib.suppress(FileNotFoundError):
        place.files.rm_file(place.at(name))


def _progress(tell: Tell) -> Any:
    callbacks: Any = importlib.import_module("fsspec.callbacks")

    def show(whole: int | None, done: int, **rest: object) -> None:
        look_for_stop()
        tell(f"{size(done)} of {size(whole)}" if whole else size(done))

    return callbacks.Callback(hooks={"show": show})
