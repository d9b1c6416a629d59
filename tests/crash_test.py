"""A run that is killed at two of the moments that `make crash` takes sixty of: the next one ends well, with the same bytes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer
from tests.crash import kills
from tests.crash import world as worlds
from tests.crash.remains import remains
from tests.crash.scene import Scene
from tests.crash.scene import scene
from tests.crash.world import World

COUNT, SEED = 2, 11


@pytest.fixture
def place(
    world: Path, shared_cache: Path, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> Callable[[Scene], World]:
    """A cold world with the session's tree and environment in it, for what is killed here comes after them."""
    asked = job({"source": str(data / "tiny-llama"), "outtype": "f16"}, name="first.yaml", binaries={"backend": "none"})
    assert orchestrate("setup", asked).code == 0
    (shared_cache / "home").mkdir(exist_ok=True)

    def make(here: Scene) -> World:
        for kind in ("source", "environments", "home"):
            (here.scratch / "lane" / "cache" / kind).unlink(missing_ok=True)
        made = worlds.make(here, "lane", "pypi")
        for kind in ("source", "environments", "home"):
            (made.cache / kind).symlink_to(shared_cache / kind)
        return made

    return make


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_after_a_kill_the_next_run_makes_the_same_bytes_and_leaves_nothing(
    place: Callable[[Scene], World], data: Path, tmp_path: Path
) -> None:
    with scene(tmp_path, data, programs=False) as here:
        undisturbed = place(here)
        ended = undisturbed.run()
        assert ended.code == 0, ended.said
        sums = undisturbed.sums()
        assert len(sums) == 3 and remains(undisturbed) == []
        chosen = kills.moments(ended.said.splitlines(), ended.seconds, 60)
        struck = 0
        for moment in random.Random(SEED).sample(chosen, COUNT):
            killed, complaints = kills.survived(place(here), moment, sums)
            assert complaints == [], str(moment)
            struck += killed
        assert struck >= COUNT // 2
