"""Files that stand for content that git has not fetched: pointers of Git LFS and git-annex, and links into nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/"
ANNEX = b"/annex/objects/"
PULL = "run `git lfs pull` in its repository, or name the hub id instead of the folder"
GET = "run `git annex get .` in its folder"
LARGEST = 1024  # bytes; a pointer of either kind is smaller
SHOWN = 3


def kind(path: Path) -> tuple[str, str]:
    """What a file is instead of its content, and what fetches that; ("", "") for a file that is what it is called."""
    if path.is_symlink() and not path.exists():
        target = path.readlink().as_posix()
        annexed = "a git-annex link whose content is not here", GET
        other = f"a link to {target}, which is not there", "copy or download the folder again, with what its links name"
        return annexed if ANNEX.decode() in target else other
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return "", ""
        with path.open("rb") as file:
            head = file.read(len(LFS))
    except OSError:  # told where it is read
        return "", ""
    if head.startswith(LFS):
        return "a Git LFS pointer", PULL
    return ("a git-annex pointer", GET) if head.startswith(ANNEX) else ("", "")


def complaint(folder: Path, names: Iterable[str]) -> tuple[str, str]:
    """What is to be said of the files in a folder that are pointers, and what to do about the first; ("", "") for none."""
    kinds = {name: kind(folder / name) for name in names}
    pointers = {name: what for name, what in kinds.items() if what[0]}
    if not pointers:
        return "", ""
    names, (first, way) = list(pointers), next(iter(pointers.values()))
    more = f" (as are {', '.join(names[1 : SHOWN + 1])}{', ...' if len(names) > SHOWN + 1 else ''})" if names[1:] else ""
    return f"{folder / names[0]} is {first}, not the file itself{more}", way
