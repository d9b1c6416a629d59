"""Odd surroundings, end to end: what is wrong is told with exit 2 before anything is asked, and never as a bug of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Job = Callable[..., Path]
UNKNOWN = """
import pwd
def getpwuid(number):
    raise KeyError(number)
pwd.getpwuid = getpwuid
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def orchestrate(*argv: str, cwd: Path, unset: tuple[str, ...] = (), **env: str) -> tuple[int, str]:
    environ = {name: value for name, value in os.environ.items() if name not in unset} | env
    words = [sys.executable, "-m", "llamacpp_orchestrator", *argv]
    child = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, timeout=600)
    return child.returncode, (child.stdout + child.stderr).decode(errors="replace")


@pytest.mark.parametrize("command", ["plan", "lock", "run", "doctor"])
@pytest.mark.parametrize(
    "variable", ["HF_HUB_DOWNLOAD_TIMEOUT=x", "HTTPS_PROXY=http://h:abc", "HF_ENDPOINT='https://h'", "ALL_PROXY=foo://h:1"]
)
def test_what_is_wrong_is_told_first(command: str, variable: str, job: Job, data: Path, world: Path) -> None:
    name, _, value = variable.partition("=")
    code, said = orchestrate(command, str(job(str(data / "tiny-llama"))), cwd=world, **{name: value})
    assert code == 2 and f"error: {name}: " in said and "hint: " in said and "Traceback" not in said, said
    assert not list(world.glob("*.lock.yaml"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has names in UTF-16 everywhere")
def test_a_character_set_that_cannot_express_a_path(world: Path, data: Path) -> None:
    text = f"version: 1\nllama_cpp: {{tag: b11434}}\noutput: 模型\nmodels: ['{data / 'tiny-llama'}']\n"
    (world / "job.yaml").write_text(text, encoding="utf-8")
    code, said = orchestrate("run", "job.yaml", cwd=world, **ASCII)
    assert code == 2 and "cannot express it" in said and "LC_ALL=C.UTF-8" in said and "Traceback" not in said, said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no table of users")
def test_a_user_that_the_system_does_not_know(world: Path, data: Path, job: Job) -> None:
    # As in a container that was started with a number for a user.
    (world / "site").mkdir()
    (world / "site" / "sitecustomize.py").write_text(UNKNOWN)
    site = os.pathsep.join(filter(None, (str(world / "site"), os.environ.get("PYTHONPATH", ""))))
    homeless = ("HOME", "USER", "LOGNAME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HF_HOME")
    code, said = orchestrate("cache", "dir", cwd=world, unset=(*homeless, "ORCHESTRATE_CACHE_DIR"), PYTHONPATH=site)
    assert code == 2 and "ORCHESTRATE_CACHE_DIR" in said, said
    code, said = orchestrate("run", str(job(str(data / "tiny-llama"))), cwd=world, unset=homeless, PYTHONPATH=site)
    assert code == 0 and "verify tiny-llama-bf16.gguf" in said, said
