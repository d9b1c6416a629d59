"""The trial start: whether the programs of a release can run on this machine, and why they cannot."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from pathlib import Path

from llamacpp_orchestrator.binaries.install import any_tool
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.meanings import first
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.host import Host

BUILD = "set `binaries.backend: source` to build it for this system"
OTHER = f"take another tag, or {BUILD}"
MACHINES = {3: "x86", 40: "arm", 62: "x64", 183: "arm64", 243: "riscv64"}  # in an ELF header


def probe(root: Path, host: Host) -> str:
    """Start a program of the archive and return what it calls its version; OrchestrateError says why it cannot start."""
    tool = any_tool(root, host.system)
    paths = os.pathsep.join(filter(None, (str(tool.parent), os.environ.get("LD_LIBRARY_PATH", ""))))
    lines: list[str] = []
    if sys.platform == "win32":
        ctypes.windll.kernel32.SetErrorMode(0x8003)  # no dialog that waits for a click when a DLL is missing
    try:
        with tempfile.TemporaryDirectory() as scratch:
            command = Command((str(tool), "--version"), env=clean_env(LD_LIBRARY_PATH=paths))
            process.stream(command, Path(scratch) / "log", lines.append)
    except CommandFailed as error:
        # Old programs do not know --version and show their usage: they started, which is what is asked.
        if not re.search(r"usage|unknown argument|invalid argument", "\n".join(lines)):
            raise _cannot_start(tool, error, lines, host) from error
    return next((line for line in lines if re.match(r"(llama\S* )?version", line)), tool.stem)


def _cannot_start(tool: Path, error: CommandFailed, lines: list[str], host: Host) -> OrchestrateError:
    said, begins = "\n".join([error.message, *lines]), _beginning(tool)
    loader = re.search(rb"(?:^#!|\0)(/[\w./+-]*)(?=[\0\s])", begins)
    machine = MACHINES.get(int.from_bytes(begins[18:20], "little")) if begins.startswith(b"\x7fELF") else None
    known = {"processor": f" ({machine})" if machine else "", "loader": f" {loader[1].decode()}" if loader else ""}
    row, detail = first(said, (*table("system", "programs"), *table("binaries", "start", BUILD=BUILD))) or (None, "")
    if row:
        why, hint = row.cause(detail, libc=host.libc, arch=host.arch, owner="its", **known), row.way
        if detail and (tool.parent / detail.rpartition("/")[2]).is_symlink():
            why, hint = f"the archive's own {detail} is a link to nothing", OTHER
        return OrchestrateError(f"{tool.name} cannot start: {why}", hint)
    # Its last line is the reason, as a rule; a page of usage would hide what to do.
    why = ": ".join(dict.fromkeys(line for line in (error.message.splitlines()[0], *lines[-1:]) if line.strip()))
    return OrchestrateError(f"{tool.name} cannot start: {why}", OTHER)


def _beginning(tool: Path) -> bytes:
    with tool.open("rb") as file:
        return file.read(4096)
