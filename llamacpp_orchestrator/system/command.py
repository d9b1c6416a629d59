"""A program call as a value, with its fence and limits, and the part of our environment that a child may see."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import msgspec

# What a child needs to find programs, libraries, certificates and a temporary folder. Everything else, tokens and
# cloud credentials before all, stays with us.
ALLOWED = frozenset(
    """
    PATH HOME USER LOGNAME LANG LC_ALL LC_CTYPE TZ TMPDIR TEMP TMP
    SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT USERPROFILE APPDATA LOCALAPPDATA PROGRAMDATA PROGRAMFILES
    NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE LD_LIBRARY_PATH SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
    CUDA_VISIBLE_DEVICES OMP_NUM_THREADS XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME
    """.split()  # noqa: SIM905 - a list of forty quoted words is harder to read
)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one program may take: bytes of memory of its own, and seconds; 0 is no limit."""

    memory: int = 0
    seconds: float = 0.0


UNLIMITED = Limits()


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """What a program may touch: the paths that it may read, the folders that it may write to as well, and its limits."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    memory: int = 0
    seconds: float = 0.0


class Command(msgspec.Struct, frozen=True):
    """A program call as data; `env` is the whole environment it gets, `None` for `cwd` means ours, for `fence` none.

    The last `idle` words change nothing of what comes out.
    """

    argv: tuple[str, ...]
    cwd: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    fence: Fence | None = None
    idle: int = 0

    @property
    def deciding(self) -> tuple[str, ...]:
        """The words that decide what comes out."""
        return self.argv[: len(self.argv) - self.idle]

    def __str__(self) -> str:
        return _windows(self.argv) if os.name == "nt" else shlex.join(self.argv)


def clean_env(**extra: str) -> tuple[tuple[str, str], ...]:
    """The allowed part of our environment, with additions; names compare without case, as Windows does."""
    kept = {name: value for name, value in os.environ.items() if name.upper() in ALLOWED}
    return tuple(sorted({**kept, **extra}.items()))


def tool_env(tool: Path) -> tuple[tuple[str, str], ...]:
    """The environment of a released program; some eras find their libraries only when told where."""
    library_path = os.pathsep.join(filter(None, (str(tool.parent), os.environ.get("LD_LIBRARY_PATH", ""))))
    return clean_env(LD_LIBRARY_PATH=library_path)


def ours(command: str, file: Path, *options: str) -> str:
    """A command of ours about a file, for a hint: as one types it in the current folder."""
    return str(Command(("orchestrate", command, _near(file), *options)))


def _near(file: Path) -> str:
    try:
        near = min(os.path.relpath(file), str(file), key=len)
    except (OSError, ValueError):  # there is no current folder, or it is on another drive
        return str(file)
    return f"{os.curdir}{os.sep}{near}" if near.startswith("-") else near


def _windows(argv: tuple[str, ...]) -> str:
    import subprocess

    return subprocess.list2cmdline(argv)


def script_env(home: Path) -> tuple[tuple[str, str], ...]:
    """All that a converter may know: an allow-list of variables, a Hugging Face home without models, no network, UTF-8."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    # Compiling 2000 modules takes as long as loading them; uv installs without, and all 8000 would take longer than we save.
    # What is compiled lies apart: neither the tree nor an environment of the user's own is written to, and what somebody has
    # put beside the tree's files is not taken for them.
    python = {"PYTHONUTF8": "1", "PYTHONNOUSERSITE": "1", "PYTHONPYCACHEPREFIX": str(home / "bytecode")}
    python |= {"TOKENIZERS_PARALLELISM": "false"}
    return clean_env(HF_HOME=str(home), **offline, **python)
