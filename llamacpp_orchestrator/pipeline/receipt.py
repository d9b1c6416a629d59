"""The receipt beside an output: reading and writing it, checking files by it, and deciding what may be overwritten."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.storage import stored
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import write_atomically

if TYPE_CHECKING:
    from llamacpp_orchestrator.verify.gguf import Checks

SUFFIX = ".receipt.json"
FORMAT = 1
LONGEST_NAME = 255
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts of a receipt."""


class Input(Record, frozen=True, kw_only=True):
    """One thing that an output was made from; for a quantized file a file of its source, with that one's recipe as the digest.

    `digest` is as the lock has it, where small files of the hub have a git blob id, and `sha256` that of the bytes. `source` is
    a hub id with its `commit`, or the bare name of a folder; receipts of old have neither.
    """

    name: str
    digest: str
    sha256: str = ""
    source: str = ""
    commit: str = ""


class FileRecord(Record, frozen=True, kw_only=True):
    """One file of an output: a shard, or all of it; size in bytes."""

    name: str
    size: int
    sha256: str
    mtime_ns: int


class Versions(Record, frozen=True, kw_only=True):
    """The tools: this one, llama.cpp's tag, commit and tree digest, the environment's digest, the lock's."""

    tool: str
    tag: str
    commit: str
    tree: str
    environment: str
    lock: str = ""


class Receipt(Record, frozen=True, kw_only=True):
    """All that is known about one output; `recipe` digests what decides its bytes, `job` is the way to the job file from here.

    Nothing in it names a folder of the machine: `command` has {model}, {output} and the like in their places. `levels` names
    the checks that it has passed; a receipt of old names none.
    """

    path: str
    kind: str
    type: str
    recipe: str
    command: tuple[str, ...]
    inputs: tuple[Input, ...]
    versions: Versions
    files: tuple[FileRecord, ...]
    job: str = ""
    notes: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    format: int = FORMAT


def receipt_path(path: Path) -> Path:
    """The path of an output's receipt; for a very long name, the beginning of it and a digest."""
    name = path.name + SUFFIX
    if len(name.encode()) > LONGEST_NAME:
        begin = path.name.encode()[:200].decode(errors="ignore")
        name = f"{begin}-{hashlib.sha256(path.name.encode()).hexdigest()[:16]}{SUFFIX}"
    return path.with_name(name)


def record(path: Path, folder: Path | None = None, sha256: str = "") -> FileRecord:
    """Size, time and digest of a file, which was read already where `sha256` is given."""
    status = path.stat()
    name = path.relative_to(folder or path.parent).as_posix()
    return FileRecord(name=name, size=status.st_size, sha256=sha256 or file_sha256(path), mtime_ns=status.st_mtime_ns)


def read(path: Path) -> Receipt | None:
    """The receipt of an output; one that is absent, damaged, of a later format or another output's counts as none."""
    receipt = _decoded(path)
    return receipt if receipt and _is_own(receipt, path) else None


def _decoded(path: Path) -> Receipt | None:
    try:
        return decoded(receipt_path(path).read_bytes())
    except OSError:
        return None


def decoded(content: bytes) -> Receipt | None:
    """The receipt that some bytes are; None where they are none, or name what lies elsewhere."""
    try:
        receipt = msgspec.json.decode(content, type=Receipt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return receipt if receipt.format == FORMAT and receipt.files and all(map(_is_within, _names(receipt))) else None


def _names(receipt: Receipt) -> tuple[str, ...]:
    return (receipt.path, *(file.name for file in receipt.files))


def _is_within(name: str) -> bool:
    """Tell whether a name leads to no other place than below its folder, on any system."""
    return not re.search(r"[\\:]|(^|/)\.{0,2}(/|$)", name)


def _is_own(receipt: Receipt, path: Path) -> bool:
    """Tell whether a receipt lies under the name of its output, and vouches for a file of that name where it has one file."""
    vouched = len(receipt.files) > 1 or SHARD.sub("", receipt.files[0].name) == receipt.path
    return vouched and _alike(receipt_path(path.with_name(receipt.path)), receipt_path(path))


def _alike(one: Path, other: Path) -> bool:
    """Tell whether two names are one on disks that keep accents in parts, or do not tell capitals."""
    return unicodedata.normalize("NFC", one.name).casefold() == unicodedata.normalize("NFC", other.name).casefold()


def write(path: Path, receipt: Receipt) -> None:
    """Put a receipt beside an output; the same receipt gives the same bytes."""
    text = msgspec.json.format(msgspec.json.encode(receipt, order="sorted"), indent=2).decode()
    write_atomically(receipt_path(path), text + "\n")


def is_current(receipt: Receipt | None, recipe: str, folder: Path) -> bool:
    """Tell whether an output is what this recipe would make, by the size and time of its files alone, or by their size there."""
    if receipt is None or receipt.recipe != recipe:
        return False
    return all(is_here(file, folder) or is_at_address(file, folder) for file in receipt.files)


def is_here(file: FileRecord, folder: Path) -> bool:
    """Tell whether a file lies in a folder as it was made, by its size and time."""
    try:
        status = (folder / file.name).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)


