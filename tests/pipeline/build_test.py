"""The plan of an output."""

from __future__ import annotations

from llamacpp_orchestrator.pipeline import build


def test_a_command_reads_the_same_on_every_machine() -> None:
    known = {"/c/views/k/m": "{model}", "/c": "{cache}", "C:\\t": "{tree}"}
    argv = ("/c/views/k/m", "/c/x", "C:\\t\\a\\b.py", "/cc/x", "f16")
    assert build.portable(argv, known) == ("{model}", "{cache}/x", "{tree}/a/b.py", "/cc/x", "f16")
