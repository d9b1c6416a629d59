"""The folder that a converter is shown of a model: its own files, linked under the model's name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models.selection import HubFile
from llamacpp_orchestrator.models.selection import check_names


def make_view(files: Iterable[HubFile], origin: Path, dest: Path) -> None:
    """Make a folder that holds links to some files and nothing else; a copy only where a disk has no links at all."""
    import shutil

    files = tuple(files)
    check_names((file.path for file in files), str(origin))
    for file in files:
        target, link = (origin / file.path).resolve(), dest / file.path
        if not target.is_file():
            raise OrchestrateError(f"{origin / file.path} is gone", "run the same command again")
        link.parent.mkdir(parents=True, exist_ok=True)
        for way in (os.symlink, os.link, shutil.copyfile):
            try:
                way(target, link)
                break
            except OSError:
                if way is shutil.copyfile:
                    raise
