"""An output and its receipt: what made it, and whether it is still what the receipt says."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llamacpp_orchestrator import verify
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.store import file_sha256
from llamacpp_orchestrator.store import write_atomically

SUFFIX = ".receipt.json"


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that an output was made from, with its digest."""

    name: str
    digest: str


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an output: size in bytes, sha256 in hex, time in nanoseconds."""

    name: str
    size: int
    sha256: str
    mtime_ns: int


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """What made an output: this tool, llama.cpp, the environment, and the digest of the lock that names it all."""

    tool: str
    tag: str
    commit: str
    tree: str
    environment: str
    lock: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """All there is to know about an output; `recipe` is a digest over everything that decides its bytes."""

    format: int = 1
    path: str
    kind: str
    type: str
    recipe: str
    command: tuple[str, ...]
    inputs: tuple[Input, ...]
    versions: Versions
    files: tuple[FileRecord, ...]
    notes: tuple[str, ...] = ()


def _place(output: Path) -> Path:
    # A name may be as long as a name can be, and the suffix must still fit.
    name = output.name if len((output.name + SUFFIX).encode()) <= 255 else output.name.encode()[: 255 - len(SUFFIX)].decode(errors="ignore")
    return output.with_name(name + SUFFIX)


def record(file: Path) -> FileRecord:
    """A file as a receipt holds it; reads it whole."""
    digest, found = file_sha256(file), file.stat()
    return FileRecord(name=file.name, size=found.st_size, sha256=digest, mtime_ns=found.st_mtime_ns)


def read(output: Path) -> Receipt | None:
    """The receipt of an output, None where there is none that can be read."""
    try:
        return msgspec.json.decode(_place(output).read_bytes(), type=Receipt)
    except (OSError, msgspec.DecodeError):
        return None


def write(output: Path, receipt: Receipt) -> None:
    """Write the receipt of an output beside it."""
    write_atomically(_place(output), msgspec.json.format(msgspec.json.encode(receipt), indent=2).decode() + "\n")


def _fits(record: FileRecord, folder: Path) -> bool:
    try:
        found = (folder / record.name).stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (record.size, record.mtime_ns)


def is_current(receipt: Receipt | None, recipe: str, folder: Path) -> bool:
    """Whether an output was made by this recipe and its files were not touched since; reads no file."""
    return receipt is not None and receipt.recipe == recipe and all(_fits(file, folder) for file in receipt.files)


def may_write(path: Path, receipt: Receipt | None, force: bool) -> None:
    """Raise JobError when a file at this place is not ours to overwrite; ours is what its receipt still describes."""
    if force or not path.exists():
        return
    if path.is_dir():
        raise JobError(f"{path} is a folder", "choose another `name`, `outfile` or `output`")
    known = next((file for file in receipt.files if file.name == path.name), None) if receipt else None
    if known is None or not (_fits(known, path.parent) or (path.stat().st_size == known.size and file_sha256(path) == known.sha256)):
        why = "was changed after orchestrate made it" if known else "was not made by orchestrate"
        raise JobError(f"{path} exists and {why}", "move it away, choose another `output`, or use --force to replace it")


def recheck(output: Path) -> list[str]:
    """What is wrong with an output, file by file, in words; reads everything again."""
    receipt = read(output)
    if receipt is None:
        return [f"there is no receipt {_place(output).name}"]
    wrong = []
    for file in receipt.files:
        path = output.parent / file.name
        if not path.is_file():
            wrong.append(f"{file.name} is missing")
        elif (found := file_sha256(path)) != file.sha256:
            wrong.append(f"{file.name} has sha256 {found}, its receipt says {file.sha256}")
    if not wrong:
        try:
            verify.check_set(tuple(output.parent / file.name for file in receipt.files))
        except OrchestrateError as error:
            wrong.append(error.message)
    return wrong
