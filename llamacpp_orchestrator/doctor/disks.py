"""The folders of a job as it uses them: what their disks refuse, what others have made there, and whether there is room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from llamacpp_orchestrator.doctor import causes
from llamacpp_orchestrator.doctor.records import Line
from llamacpp_orchestrator.doctor.records import problem
from llamacpp_orchestrator.system import disk_trial
from llamacpp_orchestrator.system.disk import existing
from llamacpp_orchestrator.system.disk_trial import Refusal
from llamacpp_orchestrator.util.units import size

ROOM = 2_000_000_000
FAT = ("vfat", "msdos", "fat", "fat32")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that a job uses: whether programs or links are kept there, how much it may come to hold, and the way elsewhere.

    What is `inner`, the folders of a cache, must be open to us too.
    """

    name: str
    folder: Path
    way: str
    room: int = ROOM
    programs: bool = False
    links: bool = False
    inner: bool = False
    needed: bool = True


def examine(place: Place) -> tuple[Line, ...]:
    """What would go wrong in a folder, which need not be there yet; one line of what it is where nothing would."""
    try:
        root = existing(place.folder)
        free, disk = shutil.disk_usage(root).free, disk_trial.kind(root)
        refusals = disk_trial.tried(place.folder, programs=place.programs, links=place.links, locks=True)
        refusals += [*_small(place, free), *(_foreign(place) if place.inner else ())]
    except OSError as error:
        said = f"{place.folder} cannot be written to: {disk_trial.words(error)}"
        return (problem(place.name, causes.of(error) or "disk", said, place.way, place.needed),)
    notes = [f"{size(free)} free", *(["no file of 4 GiB or more goes there"] if disk.lower() in FAT else [])]
    said = f"{place.folder}{f' ({disk})' if disk else ''}, {', '.join(notes)}"
    fine = Line(name=place.name, ok=True, said=said, needed=place.needed)
    return tuple(problem(place.name, one.cause, one.said, place.way, place.needed) for one in refusals) or (fine,)


def _small(place: Place, free: int) -> list[Refusal]:
    words = f"{place.folder}: {size(free)} free, and a job takes {size(place.room)} or more"
    return [Refusal("space", words)] if free <= place.room else []


def _foreign(place: Place) -> list[Refusal]:
    """What another user has made inside, as a job that once ran with sudo."""
    inside = [path for path in sorted(place.folder.iterdir()) if path.is_dir()] if place.folder.is_dir() else []
    closed = [path for path in inside if not os.access(path, os.W_OK | os.X_OK)]
    return [Refusal("rights", f"{closed[0]} is not yours to write to: who made it?")] if closed else []
