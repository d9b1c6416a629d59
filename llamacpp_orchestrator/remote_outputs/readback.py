"""The check of what lies at an address: every file that a receipt there names, by its size and by its bytes, read back."""

from __future__ import annotations

from collections.abc import Iterator

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.receipt import FileRecord
from llamacpp_orchestrator.results import Checked
from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.storage import remote
from llamacpp_orchestrator.storage.remote import Entry
from llamacpp_orchestrator.storage.remote import Place


def check(address: str) -> Iterator[Checked]:
    """Check an output at an address (a file of it, or its receipt), or all below it; JobError where there is none."""
    if wrong := storage_address.complaint(address):
        raise JobError(f"{storage_address.protocol(address)}{storage_address.SEPARATOR}...: {wrong}", "see docs/storage.md")
    there, names = _receipts(address.rstrip("/"))
    if not names:
        way = "name an address where orchestrate has stored outputs, or one of these"
        raise JobError(f"{address} holds no output with a receipt", way)
    for name in names:
        yield _checked(there, name)


def _receipts(address: str) -> tuple[Place, list[str]]:
    """An address, and the receipts below it by name; of one output, the folder that it is in, and its receipt."""
    there = remote.place(address)
    names = sorted(name for name in remote.look(there, "", deep=True) if name.endswith(pipeline_receipt.SUFFIX))
    if names:
        return there, names
    folder, _, name = address.rpartition("/")
    if not name or folder.endswith("/"):
        return there, []
    beside, name = remote.place(folder), name.removesuffix(pipeline_receipt.SUFFIX)
    receipts = (f"{bare}{pipeline_receipt.SUFFIX}" for bare in (name, pipeline_receipt.SHARD.sub("", name)))
    return beside, [one for one in receipts if remote.entry(beside, one)][:1]


def _checked(there: Place, name: str) -> Checked:
    receipt = pipeline_receipt.decoded(remote.read(there, name))
    output = storage_address.join(there.address, name.removesuffix(pipeline_receipt.SUFFIX))
    if receipt is None:
        return Checked(path=output, complaints=("it has no readable receipt, so nothing says what it should be",))
    folder = name.rpartition("/")[0]
    begin = f"{folder}/" if folder else ""
    differences = (_difference(there, begin + file.name, file) for file in receipt.files)
    return Checked(path=output, complaints=tuple(filter(None, differences)))


def _difference(there: Place, name: str, file: FileRecord) -> str:
    entry: Entry | None = remote.entry(there, name)
    if entry is None:
        return f"{file.name} is not there"
    return pipeline_receipt.differs(file, entry.size, lambda: remote.sha256(there, name, file.size, lambda text: None))
