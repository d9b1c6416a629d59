"""Equal jobs give equal bytes: whatever the route, the place, the user, the time or the order in which things happen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml

from llamacpp_orchestrator.environment import wheels
from llamacpp_orchestrator.lock import file as lock_file
from tests.support import NOWHERE
from tests.support import ROOT
from tests.support import TAG
from tests.support.answer import Answer
from tests.support.folders import sums
from tests.support.stage.github import GitHub
from tests.support.stage.hub import Hub


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to the same result: settings, options, where the model comes from, and whether all caches are new."""

    name: str
    source: str = "./tiny-llama"
    environ: dict[str, str] = {}
    options: tuple[str, ...] = ()
    fresh: bool = False


WAYS = (
    Way(name="git over http, a mirror of github.com", environ={"ORCHESTRATE_LLAMA_CPP_FROM": "git"}),
    Way(name="the package, one at a time, another hash seed", environ={"PYTHONHASHSEED": "1"}, options=("--jobs", "1")),
    Way(name="the hub through HF_ENDPOINT, another user", source="org/m", environ={"HOME": "{world}/somebody", "USER": "else"}),
    Way(name="new caches, another time zone and language", fresh=True, environ={"TZ": "Asia/Shanghai", "LC_ALL": "C"}),
    Way(name="in parallel, another hash seed", environ={"PYTHONHASHSEED": "2"}, options=("--jobs", "4")),
)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a home is named otherwise there")
def test_every_way_gives_the_same_bytes(github: GitHub, hub: Hub, data: Path, world: Path) -> None:
    made: dict[str, dict[str, str]] = {}
    for number, way in enumerate(WAYS):
        # Another working directory each time, with a name of its own.
        work = world / f"work {number} 工作"
        work.mkdir()
        for name in ("tiny-llama", "lora-a", "lora-b"):
            shutil.copytree(data / name, work / name)
        model = {"source": way.source, "name": "m", "outtype": ["f16", "q8_0"], "loras": ["./lora-a", "./lora-b"]}
        asked = {"version": 1, "llama_cpp": {"tag": TAG}, "environment": {"overrides": ["torch==2.13.0"]}, "models": [model]}
        (work / "job.yaml").write_text(yaml.safe_dump(asked))
        new = {"ORCHESTRATE_CACHE_DIR": str(world / "new"), "HF_HOME": str(world / "new-hf")} if way.fresh else {}
        changed = {name: value.format(world=world) for name, value in way.environ.items()}
        env = {**os.environ, "ORCHESTRATE_LLAMA_CPP_FROM": "pypi", **new, **changed}
        argv = [sys.executable, "-m", "llamacpp_orchestrator", "run", "job.yaml", *way.options]
        done = subprocess.run(argv, cwd=work, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (way.name, done.stderr)
        made[way.name] = sums(work / "dist")
    first = made[WAYS[0].name]
    assert len(first) == 4
    assert made == dict.fromkeys(made, first)
    assert any("/info/refs" in path for path in github.seen) and hub.seen, "git and the hub were asked indeed"


def test_the_demo_ships_with_its_lock(orchestrate: Callable[..., Answer], data: Path, world: Path) -> None:
    (world / "configs").mkdir()
    for name in ("demo.yaml", "demo.lock.yaml"):
        shutil.copy(ROOT / "configs" / name, world / "configs" / name)
    shutil.copytree(data, world / ".demo")
    before = (world / "configs" / "demo.lock.yaml").read_bytes()
    made = orchestrate("run", "--locked", "configs/demo.yaml", "--json")
    assert made.code == 0, made.err
    assert len(made.json()["outputs"]) == 5
    assert (world / "configs" / "demo.lock.yaml").read_bytes() == before
    again = orchestrate("run", "--locked", "configs/demo.yaml", "--json").json()
    assert {output["status"] for output in again["outputs"]} == {"current"}


def test_a_lock_is_for_every_platform_and_holds_nothing_of_this_machine() -> None:
    path = ROOT / "configs" / "demo.lock.yaml"
    text, lock = path.read_text(encoding="utf-8"), lock_file.read(path)
    assert lock is not None and lock.environment is not None
    assert lock_file.text_of(lock) == text, "written as a new one would be"
    for marker in ("sys_platform == 'win32'", "sys_platform == 'darwin'", "platform_machine == 'aarch64'"):
        assert marker in lock.environment.requirements
    for platform in wheels.PLATFORMS:
        needed = {
            package.name: package for package in wheels.packages(lock.environment.requirements, platform, lock.environment.python)
        }
        # An index of one platform's wheels, which a machine may have besides, must not decide what others can install.
        assert len(needed["numpy"].hashes) > 20 and len(needed["tokenizers"].hashes) > 10 and needed["torch"].hashes, platform
    for stranger in (str(Path.home()), "file:", NOWHERE, "hf_", "/tmp"):
        assert stranger not in text
