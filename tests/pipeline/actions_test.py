"""What is read while it is written: when that does for the checks of an output, and when it must be read again."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.pipeline import actions
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.util.hashing import POLL_SECONDS
from llamacpp_orchestrator.verify import gguf as verify_gguf
from tests.support.gguf_bytes import gguf

WHOLE = gguf([("w", (1 << 20,), 0, 0)], data=struct.pack("<f", 0.5) * (1 << 20))


def in_order(path: Path) -> int:
    """Write a file as upstream's script does, which takes longer than to see that it has begun."""
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(WHOLE), 1 << 18):
            file.write(WHOLE[at : at + (1 << 18)])
            time.sleep(0 if at else 10 * POLL_SECONDS)
    return len(WHOLE)


def and_more(path: Path) -> int:
    """Write some of it twice."""
    in_order(path)
    with path.open("r+b") as file:
        file.seek(len(WHOLE) - 8192)
        return len(WHOLE) + file.write(struct.pack("<f", 0.25) * 2048)


def header_last(path: Path) -> int:
    """Write the numbers first, as llama-quantize does."""
    with path.open("wb") as file:
        file.write(bytes(1024))
        file.write(WHOLE[1024:])
        file.seek(0)
        return len(WHOLE) + file.write(WHOLE[:1024])


@pytest.mark.skipif(not warm_worker.can_fork(host.system()), reason="who writes is not known there")
@pytest.mark.parametrize(
    ("write", "told", "kept"),
    [
        (in_order, lambda wrote: wrote, True),
        (in_order, lambda wrote: wrote + 36, True),
        (in_order, lambda wrote: None, False),
        (in_order, lambda wrote: wrote - 1, False),
        (and_more, lambda wrote: wrote, False),
        (header_last, lambda wrote: wrote, False),
    ],
)
def test_a_file_is_not_read_again_where_it_was_written_once_from_its_beginning_to_its_end(
    write: Callable[[Path], int], told: Callable[[int], int | None], kept: bool, tmp_path: Path
) -> None:
    build = SimpleNamespace(name="m", stage=tmp_path, output=SimpleNamespace(kind="model", path=Path("m.gguf")))

    def converter(command: Command, log: Path, tell: Callable[[str], None]) -> int | None:
        log.touch()
        return told(write(tmp_path / "m.gguf"))

    run = JobRun(pinned=None, logs=tmp_path, converter=converter, locks=None)  # type: ignore[arg-type]
    found = actions._converted(run, build, Command(()), lambda text: None)  # type: ignore[arg-type]
    assert found == (verify_gguf.check_set([tmp_path / "m.gguf"])[0] if kept else None)
