"""The mirror of an address: a folder of the cache in which such a job is worked on, and what was seen at the address meanwhile.

It has all receipts and small files, and outputs only while they are needed here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.build import Outputs
from llamacpp_orchestrator.pipeline.receipt import Receipt
from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.storage import remote
from llamacpp_orchestrator.storage import stored
from llamacpp_orchestrator.storage.remote import Entry
from llamacpp_orchestrator.storage.remote import Place
from llamacpp_orchestrator.storage.stored import Stored
from llamacpp_orchestrator.util.store import remove
from llamacpp_orchestrator.util.store import write_atomically

KIND = "outputs"
MATRICES = ("imatrix.gguf", "imatrix.dat")


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """What a job may have in one folder: outputs by name, and small files, which are always here. In a `whole` one all is its."""

    outputs: frozenset[str]
    small: frozenset[str]
    others: frozenset[str] = frozenset()
    whole: bool = False

    def output_of(self, name: str) -> str:
        """The output that a file belongs to; "" for none."""
        bare = pipeline_receipt.SHARD.sub("", name)
        return next(iter(self.outputs), "") if self.whole else bare if bare in self.outputs else ""


def names(job: Job, base: Path) -> dict[Path, Names]:
    """What a job may have at its address, by the folders of the mirror."""
    made, small, others = defaultdict[Path, set[str]](set), defaultdict[Path, set[str]](set), defaultdict[Path, set[str]](set)
    whole: set[Path] = set()
    for output in layout.outputs(job, base):
        path, model, matrix = output.path, output.model, output.model.imatrix
        made[path.parent].add(path.name)
        small[path.parent] |= {pipeline_receipt.receipt_path(path).name, storage_address.sending(path.name)}
        small[path.parent] |= {path.name.removesuffix(".gguf") + ".Modelfile"} if model.ollama else set()
        if matrix:
            others[path.parent] |= {Path(matrix.file).name} if matrix.file else {f"{model.name}-{name}" for name in MATRICES}
        whole |= {path.parent} if output.kind == "merged" else set()
    for _, path in layout.reports(job, base):
        small[path.parent] |= {path.name, path.with_suffix(".svg").name}
    return {
        folder: Names(
            outputs=frozenset(made[folder]),
            small=frozenset(small[folder]),
            others=frozenset(others[folder]),
            whole=folder in whole,
        )
        for folder in list(made)
    }


def root(context: Context) -> Path:
    """The mirror of a job's address."""
    return context.folder(context.job.output)


def name(context: Context, path: Path) -> str:
    """What a path of the mirror is called from the address on."""
    return path.relative_to(root(context)).as_posix()


def place(context: Context) -> Place:
    """A job's address; NetworkError where it may not be asked, JobError where a package for it is not installed."""
    opened = remote.place(context.address)
    if storage_address.is_remote(context.address):
        context.online(f"what lies at {context.address}")
    return opened


def look(context: Context) -> None:
    """Note what lies at a job's address now, and bring the small files here that have changed there; nothing for a folder."""
    if not context.address:
        return
    there = place(context)
    for folder, known in names(context.job, context.file.parent).items():
        rel = name(context, folder) if folder != root(context) else ""
        _look(there, rel, folder, known)


def _look(there: Place, rel: str, folder: Path, known: Names) -> None:
    begin = f"{rel}/" if rel else ""
    entries = {
        name: entry
        for name, entry in remote.look(there, rel, known.whole).items()
        if known.whole or known.output_of(name) or name in known.small or name in known.others
    }
    for name in [*known.small, *known.others]:
        if name not in entries:
            stored.write(folder / name, None)
    for name in filter(entries.__contains__, known.small):
        _bring(there, begin + name, folder / name, entries[name])
    for output in known.outputs:
        _adopt(folder / output)
    receipts = {output: pipeline_receipt.read(folder / output) for output in known.outputs}
    expected = {folder / file.name for receipt in receipts.values() if receipt for file in receipt.files}
    for path in expected | {folder / output for output in known.outputs}:
        if path.relative_to(folder).as_posix() not in entries:
            stored.write(path, None)
    for name, entry in entries.items():
        if name in known.small:
            continue
        path, output = folder / name, known.output_of(name)
        address = storage_address.join(there.address, begin + name)
        before = stored.read(path)
        digest = before.sha256 if before and before.version == entry.version else ""
        ours = bool(output) and _vouched(folder / output, receipts[output], name, entry)
        stored.write(path, Stored(address=address, size=entry.size, version=entry.version, ours=ours, sha256=digest))


