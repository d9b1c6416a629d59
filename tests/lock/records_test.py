"""The names of a job's parts."""

from __future__ import annotations

from pathlib import Path

from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import records
from tests.support.locks import TEXT


def test_names_of_steps_are_told_apart() -> None:
    job = loader.parse(TEXT.replace(b"org/l]", b"org/l, {source: other/l, name: m}]"), Path("job.yaml"))
    assert list(records.names(job).values()) == ["m", "l", "m (other/l)"]
