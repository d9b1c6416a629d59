"""The lock: what it reads back from what it wrote, and what it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from llamacpp_orchestrator.lock import file as lock_file
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import reading
from tests.fuzz.common import words
from tests.fuzz.common import yaml_text
from tests.support.locks import a_lock

LOCK: dict[str, Any] = {"version": 1, **msgspec.to_builtins(a_lock())}


@fuzzed(yaml_text(LOCK))
def test_the_lock(text: bytes) -> None:
    with folder() as here:
        path = here / "job.lock.yaml"
        path.write_bytes(text)
        lock = reading(lambda: lock_file.read(path))
        if lock:
            lock_file.write(path, lock)
            assert lock_file.read(path) == lock


@fuzzed(st.tuples(words, words, st.text(max_size=40)))
def test_what_is_written_reads_back(said: tuple[str, str, str]) -> None:
    tag, torch, source = (text.encode("utf-8", "ignore").decode() for text in said)
    lock = a_lock()
    assert lock.environment
    first, *others = lock.models
    lock = msgspec.structs.replace(
        lock,
        llama_cpp=msgspec.structs.replace(lock.llama_cpp, tag=tag),
        environment=msgspec.structs.replace(lock.environment, torch=torch),
        models=(msgspec.structs.replace(first, wanted=msgspec.structs.replace(first.wanted, source=source)), *others),
    )
    with folder() as here:
        lock_file.write(here / "job.lock.yaml", lock)
        assert lock_file.read(here / "job.lock.yaml") == lock