def _vouched(output: Path, receipt: Receipt | None, name: str, entry: Entry) -> bool:
    """Tell whether something at the address says that we have sent a file, or were about to."""
    if stored.read(sending(output)):
        return True
    sizes = {file.name: file.size for file in receipt.files} if receipt else {}
    return sizes.get(name) == entry.size


def _bring(there: Place, name: str, path: Path, entry: Entry) -> None:
    """Bring a small file here that has changed there; what is whole here and not sent yet stays."""
    known = stored.read(path)
    if known and known.version == entry.version and known.size == entry.size and path.is_file():
        return
    content = remote.read(there, name)
    digest = hashlib.sha256(content).hexdigest()
    address = storage_address.join(there.address, name)
    if path.name.endswith(pipeline_receipt.SUFFIX) and (known is None or known.sha256 != digest) and _unsent(path, known):
        content = b""
    if content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.decode("utf-8", "replace"))
    stored.write(path, Stored(address=address, size=entry.size, version=entry.version, ours=True, sha256=digest))


def _unsent(path: Path, known: Stored | None) -> bool:
    """Tell whether a receipt here is of an output that is whole here and was never stored."""
    output = path.with_name(path.name.removesuffix(pipeline_receipt.SUFFIX))
    receipt = pipeline_receipt.read(output)
    return bool(receipt and (known is None or known.sha256 != digest_of(path)) and is_local(output, receipt))


def _adopt(output: Path) -> None:
    """Take what a killed run was sending for the receipt of an output that has none: whether all of it is there is seen later."""
    path, coming = pipeline_receipt.receipt_path(output), sending(output)
    if coming.is_file() and stored.read(coming) and not stored.read(path) and not path.exists():
        write_atomically(path, coming.read_text(encoding="utf-8"))


def sending(output: Path) -> Path:
    """The path of what says that an output is on its way."""
    return output.with_name(storage_address.sending(output.name))


def digest_of(path: Path) -> str:
    """The sha256 of a small file, "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def is_sent(path: Path) -> bool:
    """Tell whether a small file lies at the address as it is here."""
    there = stored.read(path)
    return there is not None and there.sha256 == digest_of(path)


def is_stored(output: Path) -> bool:
    """Tell whether an output lies at the address with its receipt, as far as sizes tell, and nothing says that it is coming."""
    receipt = pipeline_receipt.read(output)
    if receipt is None or stored.read(sending(output)) or not is_sent(pipeline_receipt.receipt_path(output)):
        return False
    return all(pipeline_receipt.is_at_address(file, output.parent) for file in receipt.files)


def unsent(context: Context, outputs: Outputs) -> list[Build]:
    """The outputs that are up to date and not at the address, whole and with their receipts; none of a job with a folder."""
    kept = outputs.kept if context.address else ()
    return [build for build in kept if build.output.path in outputs.current and not is_stored(build.output.path)]


def is_local(output: Path, receipt: Receipt) -> bool:
    """Tell whether all files of an output are here as its receipt says."""
    return all(pipeline_receipt.is_here(file, output.parent) for file in receipt.files)


@contextlib.contextmanager
def using(context: Context) -> Iterator[None]:
    """Keep what is in the mirror from being taken away by another run of this machine."""
    if not context.address:
        yield
        return
    store, key = context.store, root(context).name
    with store.using(KIND, key):
        with store.lock(f"{KIND}-{key}"):  # a run that takes something away just now has not seen this one
            pass
        yield


def free(context: Context, outputs: Iterable[Path]) -> None:
    """Take outputs away here that lie at the address, unless another run of this machine may need them."""
    whole = [output for output in outputs if is_stored(output)] if context.address else []
    if not whole:
        return
    with context.store.sole(KIND, root(context).name) as sole:
        for output in whole if sole else ():
            receipt = pipeline_receipt.read(output)
            for file in receipt.files if receipt else ():
                remove(output.parent / file.name)
