"""github.com on this machine, with whole trees of llama.cpp under their tags, and a count of what it sends."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.environment.requirements import upstream_requirements
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.system import settings
from tests.bench.relay import Counted
from tests.bench.relay import relay
from tests.support import TAG
from tests.support.scratch import Failed
from tests.support.stage.github import GitHub
from tests.support.stage.github import git

# The tag of all rows comes last; before it, tags whose requirements are the same.
TAGS = ("b11382", "b11393", "b11401", TAG)
PLACE = "ggml-org/llama.cpp"


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """The server, where it is called, and the bytes that it has sent."""

    url: str
    server: GitHub
    counted: Counted


@contextlib.contextmanager
def upstream(scratch: Path) -> Iterator[Upstream]:
    """The server as long as the block runs."""
    with GitHub(repository(scratch)) as server, relay(server.server_address[1]) as counted:
        server.url = f"http://127.0.0.1:{counted.port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield Upstream(url=server.url, server=server, counted=counted)
        server.shutdown()


@functools.cache
def repository(scratch: Path) -> Path:
    """The folder of a repository like upstream's: a commit for each tag, packed as a server would."""
    root, known = scratch / "git", settings.load(os.environ)
    place = root / PLACE
    place.mkdir(parents=True)
    git("init", "-q", "-b", "master", at=place)
    git("config", "uploadpack.allowFilter", "true", at=place)
    wanted = set()
    for tag in TAGS:
        # Put aside, not deleted: ext4 looks for minutes at every inode that was freed before it takes another, and what makes
        # thousands of files then would be measured with that.
        aside = scratch / "before" / tag
        aside.mkdir(parents=True)
        for old in [path for path in place.iterdir() if path.name != ".git"]:
            old.rename(aside / old.name)
        fresh = scratch / "tree"
        fresh.mkdir()
        pypi.checkout("", tag, pypi.find(tag, known)[0], fresh, known, lambda text: None, everything=True)
        wanted.add(upstream_requirements(fresh))
        for path in fresh.iterdir():
            shutil.move(path, place / path.name)
        fresh.rmdir()
        for words in (("add", "-A", "-f"), ("commit", "-q", "-m", tag), ("tag", tag)):
            git(*words, at=place)
    git("repack", "-a", "-q", at=place)
    if len(wanted) > 1:
        raise Failed(f"the tags {', '.join(TAGS)} have requirements that differ")
    return root
