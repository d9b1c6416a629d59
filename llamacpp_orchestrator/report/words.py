"""Texts for the page: nothing in them that a screen obeys, no login, and no folder of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

from llamacpp_orchestrator.console import plain_text
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.models import hub_cache
from llamacpp_orchestrator.pipeline import receipt_words
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.diagnose import PROGRESS

LAST_LINES = 20
# The folders of a path from the root of a disk or a server, for a path that no known place stands for.
FOLDERS = re.compile(r"(?:file:///?|(?<![\w/.~}\\])(?:\b[A-Za-z]:[\\/]|\\\\|/(?!/)))(?:[^\s\\/:;,='\"`<>|()\[\]]+[\\/])+")
# Numbers that a program writes one behind the other while it counts: "[1]4.2,[2]4.3,"
COUNTED = re.compile(r"(?:\[\d+\]-?[\d.naif]+,?\s*)+")


def cleaner(context: Context) -> Callable[[str], str]:
    """How a text is made fit for the page of a job: known folders get their names, of all others the last part stays."""
    folders = {folder: folder.name for folder in local_folders.local_folders(context).values()}
    folders |= {context.folder(context.job.output): context.address or "{output}", hub_cache.cache_folder(): "{hub}"}
    places = {spelling: name for folder, name in folders.items() for spelling in {str(folder), os.path.realpath(folder)}}
    longest_first = sorted(places.items(), key=lambda item: -len(item[0]))

    def clean(text: str) -> str:
        for place, name in longest_first:
            text = text.replace(place, name) if len(place) > 1 else text
        return FOLDERS.sub("…/", receipt_words.placeless(context, plain_text(text)))

    return clean


def end_of(lines: Iterable[str]) -> tuple[str, ...]:
    """The last lines of a log that say something: neither progress nor blank."""
    telling = [line for line in lines if line.strip() and not PROGRESS.search(line) and not COUNTED.fullmatch(line)]
    return tuple(telling[-LAST_LINES:])


def lines_of(log: Path) -> list[str]:
    """The lines at the end of a log, each as it was drawn last; none where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return process.drawn(text)
