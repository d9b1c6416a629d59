"""What a failed program's end tells: the line that says why, the row that explains it, and what the machine refused."""

from __future__ import annotations

import errno
import re

from llamacpp_orchestrator.errors import FULL

LONGEST = 300
Rows = tuple[tuple[str, str, str], ...]
# What a line says that tells of a failure; the traceback of one, and a summary of options, do so less.
TELLING = re.compile(r"(?i)\b(?:\w*error|\w*exception|fail\w*|fatal|abort\w*|cannot|could not|invalid|unknown|no such)\b")
KILLED = (-9, -15)
KILLED_HARD = (-9, 137)  # by the signal itself, or by a shell's or a container's word for it
PROGRESS = re.compile(r"\d+%\||^\[ *\d+/ *\d+\]|^\$ ")

MEMORY = "the system has likely run out of memory: close other programs, give the container more, or use --jobs 1"
OLD_PROCESSOR = "this processor lacks instructions that it uses: take a tag from b5276 on, or set `binaries.backend: source`"
SIGNALS = {
    4: OLD_PROCESSOR,
    7: f"a file that it reads was cut meanwhile, or a disk or /dev/shm is full: {FULL}",
    24: "a limit on processor time ended it: raise it (ulimit -t)",
    25: "a limit on the size of files ended it: raise it (ulimit -f)",
}
# llama.cpp's own libraries, as they are called on Linux and macOS; a system has none of them.
OWN = r"(?:[^\s:']*/)?(?:lib(?:llama|ggml|mtmd)[\w.-]*\.(?:so|dylib)[\w.]*)"
LATE = "took longer than"
INCOMPLETE = "orchestrate cache prune --kind binaries, then run again: it comes anew; if it stays so, take another tag"
NOEXEC = "the disk that it lies on lets nothing be executed (noexec), or a security module forbids it"
EXECUTES = "move the cache (ORCHESTRATE_CACHE_DIR) to a disk that may execute, or mount this one with `exec`"


def _numbered(*numbers: int) -> str:
    """The ways to say an error of the system's by its number: Python's, and that of uv and other programs in Rust."""
    return rf"\b(?:Errno|os error) (?:{'|'.join(map(str, numbers))})\b"


# What programs say of errors of the system's → what it means, and what to do. First match wins.
MACHINE: Rows = (
    (
        rf"No space left on device|{_numbered(errno.ENOSPC)}|(?:WinError|os error) (?:39|112)\b|not enough space on the disk"
        r"|OSError: \d+ requested and \d+ written",  # numpy's way to say it
        "the disk is full",
        FULL,
    ),
    (rf"[Qq]uota exceeded|{_numbered(getattr(errno, 'EDQUOT', errno.ENOSPC))}", "your quota on the disk is used up", FULL),
    (rf"Read-only file system|{_numbered(errno.EROFS)}", "the disk cannot be written to", "choose another folder"),
    (
        rf"File too large|{_numbered(errno.EFBIG)}",
        "the disk takes no file so large (FAT32 none over 4 GB), or a limit forbids it (ulimit -f)",
        "choose a folder on another disk",
    ),
    (
        rf"Too many open files|{_numbered(errno.EMFILE, errno.ENFILE)}",
        "too many files are open at once",
        "use --jobs 1, or raise the limit (ulimit -n)",
    ),
    (r"Input/output error", "a disk does not read or write as it should", "is it failing, or was it taken away?"),
    (
        rf"MemoryError|Unable to allocate|not enough memory|[Cc]an(?:'t|not) allocate memory|bad_alloc|{_numbered(errno.ENOMEM)}"
        r"|out of memory|Killed signal|cc1plus.*[Kk]illed",
        "the machine ran out of memory",
        "close other programs, or use --jobs 1",
    ),
    (r"failed to map segment|could not be started: Permission denied", NOEXEC, EXECUTES),
    (
        rf"({OWN}): cannot open shared object|Library not loaded: ({OWN})",
        "llama.cpp's own {0} is missing: the package is incomplete",
        INCOMPLETE,
    ),
    (
        r"([\w.+-]+\.so[\d.]*): cannot open shared object|Library not loaded: (\S+)",
        "the system's library {0} is missing",
        "install the package that has it (apt-file search, dnf provides or brew search know which)",
    ),
)


def point(said: str) -> str:
    """The one line of a program's last words that says most: the last that tells of a failure, or else the last at all."""
    lines = [" ".join(line.split()) for line in said.splitlines()]
    # torch advises to load pickles unsafely.
    lines = [line for line in lines if line and not PROGRESS.search(line) and "weights_only" not in line]
    told = [line for line in lines if TELLING.search(line)]
    line = (told or lines or [""])[-1]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def pointed(message: str, said: str, code: int = 1) -> str:
    """What happened, with the point of a program's last words behind it; one that was ended from outside had none to say."""
    words = point(said) if code not in KILLED else ""
    return f"{message}: {words}" if words else message


def matched(said: str, rows: Rows) -> tuple[str, str]:
    """The cause and the remedy of the first row whose pattern is found in a text; two empty texts without one."""
    return next((filled(match, *told) for pattern, *told in rows if (match := re.search(pattern, said))), ("", ""))


def filled(match: re.Match[str], cause: str, remedy: str) -> tuple[str, str]:
    """A row's cause with the first part in brackets that its pattern found, and its remedy."""
    detail = next((group for group in match.groups() if group), "")
    # Without the detail its brackets go too; and a list of all tensors is no detail.
    shown = cause.format(detail[:LONGEST]) if detail else re.sub(r" \(\{0\}.*?\)", "", cause)
    return shown.removesuffix(": {0}"), remedy


def machine(code: int, said: str) -> tuple[str, str]:
    """What the machine refused a program, and what to do: by its signal or exit code, then by the errors of the system.

    To be asked before any table of a program's own words. Of a signal the cause is empty, for `ended` has it in words already.
    """
    if LATE in said:  # then we have killed it
        return "", ""
    if code in KILLED_HARD:
        return "", MEMORY
    if code < 0 and (remedy := SIGNALS.get(-code)):
        return "", remedy
    return matched(said, MACHINE)
