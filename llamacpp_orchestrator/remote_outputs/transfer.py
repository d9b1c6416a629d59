"""The steps of an output at an address: `store` sends what is made and checked, its receipt last; `retrieve` brings it back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.pipeline.receipt import FileRecord
from llamacpp_orchestrator.pipeline.receipt import Receipt
from llamacpp_orchestrator.remote_outputs import mirror
from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.storage import failures
from llamacpp_orchestrator.storage import remote
from llamacpp_orchestrator.storage import stored
from llamacpp_orchestrator.storage.remote import Place
from llamacpp_orchestrator.storage.stored import Stored
from llamacpp_orchestrator.system.scheduler import CURRENT
from llamacpp_orchestrator.system.scheduler import DONE
from llamacpp_orchestrator.system.scheduler import NOTE
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.cancel import wait
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import draft
from llamacpp_orchestrator.util.store import remove

TRIES, PAUSE = 3, 1.0  # seconds


@contextmanager
def _small(context: Context, content: bytes) -> Iterator[Path]:
    path = draft(context.store.folder("downloads") / "small")
    path.write_bytes(content)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _store(run: JobRun, build: Build, tell: Tell) -> Outcome:
    output = build.output.path
    if mirror.is_stored(output):
        return CURRENT
    receipt = pipeline_receipt.read(output)
    if receipt is None:
        raise OrchestrateError(f"{build.name} was taken away before it was stored", "run the same command again")
    there, context, path = mirror.place(run.pinned.context), run.pinned.context, pipeline_receipt.receipt_path(output)
    content, folder = path.read_bytes(), output.parent
    name, coming = mirror.name(context, path), mirror.name(context, mirror.sending(output))
    others = remote.read(there, coming) != b""
    former = pipeline_receipt.decoded(remote.read(there, name))
    if not run.force:
        for file in receipt.files:
            _check_free(there, mirror.name(context, folder / file.name), folder / file.name, file, former, others)
    put_small(context, there, content, coming)
    alike = former is not None and set(map(_bytes, former.files)) == set(map(_bytes, receipt.files))
    if former and not alike:  # nothing may stand there for bytes that are about to change
        remote.remove(there, name)
    # What was made just now has most likely other bytes than what lies there; what is left of a run before, the same.
    likely = alike or build.name not in run.builds
    entries = {file.name: _sent(run.pinned.context, there, build, file, likely, tell) for file in receipt.files}
    put_small(context, there, content, name)
    for sent, entry in entries.items():
        if remote.entry(there, mirror.name(context, folder / sent)) != entry:
            remote.remove(there, name)
            where = storage_address.join(there.address, mirror.name(context, folder / sent))
            raise IntegrityError(f"{where} was replaced while it was stored", "does another run write there? run it again")
    for old in {file.name for file in former.files} - set(entries) if former else ():
        remote.remove(there, mirror.name(context, folder / old))
        stored.write(folder / old, None)
    remote.remove(there, coming)
    stored.write(mirror.sending(output), None)
    _note_small(context, there, path)
    if build.matrix:
        _store_matrix(context, there, folder / build.matrix.name, tell)
    return DONE


def _check_free(there: Place, name: str, path: Path, file: FileRecord, former: Receipt | None, others: bool) -> None:
    """Raise JobError where a file has come to the address since we looked, and nothing says whose it is."""
    entry, known = remote.entry(there, name), stored.read(path)
    vouched = (
        others or any((one.name, one.size) == (file.name, entry.size) for one in former.files) if former and entry else others
    )
    if entry is None or vouched or (known and known.ours and known.version == entry.version):
        return
    if entry.size != file.size or remote.sha256(there, name, entry.size, lambda text: None) != file.sha256:
        message = f"{storage_address.join(there.address, name)} exists already, and nothing says that orchestrate made it"
        raise JobError(message, "move it away, or use --force to replace it")


def _bytes(file: FileRecord) -> tuple[str, int, str]:
    return file.name, file.size, file.sha256


def _sent(context: Context, there: Place, build: Build, file: FileRecord, likely: bool, tell: Tell) -> remote.Entry:
    """Send a file and read it back, unless it is there, which is looked at where it is `likely`; what the store tells of it."""
    path = build.output.path.parent / file.name
    name = mirror.name(context, path)
    address, entry = storage_address.join(there.address, name), remote.entry(there, name)
    if entry and likely and entry.size == file.size and remote.sha256(there, name, file.size, tell) == file.sha256:
        return _noted(path, address, entry)
    if not pipeline_receipt.is_here(file, path.parent):
        remove(pipeline_receipt.receipt_path(build.output.path))  # of nothing that is left, here or there
        way = "run the same command again: it is made anew"
        raise IntegrityError(f"{address} is not what its receipt says, and no copy is here", way)
    for left in reversed(range(TRIES)):
        try:
            remote.put(there, path, name, tell)
            entry = remote.entry(there, name)
            size, digest = (entry.size, remote.sha256(there, name, entry.size, tell)) if entry else (0, "")
        except (IntegrityError, NetworkError):
            if not left:
                raise
            wait(PAUSE)
            continue
        if entry and (size, digest) == (file.size, file.sha256):
            return _noted(path, address, entry)
    raise failures.other_bytes(
        address, f"{file.size} bytes with sha256 {file.sha256}", f"{size} bytes with sha256 {digest or '-'}"
    )


def _noted(path: Path, address: str, entry: remote.Entry) -> remote.Entry:
    stored.write(path, Stored(address=address, size=entry.size, version=entry.version, ours=True))
    return entry


def put_small(context: Context, there: Place, content: bytes, name: str) -> None:
    """Send a small file and read it back."""
    with _small(context, content) as path:
        remote.put(there, path, name, lambda text: None)
    if (back := remote.read(there, name)) != content:
        raise failures.other_bytes(storage_address.join(there.address, name), f"{len(content)} bytes", f"{len(back)} other bytes")


def _note_small(context: Context, there: Place, path: Path) -> None:
    name = mirror.name(context, path)
    if entry := remote.entry(there, name):
        address = storage_address.join(there.address, name)
        digest = mirror.digest_of(path)
        stored.write(path, Stored(address=address, size=entry.size, version=entry.version, ours=True, sha256=digest))


def _store_matrix(context: Context, there: Place, path: Path, tell: Tell) -> None:
    """Send the matrix that an output was made with, where no other file of its name is in the way."""
    if not path.is_file():
        return
    name, digest, known = mirror.name(context, path), file_sha256(path), stored.read(path)
    entry = remote.entry(there, name)
    if known and entry and (known.version, known.sha256) == (entry.version, digest):
        return
    if entry is None or (known and known.sha256 and known.version == entry.version):
        remote.put(there, path, name, tell)
        entry = remote.entry(there, name)
    size = entry.size if entry else 0
    if entry is None or remote.sha256(there, name, size, tell) != digest:
        tell(f"{NOTE}another file named {path.name} lies at the address, so the matrix is not kept there")
        return
    address = storage_address.join(there.address, name)
    stored.write(path, Stored(address=address, size=size, version=entry.version, ours=True, sha256=digest))


def _retrieve(run: JobRun, build: Build, tell: Tell) -> Outcome:
    folder, receipt = build.output.path.parent, pipeline_receipt.read(build.output.path)
    files = receipt.files + matrix(build, receipt) if receipt else ()
    left = [file for file in files if not pipeline_receipt.is_here(file, folder)]
    there = mirror.place(run.pinned.context)
    for file in left:
        _brought(run.pinned.context, there, folder / file.name, file, tell)
    return DONE if left else CURRENT


def matrix(build: Build, receipt: Receipt) -> tuple[FileRecord, ...]:
    """The matrix that an output was made with, where it lies at the address alone."""
    path = build.output.path.with_name(build.matrix.name) if build.matrix else None
    known = stored.read(path) if path and not path.exists() else None
    made_with = [item.sha256 for item in receipt.inputs if path and item.name == path.name]
    if not (path and known and made_with):
        return ()
    return (FileRecord(name=path.name, size=known.size, sha256=made_with[0], mtime_ns=time.time_ns()),)


def _brought(context: Context, there: Place, path: Path, file: FileRecord, tell: Tell) -> None:
    name, staged = mirror.name(context, path), draft(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        remote.get(there, name, staged, tell)
        size, digest = staged.stat().st_size, file_sha256(staged)
        if (size, digest) != (file.size, file.sha256):
            address = storage_address.join(there.address, name)
            message = f"{address} has {size} bytes with sha256 {digest}, its receipt says {file.size} with {file.sha256}"
            raise IntegrityError(message, "restore it, or make it anew: run the same command with --force")
        os.utime(staged, ns=(file.mtime_ns, file.mtime_ns))  # by which it is known as what the receipt tells of
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def store_small(context: Context, step: Step, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Send one small file; what was in its way was told before it was written here."""
    there, path = mirror.place(context), mirror.root(context) / step.key
    put_small(context, there, path.read_bytes(), step.key)
    _note_small(context, there, path)
    return DONE


def _alone(action: Callable[[JobRun, Build, Tell], Outcome]) -> Callable[[JobRun, Build, Tell], Outcome]:
    """An action that is done while no other run of this machine makes the output, sends it or brings it here."""

    def act(run: JobRun, build: Build, tell: Tell) -> Outcome:
        run.locks.acquire(build, tell)
        try:
            return action(run, build, tell)
        finally:
            run.locks.release(build)

    return act


ACTIONS = {"store": _alone(_store), "retrieve": _alone(_retrieve)}
