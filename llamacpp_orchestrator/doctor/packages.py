"""What a job asks of uv: packages of an index, and an interpreter, which is on this machine or would have to be fetched."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import msgspec

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import uv_call
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.environment import wheels
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.environment.python_version import MINORS
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download

ASKED, TORCH = "numpy", "torch"  # every environment has them
UV_SECONDS = 60.0
BASE = "import sys; print(sys._base_executable)"
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
AT_HAND = RUNNING if RUNNING in MINORS else MINORS[0]  # the Python that an environment gets where its pins leave the choice
INSTALL = "install Python {minor}, or set `environment.python` to one that is here"


def resolved(url: str, settings: Settings) -> str:
    """What uv takes of one index, asked with a job's options and settings, but from no cache; CommandFailed in uv's words."""
    index = msgspec.structs.replace(settings.index, index_urls=(url,))
    try:
        text = _compiled((ASKED,), AT_HAND, index, "--no-deps", "--no-cache")
    except CommandFailed as error:
        raise indexes.failed(error, f"{anonymous(url)}: uv cannot take {ASKED} from it", "") from error
    version = re.search(rf"^{ASKED}==(\S+)", text, re.MULTILINE)
    return f"{anonymous(url)}: uv takes {ASKED} {version[1] if version else ''}; {_data(url)}"


def _compiled(lines: tuple[str, ...], minor: str, index: Index, *options: str) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        needed = Path(scratch) / "requirements.in"
        needed.write_text("\n".join(lines) + "\n", encoding="utf-8")
        argv = (indexes.uv(), *venv.COMPILE, "--no-build", "--python-version", minor, *options, str(needed))
        # A job tries again for longer; here somebody waits for the answer.
        env = {"UV_HTTP_RETRIES": "0"} | dict(indexes.uv_env(index, None))
        return uv_call.answer(Command(argv, cwd=scratch, env=tuple(env.items())), UV_SECONDS)


def torch(url: str, wanted: str, minor: str, settings: Settings) -> str:
    """From where a torch without CUDA comes: PyTorch's own index, else the package index where that has one.

    `wanted` is a line of requirements. NetworkError where neither has it: a job refuses then, rather than to take gigabytes
    that nobody asked for.
    """
    try:
        return listed(url, TORCH)
    except NetworkError as error:
        with contextlib.suppress(CommandFailed):
            if not wheels.brings_cuda(_compiled((wanted,), minor, settings.index), wheels.here(), minor):
                return f"{error.message}; the package index has {TORCH} without CUDA"
        raise


def _data(url: str) -> str:
    """From where the files themselves come, as far as we are told: uv alone has to reach them."""
    if url.startswith("file:"):
        return "a folder"
    with contextlib.suppress(OrchestrateError):
        return listed(url, ASKED).partition(": ")[2]
    return "its files are left to uv"


def listed(url: str, project: str) -> str:
    """From where the data of an index's project come; NetworkError where there are none."""
    if url.startswith("file:"):
        return f"{url} is a folder"
    files = pypi.files(url, project)
    if not files:
        raise NetworkError(f"{anonymous(url)} lists no file of {project}")
    return f"{anonymous(url)}: {project}, data from {download.probe(files[-1].url)}"


def interpreter(minor: str, settings: Settings) -> str:
    """Where the Python of an environment comes from, tried as a job makes one; OrchestrateError where it cannot be had."""
    env = indexes.uv_env(settings.index, None)
    base = sys.executable if minor == RUNNING else minor
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "venv"
        argv = (indexes.uv(), "venv", "--no-config", "--no-project", "--no-python-downloads", "--python", base, str(made))
        try:
            process.capture(Command(argv, cwd=scratch, env=env), UV_SECONDS)
            said = process.capture(Command((str(python_in(made)), "-I", "-c", BASE), env=env))
            return f"Python {minor} of this machine: {said.strip()}"
        except CommandFailed as error:
            if "No interpreter found" not in error.tail:
                hint = INSTALL.format(minor=minor)
                raise indexes.failed(error, f"no environment can be made with Python {minor}", hint) from error
    return _fetched(minor, env)


def _fetched(minor: str, env: tuple[tuple[str, str], ...]) -> str:
    url = _address(minor, env)
    if os.environ.get("UV_PYTHON_DOWNLOADS", "").lower() in ("never", "false", "0") or os.environ.get("UV_OFFLINE"):
        said = f"Python {minor} is not on this machine, and UV_PYTHON_DOWNLOADS or UV_OFFLINE keeps uv from fetching it"
        raise OrchestrateError(said, INSTALL.format(minor=minor))
    if not url:
        raise OrchestrateError(f"Python {minor} is not on this machine, and uv has none for it", INSTALL.format(minor=minor))
    try:
        return f"Python {minor} is not on this machine; uv fetches it from {download.probe(url)}"
    except NetworkError as error:
        said = f"Python {minor} is not on this machine, and uv cannot fetch it: {error.message}"
        failure = NetworkError(said, f"{INSTALL.format(minor=minor)}, or a mirror (UV_PYTHON_INSTALL_MIRROR)", error.status)
        raise failure from error


def _address(minor: str, env: tuple[tuple[str, str], ...]) -> str:
    argv = (indexes.uv(), "python", "list", "--no-config", "--only-downloads", "--show-urls", "--output-format", "json", minor)
    entries = json.loads(process.capture(Command(argv, env=env), UV_SECONDS) or "[]")
    return next((str(entry["url"]) for entry in entries if entry.get("implementation") == "cpython" and entry.get("url")), "")


def cache(settings: Settings) -> Path:
    """Where uv keeps what it downloads."""
    argv = (indexes.uv(), "cache", "dir", "--no-config")
    return Path(process.capture(Command(argv, env=indexes.uv_env(settings.index, None))).strip())


def own(path: Path, file: Path) -> str:
    """What is said of an environment that the user names, once it has what a job needs; JobError where it has not."""
    python = venv.own(path, file)
    version = process.capture(Command((str(python), "--version"), env=clean_env())).strip()
    return f"{version} in {path}, as the job says"