def is_at_address(file: FileRecord, folder: Path) -> bool:
    """Tell whether a file lies at the address for which a folder stands, with its size, as was seen last."""
    there = stored.read(folder / file.name)
    return there is not None and there.size == file.size


def recognise(path: Path, recipes: Container[str]) -> bool:
    """Tell whether an output is that of one of some recipes after all, by its digests; its receipt learns the times of now.

    Copies from a backup, or out of an archive, have other times.
    """
    receipt = read(path)
    if receipt is None or receipt.recipe not in recipes or any(_difference(file, path.parent) for file in receipt.files):
        return False
    times = ((path.parent / file.name).stat().st_mtime_ns for file in receipt.files)
    files = (msgspec.structs.replace(file, mtime_ns=time) for file, time in zip(receipt.files, times, strict=True))
    write(path, msgspec.structs.replace(receipt, files=tuple(files)))
    return True


def may_write(path: Path, receipt: Receipt | None, force: bool) -> None:
    """Raise JobError if something is in the way that we did not make, or that was changed since; `force` allows a file."""
    if taken := next((file for file in (path, receipt_path(path)) if file.exists() and not file.is_file()), None):
        what = "a folder" if taken.is_dir() else "a pipe or a device"
        raise JobError(f"{taken} is {what}, where a file is to be written", "move it away, or set another `outfile`")
    if force:
        return
    known = next((file for file in receipt.files if file.name == path.name), None) if receipt else None
    if (there := stored.read(path)) and not there.ours:
        why = "was changed after orchestrate made it" if known else "exists already, and nothing says that orchestrate made it"
        raise JobError(f"{there.address} {why}", "move it away, or use --force to replace it")
    if not (path.exists() or path.is_symlink()):
        return
    if known is None:
        raise JobError(f"{path} exists already, and nothing says that orchestrate made it", "move it away, or use --force")
    if not is_here(known, path.parent) and _difference(known, path.parent):
        raise JobError(f"{path} was changed after orchestrate made it", "move it away, or use --force to make it anew")


def _difference(file: FileRecord, folder: Path, sha256: str = "") -> str:
    path = folder / file.name
    try:
        return differs(file, path.stat().st_size, lambda: sha256 or file_sha256(path))
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"


def differs(file: FileRecord, size: int, sha256: Callable[[], str]) -> str:
    """In what a file with these bytes is not the one that a receipt records, "" where it is; a wrong size needs no digest."""
    if size != file.size:
        return f"{file.name} has {size} bytes, the receipt says {file.size}"
    digest = sha256()
    return "" if digest == file.sha256 else f"{file.name} has sha256 {digest}, the receipt says {file.sha256}"


def recheck(path: Path) -> list[str]:
    """Check an output (any file of it, or its receipt) by its receipt and by its own header; complaints, [] is good."""
    return examine(path)[0]


def examine(path: Path) -> tuple[list[str], tuple[Checks, ...]]:
    """What `recheck` answers, and what reading the files has found."""
    path = path.with_name(path.name.removesuffix(SUFFIX))
    receipt = read(path) or read(path.with_name(SHARD.sub("", path.name)))
    if receipt is None:
        other = _decoded(path)
        why = f"a receipt beside it that is of {other.path}" if other else "no readable receipt"
        return [f"{path.name} has {why}, so nothing says what it should be"], ()
    if path.exists() and not any(_alike(path, path.with_name(file.name)) for file in receipt.files):
        return [f"{path.name} is none of the files that its receipt names"], ()
    from llamacpp_orchestrator.verify import gguf

    files = [path.parent / file.name for file in receipt.files]
    checks: tuple[Checks, ...] = ()
    complaints: list[str] = []
    try:
        checks = gguf.check_set(files) if receipt.kind != "merged" else ()
        for weights in (file for file in files if file.suffix == ".safetensors"):
            safetensors.check_safetensors(weights)
    except OrchestrateError as error:
        complaints = [error.message]
    pairs = zip(receipt.files, [one.sha256 for one in checks] or [""] * len(files), strict=True)
    return [why for file, digest in pairs if (why := _difference(file, path.parent, digest))] or complaints, checks


def outputs(path: Path) -> list[Path]:
    """A file as it is, or all outputs in a folder that have a receipt; JobError when there are none, and for a job."""
    if path.suffix in {".yaml", ".yml"}:
        raise JobError(f"{path} is a job or its lock, not an output", "name what the job made: a GGUF file, or the folder of it")
    if not path.is_dir():
        return [path]
    files = sorted(receipt.with_name(receipt.name.removesuffix(SUFFIX)) for receipt in path.rglob(f"*{SUFFIX}"))
    if not files:
        raise JobError(
            f"{path} holds no output with a receipt", "name a GGUF file that orchestrate has made, or the folder of it"
        )
    return files
