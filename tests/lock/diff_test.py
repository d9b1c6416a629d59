"""What has changed since a lock was made."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import records
from tests.support.locks import JOB
from tests.support.locks import TEXT
from tests.support.locks import a_lock


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"b11434", b"b11000", "llama_cpp: locked b11434"),
        (b"models:", b"environment: {torch: cu128}\nmodels:", "environment: "),
        (b"org/l]", b"org/other]", "org/other: not locked"),
        (b"source: org/m", b"source: org/m@dev", "org/m: not locked"),
        (b"    loras: [org/l]\n", b"", "org/l: locked, but no longer in the job"),
    ],
)
def test_why_a_lock_is_stale(old: bytes, new: bytes, reason: str) -> None:
    job = loader.parse(TEXT.replace(old, new), Path("job.yaml"))
    assert any(reason in said for said in diff.stale_reasons(job, a_lock()))
    assert diff.stale_reasons(job, None) == ["there is no lock"]


def test_a_lock_without_the_assets_that_quantizing_needs() -> None:
    lock = msgspec.structs.replace(a_lock(), assets=())
    assert diff.stale_reasons(JOB, lock) == ["binaries: the release's assets are not locked"]
    with pytest.raises(KeyError):
        lock.files(records.Wanted(source="other", kind="model"))
