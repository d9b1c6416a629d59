"""What can go wrong, in the words that the user reads.

OrchestrateError
├── JobError          the job file or the command line is wrong (exit 2)
├── LockError         the lock is absent, damaged or does not fit the job (exit 3)
├── NetworkError      a server could not be reached, refused, or sent something else
├── IntegrityError    bytes are not the bytes that were promised
└── CommandFailed     a child process ended badly

Stopped               a signal asked us to end (exit 128 + its number); no failure, so that nothing that survives one swallows it
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LOGIN = re.compile(r"(?<=://)[^\s/?#]*@")
HOST = re.compile(r"(\[[\w:.%]*\]|[\w.~-]*)(:\d{0,5})?")  # as it stands in a URL that is one
LONGEST_LINE = 700  # a name or value out of a stranger's file may be of any length
NO_LOCKS = "the cache's disk has no locks, as some network disks: choose a folder on another one (ORCHESTRATE_CACHE_DIR)"
FULL = "free some space, or move the cache (ORCHESTRATE_CACHE_DIR), the models (HF_HOME) or the `output` folder"


class OrchestrateError(Exception):
    """An expected failure: what happened, what to do about it, and the exit code it means."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "", log: Path | None = None) -> None:
        super().__init__(masked(message))
        self.message = masked(message)
        self.hint = masked(hint)
        self.log = log
        self.others: tuple[OrchestrateError, ...] = ()

    def lines(self) -> list[str]:
        """The failure as the lines that are shown, without a prefix for the first."""
        shown = ["\n".join(map(_cut, self.message.split("\n")))]
        shown += [_cut(f"hint: {self.hint}")] if self.hint else []
        return shown + ([f"log: {self.log}"] if self.log else [])


def quoted(text: object, most: int = 200) -> str:
    """A word out of a stranger's file for a message: in one line, not too long, nothing in it that a terminal obeys."""
    word = str(text)
    shown = repr(word[:most])[1:-1] if not word.isprintable() else word[:most]
    return f"{shown}..." if len(word) > most else shown


def masked(text: str) -> str:
    """A text in which no URL has a login."""
    return LOGIN.sub("", text)


def anonymous(url: str) -> str:
    """A URL for messages, however wrong it is: without a login and without the query, which may be a signature."""
    scheme, found, rest = url.partition("://")
    if not found:
        before, _, after = url.rpartition("@")
        return after if ":" in before else url
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    shown = host + rest[len(authority) :]
    if not HOST.fullmatch(host):
        # A password with a sign in it that ends a host: all up to the last @ is taken for the login, or for one that was cut.
        shown = rest.rpartition("@")[2] if "@" in rest else re.sub(r"^([^/:]*):[^/]*", r"\1:...", rest)
    return f"{scheme}://" + re.split("[?#]", shown, maxsplit=1)[0]


def _cut(line: str) -> str:
    """A line without its middle where it is too long to be read."""
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


class JobError(OrchestrateError):
    """The job file or the command line asks for something that cannot be."""

    exit_code = 2


class LockError(OrchestrateError):
    """The lock is absent, damaged or does not fit."""

    exit_code = 3


class NetworkError(OrchestrateError):
    """A server could not be reached, or answered with a refusal; `status` is its HTTP status, 0 without one."""

    def __init__(self, message: str, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint)
        self.status = status


class IntegrityError(OrchestrateError):
    """Bytes differ from what was promised; both sides are in the message."""


class CommandFailed(OrchestrateError):
    """A child process ended with a code other than 0; `tail` holds its last lines."""

    def __init__(self, message: str, *, code: int, tail: str = "", hint: str = "", log: Path | None = None) -> None:
        super().__init__(message, hint, log)
        self.code = code
        self.tail = tail

    def retold(self, message: str, hint: str, log: Path | None = None) -> CommandFailed:
        """The same failure in the words of whoever knows what it means."""
        return CommandFailed(message, code=self.code, tail=self.tail, hint=hint, log=log or self.log)


class Stopped(BaseException):
    """A signal asked us to end; everything made halfway has been cleaned up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("stopped; run the same command again to go on")
        self.exit_code = 128 + signal_number


def of_system(error: Exception) -> OrchestrateError | None:
    """What the system refused, in our words; None for what it did not, as an OSError that a library made up: it has no number."""
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and encoding.lower() not in ("utf-8", "utf8"):
        message = f"{ascii(error.object)[:100]}: the character set of this terminal ({encoding}) cannot express it"
        return JobError(message, "set LC_ALL=C.UTF-8, or another that ends with UTF-8, and run the same command again")
    if isinstance(error, UnicodeEncodeError) and re.search("[\ud800-\udfff]", error.object):
        message = f"{quoted(error.object)}: the name of a file or folder is not in UTF-8"
        return OrchestrateError(message, "rename it, for locks, logs and receipts could not name it, or go by another path")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno == errno.ENOENT and not error.filename:  # only the current folder is asked for without its name
        return OrchestrateError("the current folder is gone", "change to one that is there: cd ~")
    where = f"{error.filename}: " if error.filename else ""
    hints = {
        errno.ENOSPC: FULL,
        getattr(errno, "EDQUOT", errno.ENOSPC): FULL,
        errno.EROFS: "its disk cannot be written to; choose another folder",
        errno.EACCES: "check the rights of the folder and of what lies in it: who made it?",
        errno.EPERM: "check the rights of the folder and of what lies in it: who made it?",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.ENOTDIR: "a part of this path is a file, not a folder",
        errno.EMFILE: "too many files are open at once: use --jobs 1, or raise the limit (ulimit -n)",
        errno.ENOLCK: NO_LOCKS,
        errno.EOPNOTSUPP: NO_LOCKS,
        errno.EIO: "is the disk failing, or was it taken away?",
    }
    hint = hints.get(error.errno, "if this makes no sense to you, run it again with --verbose and report both")
    return OrchestrateError(f"{where}{(error.strerror or str(error)).lower()}", hint)


def of_python_path(error: Exception) -> OrchestrateError | None:
    """What to say of a bug where PYTHONPATH, or the folder of `python -m`, has a module by the name of one that we need."""
    import traceback
    from importlib.machinery import PathFinder
    from pathlib import Path

    own = str(Path(__file__).parents[1])
    try:
        folders = [os.path.abspath(folder) for folder in (*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path[:1])]
    except FileNotFoundError:  # the current folder is gone
        return None
    theirs = [folder for folder in folders if folder != own]
    rest = [folder for folder in sys.path if os.path.abspath(folder) not in theirs]
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    files += filter(None, (getattr(module, "__file__", None) for module in tuple(sys.modules.values())))
    for file, folder in ((Path(file), folder) for file in files for folder in theirs if Path(file).is_relative_to(folder)):
        name = file.relative_to(folder).parts[0].removesuffix(".py")
        if name in sys.stdlib_module_names or (name.isidentifier() and PathFinder.find_spec(name, rest)):
            message = f"Python takes the module {name} from {file}, not the one that orchestrate needs ({quoted(error)})"
            way = "start it in another folder, or without PYTHONPATH; if it fails there too, please report what it says then"
            return OrchestrateError(message, way)
    return None


def first(errors: Sequence[OrchestrateError]) -> OrchestrateError:
    """The first of the failures of one run, with the others behind it; what steps have failed of alike is told once."""
    errors[0].others = tuple(
        {tuple(error.lines()): error for error in reversed(errors) if error.lines() != errors[0].lines()}.values()
    )[::-1]
    return errors[0]
