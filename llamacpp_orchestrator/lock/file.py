"""The lock file, `job.lock.yaml`: where it lies, how it is read back, checked and written, and its digest."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import serialize
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.models.selection import check_names
from llamacpp_orchestrator.util import tag
from llamacpp_orchestrator.util.store import write_atomically
from llamacpp_orchestrator.util.tag import Tag

HEADER = "# Written by orchestrate; commit it beside its job. `orchestrate lock JOB --upgrade` moves the pins.\n"


def path_for(job_file: Path) -> Path:
    """The path of a job's lock: beside it, `job.lock.yaml`."""
    return job_file.with_name(f"{job_file.stem}.lock.yaml")


def read(path: Path) -> Lock | None:
    """The lock at a path, None when there is none; LockError for one that cannot be read back."""
    if path.exists() and not path.is_file():
        raise LockError(f"{path.name} is a folder, a pipe or a device, not a lock", "move it away and run `orchestrate lock`")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"{path.name} cannot be read: {error}", "restore it, or remove it and lock again") from error
    return serialize.load(text, path.name, _built)


def _built(data: Any) -> Lock:
    lock = msgspec.convert(data, Lock, strict=False)
    for place, complaint in _complaints(lock):
        raise ValueError(f"{complaint} - at `{place}`")
    return lock


def _complaints(lock: Lock) -> Iterator[tuple[str, str]]:
    if lock.version != 1:
        yield "$.version", f"it has format {lock.version}, this version of orchestrate reads 1"
    if Tag(lock.llama_cpp.tag).is_release or not Tag(lock.llama_cpp.release or tag.LATEST).is_release:
        yield "$.llama_cpp.tag", "a lock names the build (bNNNN), and as release vX.Y.Z or latest"
    if bool(lock.llama_cpp.commit) == bool(lock.llama_cpp.package):
        yield "$.llama_cpp", "either a commit or a package is needed"
    for part, pin in (("environment", lock.environment), ("reference", lock.reference)):
        for line in pin.requirements.splitlines() if pin else ():
            if not re.match(r"[\w.-]+(\[[\w,.-]+\])?==[^@]+$|\s+--hash=sha256:[0-9a-f]{64}( \\)?$|\s*(#.*)?$", line):
                yield f"$.{part}.requirements", f"`{line.strip()[:80]}` is neither a pinned package nor a hash"
    seen = set()
    for number, model in enumerate(lock.models):
        try:
            check_names((file.path for file in model.files), model.wanted.source)
        except OrchestrateError as error:
            yield f"$.models[{number}].files", error.message
        for index, file in enumerate(model.files):
            if not re.fullmatch("[0-9a-f]{64}", file.sha256) and not re.fullmatch("[0-9a-f]{40}", file.oid):
                yield f"$.models[{number}].files[{index}]", f"{file.path} has neither a sha256 nor a blob id"
        if model.wanted in seen:
            yield f"$.models[{number}]", f"{model.wanted.source} is locked twice"
        seen.add(model.wanted)
    for index, asset in enumerate(lock.assets):
        if not re.fullmatch(r"[\w.+-]+", asset.name) or not re.match(r"(https?|file)://\S+$", asset.url):
            yield f"$.assets[{index}]", f"{asset.name} is no asset of a release"
        if asset.size < 0 or not re.fullmatch("[0-9a-f]{64}", asset.sha256 or "0" * 64):
            yield f"$.assets[{index}]", f"the size or sha256 of {asset.name} cannot be"


@functools.lru_cache(maxsize=4)  # every receipt names its digest
def text_of(lock: Lock) -> str:
    """The lock as text; equal locks give equal bytes."""
    return HEADER + serialize.dump({"version": 1, **msgspec.to_builtins(lock)})


def write(path: Path, lock: Lock) -> None:
    """Write the lock, unless those are its bytes already."""
    text = text_of(lock)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def hashes(lock: Lock) -> frozenset[str]:
    """The sha256 of every file that may be installed into an environment, in hex."""
    return frozenset(digest for pin in environments(lock) for digest in re.findall(r"sha256:([0-9a-f]{64})", pin.requirements))


def environments(lock: Lock) -> tuple[EnvironmentPin, ...]:
    """The environments that a lock holds."""
    return tuple(filter(None, (lock.environment, lock.reference)))


def digest(lock: Lock) -> str:
    """The sha256 of the lock's text, as receipts name it."""
    return hashlib.sha256(text_of(lock).encode()).hexdigest()
