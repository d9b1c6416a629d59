"""A Dask cluster on loopback: a scheduler and workers that are processes of their own, as people start them by hand."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support import ROOT
from tests.support import disks

HIDING = """
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mount -t tmpfs tmpfs "$1"; else mount --bind /dev/null "$1"; fi
  shift
done
shift
exec "$@"
"""


def can_hide() -> bool:
    """Whether a program can be started here to which folders are empty."""
    return disks.possible() and shutil.which("unshare") is not None


def _without(hidden: Iterable[Path]) -> list[str]:
    """The words that start a program to which some folders and files are empty, as on another machine."""
    places = list(map(str, hidden))
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", HIDING, "sh", *places, "--"] if places else []


class Cluster:
    """A scheduler and its workers, by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "scheduler.json"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1", "--scheduler-file", str(self.place))
        while not self.place.exists():
            assert self.scheduler.poll() is None, (folder / "scheduler.log").read_text()
            time.sleep(0.05)

    def _start(self, what: str, *words: str, name: str = "", hidden: Iterable[Path] = (), **env: str) -> subprocess.Popen[bytes]:
        program = f"distributed.cli.dask_{what}"
        argv = [*_without(hidden), sys.executable, "-m", program, "--no-dashboard", *words]
        with (self.folder / f"{name or what}.log").open("wb") as log:
            return subprocess.Popen(
                argv,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s", **env},
            )

    def join(self, name: str, *words: str, hidden: Iterable[Path] = (), **env: str) -> None:
        """Start a worker without a nanny, so that it dies with its process; what is `hidden` is empty to it."""
        how = ("--scheduler-file", str(self.place), "--name", name, "--nthreads", "1", "--no-nanny", *words)
        self.workers[name] = self._start("worker", *how, name=name, hidden=hidden, **env)

    def children(self, name: str) -> list[Any]:
        """The programs of ours that a worker runs."""
        found = []
        for child in psutil.Process(self.workers[name].pid).children(recursive=True):
            with suppress(psutil.Error):  # it ends just now
                found += [child] if child.cmdline()[-2:] == ["llamacpp_orchestrator", "work"] else []
        return found

    def kill(self, name: str) -> None:
        """End a worker as a machine that is switched off."""
        self.workers.pop(name).send_signal(signal.SIGKILL)

    def close(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()
