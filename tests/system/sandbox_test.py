"""The fence: its paths by tables, and from inside what a program can still do where the kernel has what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.convert import failures
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.convert.warm_worker import Warm
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import Fence
from llamacpp_orchestrator.system.command import Limits
from llamacpp_orchestrator.system.command import clean_env
from tests.support import makers
from tests.support.answer import Answer

LINUX = sys.platform == "linux"
KERNEL = json.loads(subprocess.run([sys.executable, sandbox.LAYER], capture_output=True, check=True).stdout) if LINUX else {}
landlock = pytest.mark.skipif(KERNEL.get("landlock", 0) < 6, reason="this kernel has no Landlock, or an old one")
seccomp = pytest.mark.skipif(not KERNEL.get("seccomp"), reason="no filter of system calls for this kernel and processor")
linux = pytest.mark.skipif(not LINUX, reason="the fence is Linux's")
MEGABYTE = 1 << 20


def here(*parts: str) -> str:
    return str(Path(Path.cwd().anchor, *parts))


def test_a_call_may_read_what_it_names_and_its_own_parts(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "other.gguf"):
        (tmp_path / name).touch()
    tool, script = here("opt", "tools", "llama-quantize"), here("tree", "convert.py")
    asked = Command((tool, f"--x={here('a')}", str(tmp_path / "m-00001-of-00002.gguf"), "relative", "-y"))
    found = sandbox.around(asked, Limits(memory=5, seconds=7), [Path(here("more"))], [Path(here("w"))]).fence
    assert found == Fence(
        read=(
            here("opt", "tools"),
            here("a"),
            str(tmp_path / "m-00001-of-00002.gguf"),
            str(tmp_path / "m-00002-of-00002.gguf"),
            here("more"),
        ),
        write=(here("w"),),
        memory=5,
        seconds=7,
    )
    asked = Command((here("venv", "bin", "python3"), script, here("view")), env=(("LD_LIBRARY_PATH", here("lib")),))
    found = sandbox.around(asked, Limits()).fence
    assert found and found.read == (here("lib"), here("tree"), here("view")) and not found.write


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("program", ["python3", "python.exe", "llama-quantize"])
def test_who_puts_the_fence_up(system: str, program: str) -> None:
    bare = Command((program, "x"))
    assert sandbox.laid(bare, system) == bare.argv
    words = sandbox.laid(sandbox.around(bare, Limits()), system)
    if system != "linux":
        assert words == bare.argv
    else:
        python = program if program.startswith("python") else sys.executable
        assert words[:3] == (python, "-I", str(sandbox.LAYER)) and words[-2:] == bare.argv and json.loads(words[3])["write"] == []


@pytest.mark.parametrize(
    ("words", "memory", "cause"),
    [
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 4 GiB", 2_000_000_000, "more than the 2.0 GB of memory"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", 900_000_000, "more than the 900.0 MB"),
        ("MemoryError", 0, ""),
        ("KeyError: 'x'", 1, ""),
    ],
)
def test_want_of_memory_names_the_limit(words: str, memory: int, cause: str) -> None:
    found, hint = sandbox.starved(words, memory)
    assert cause in found and bool(found) == bool(cause) and ("ORCHESTRATE_LIMIT_MEMORY" in hint) == bool(cause)
    assert not cause or quantize.explain(words, memory)[0] == f"{found}: "


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("PermissionError: [Errno 13] Permission denied: '/home/u/.ssh/id'", "/home/u/.ssh/id may not be read"),
        ("PermissionError: [Errno 13] Permission denied\n", "asked for the network"),
        ("OSError: [Errno 7] Landlock: Argument list too long", "refused to fence the converter in (Argument list too long)"),
    ],
)
def test_what_the_fence_refuses_is_explained(words: str, cause: str) -> None:
    assert cause in failures.explain(words)[0]


def test_a_kernel_is_described_as_it_is() -> None:
    assert "own folders only (Landlock 7), no network (seccomp)" in sandbox.said(7, True)
    assert (
        "no TCP" in sandbox.said(4, False) and "no Landlock" in sandbox.said(0, True) and "if it asked" in sandbox.said(0, False)
    )


ATTEMPT = """
import os, socket, sys, tempfile
def attempt(name, act):
    try:
        act()
        print(name, "done", flush=True)
    except OSError as error:
        print(name, type(error).__name__, flush=True)
