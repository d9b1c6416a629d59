"""Why uv could not resolve: the refusal of an index is told, in whichever mode uv was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import uv_call
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.settings import Index
from tests.support import server


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_index_that_refuses_is_told_from_one_that_has_it_not(status: int, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("some-package\n")
    with server.Server() as index:
        index.otherwise = server.answer(status)
        argv = (indexes.uv(), *venv.COMPILE, "--no-cache", "in")
        env = indexes.uv_env(Index(index_urls=(index.url,)), None)
        with pytest.raises(CommandFailed) as caught:
            uv_call.answer(Command(argv, cwd=str(tmp_path), env=env), 60.0)
    assert (str(status) in caught.value.tail) is (status != 404)
    assert "No solution found" in caught.value.tail