secret, own = sys.argv[1:3]
attempt("read own", lambda: open(os.path.join(own, "given")).read())
attempt("write own", lambda: open(os.path.join(own, "made"), "w").close())
attempt("temporary", lambda: tempfile.TemporaryFile().close())
attempt("read secret", lambda: open(os.path.join(secret, "token")).read())
attempt("list secret", lambda: os.listdir(secret))
attempt("write beside", lambda: open(os.path.join(secret, "made"), "w").close())
attempt("truncate beside", lambda: os.truncate(os.path.join(secret, "token"), 0))
attempt("remove beside", lambda: os.remove(os.path.join(secret, "token")))
attempt("link out", lambda: os.symlink(secret, os.path.join(own, "link")))
attempt("environment", lambda: open(f"/proc/{os.getppid()}/environ").read())
attempt("terminal", lambda: open("/dev/tty").close())
attempt("signal", lambda: os.kill(int(sys.argv[3]), 0))
attempt("network", lambda: socket.socket())
attempt("service", lambda: socket.socket(socket.AF_UNIX))
"""
KEPT_IN = {
    "read own": "done",
    "write own": "done",
    "temporary": "done",
    "read secret": "PermissionError",
    "list secret": "PermissionError",
    "write beside": "PermissionError",
    "truncate beside": "PermissionError",
    "remove beside": "PermissionError",
    "link out": "PermissionError",
    "environment": "PermissionError",
    "terminal": "PermissionError",
    "signal": "PermissionError",
}
OFF_LINE = {"network": "PermissionError", "service": "PermissionError"}


@pytest.fixture
def asked(tmp_path: Path) -> Command:
    """A script that tries what it should not, in a fence of its own folder."""
    own, secret = tmp_path / "own", tmp_path / "secret"
    own.mkdir()
    secret.mkdir()
    (own / "given").touch()
    (secret / "token").write_text("s3cret", encoding="utf-8")
    (tmp_path / "tree").mkdir()
    script = tmp_path / "tree" / "attempt.py"
    script.write_text(ATTEMPT, encoding="utf-8")
    command = Command((sys.executable, str(script), str(secret), str(own), str(os.getpid())), cwd=str(own), env=clean_env())
    laid = sandbox.around(command, Limits(), write=(own,)).fence
    assert laid
    outside = tuple(path for path in laid.read if path != str(secret))
    return Command(command.argv, command.cwd, command.env, Fence(read=outside, write=laid.write))


def results(log: Path) -> dict[str, str]:
    lines = log.read_text(encoding="utf-8").splitlines()
    return {name: end for name, _, end in (line.rpartition(" ") for line in lines if not line.startswith("$"))}


@landlock
@seccomp
@pytest.mark.parametrize("forked", [False, True], ids=["a process of its own", "a fork of the warm interpreter"])
def test_what_a_program_in_the_fence_can_still_do(asked: Command, tmp_path: Path, forked: bool) -> None:
    log = tmp_path / "log"
    if forked:
        warm = Warm(sys.executable, tmp_path / "tree", clean_env(), tmp_path / "converter.log", [Path(asked.argv[1])])
        try:
            warm.convert(asked, log, lambda text: None)
        finally:
            warm.close()
    else:
        process.stream(asked, log)
    assert results(log) == KEPT_IN | OFF_LINE
    assert (tmp_path / "secret" / "token").read_text(encoding="utf-8") == "s3cret"


@landlock
def test_a_fence_that_the_kernel_refuses_is_no_reason_to_go_on_without(asked: Command, tmp_path: Path) -> None:
    # Sixteen fences are the most that a kernel puts around one program.
    again = [sys.executable, "-I", str(sandbox.LAYER), '{"read": [], "write": [], "memory": 0}'] * 16
    command = Command((*again, *sandbox.laid(asked, "linux")), asked.cwd, asked.env)
    with pytest.raises(CommandFailed, match="refused to fence"):
        warm_worker.run_alone(command, tmp_path / "log", lambda text: None)
    assert not results(tmp_path / "log").keys() & KEPT_IN.keys()


def script(tmp_path: Path, text: str, limits: Limits) -> Command:
    (tmp_path / "s.py").write_text(text, encoding="utf-8")
    command = Command((sys.executable, str(tmp_path / "s.py")), cwd=str(tmp_path), env=clean_env())
    return sandbox.around(command, limits, write=(tmp_path,))


@linux
@pytest.mark.parametrize("forked", [False, True], ids=["alone", "forked"])
@pytest.mark.parametrize(
    ("text", "limits", "said", "variable"),
    [
        ("held = bytearray(2 << 30)", Limits(memory=512 * MEGABYTE), "more than the 536.9 MB of memory", "LIMIT_MEMORY"),
        ("import time\ntime.sleep(60)", Limits(seconds=0.5), "took longer than", "LIMIT_MINUTES"),
    ],
    ids=["memory", "time"],
)
def test_a_limit_that_is_met_is_named(text: str, limits: Limits, said: str, variable: str, forked: bool, tmp_path: Path) -> None:
    command, log = script(tmp_path, text, limits), tmp_path / "log"
    warm = Warm(sys.executable, tmp_path, clean_env(), tmp_path / "converter.log", [tmp_path / "s.py"])
    run: Callable[..., Any] = warm.convert if forked else warm_worker.run_alone
    try:
        with pytest.raises(CommandFailed, match=said) as caught:
            run(command, log, lambda text: None)
    finally:
        warm.close()
    assert variable in caught.value.hint


@linux
def test_doctor_says_what_fence_there_is(orchestrate: Callable[..., Answer]) -> None:
    lines = orchestrate("doctor").out.splitlines()
    (line,) = [line for line in lines if line.split()[1] == "fence"]
    assert line.startswith("ok") and ("Landlock" in line) and "none of your tokens" in line


@landlock
@seccomp
def test_code_that_a_model_brings_stays_in_the_fence_when_it_may_run(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path], world: Path, shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = copy("tiny-llama")
    (model / "tokenizer.model").unlink()
    makers.edit(model / "config.json", architectures=["LLaDAModelLM"], auto_map=makers.OWN_CODE)
    makers.edit(model / "tokenizer_config.json", auto_map=makers.OWN_CODE)
    makers.bring_code(model, world / "MARK")
    answer = orchestrate("run", job({"source": "./model", "outtype": "f16", "trust_remote_code": True}))
    assert answer.code == 1 and not (world / "MARK").exists()
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in (shared_cache / "logs").rglob("*.log")]
    said = [line for text in logs for line in text.splitlines() if line.startswith("own code: ")]
    assert said and set(said) == {"own code: PermissionError"}
