"""From nothing to a machine that can convert, against the tutorial's steps; and a second tag after the first."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.source.tree import PATTERNS
from tests.bench import upstream as upstreams
from tests.bench import world as worlds
from tests.bench.clock import ours
from tests.bench.clock import timed
from tests.bench.table import Row
from tests.bench.table import compared
from tests.bench.table import limited
from tests.bench.upstream import TAGS
from tests.bench.upstream import Upstream
from tests.support import scratch
from tests.support.scratch import Failed
from tests.support.scratch import World
from tests.support.scratch import run

REQUIREMENTS = tuple(f"requirements/requirements-{script}.txt" for script in ("convert_hf_to_gguf", "convert_lora_to_gguf"))
IMPORTS = "import numpy, sentencepiece, torch, transformers"


def rows(world: World) -> Iterator[Row]:
    """Each side with empty caches of its own, and the same package index."""
    with upstreams.upstream(world.scratch) as upstream:
        env = own(world, upstream)
        first = job(world, TAGS[-1])
        cold = (ours("setup", first, env=env), by_hand(world, upstream))
        locked = first.with_name(f"{first.stem}.lock.yaml")
        note = (
            "a full clone of a repository of four commits, upstream's has thousands; all caches empty; pip also compiles bytecode"
        )
        yield compared("setup: cold, `orchestrate setup` against clone, venv and pip", [cold], unit="s", goal=0.2, note=note)
        warm, asked = [], []
        for tag in TAGS[:-1]:
            download, seen = downloaded(world, upstream, tag), len(upstream.server.seen)
            file = job(world, tag)
            shutil.copyfile(locked, file.with_name(f"{file.stem}.lock.yaml"))  # one job at another tag
            warm.append(ours("setup", file, env=env) - download)
            asked.append(len(upstream.server.seen) - seen)
        note = (
            f"beyond the time of bare git commands; requests for the tree: {asked}, one environment after all; "
            f"the cold set-up took {cold[0]:.1f} s; theirs is the goal"
        )
        if len(list((world.scratch / "cold" / "cache" / "environments").glob("*.complete.json"))) != 1:
            raise Failed("the tags with the same pins did not share an environment")
        yield limited("setup: another tag with the same pins", warm, 0.35, unit="s", note=note)
        yield first_gguf(world, cold[1])
    shutil.rmtree(world.scratch / "cold")


def first_gguf(world: World, by_hand_seconds: float) -> Row:
    """From nothing to a checked file, by the package route, against the tutorial's steps and its script."""
    folder = world.folder("cold/first")
    env = world.env(ORCHESTRATE_CACHE_DIR=str(folder / "cache"), UV_CACHE_DIR=str(folder / "uv"))
    file = worlds.write_job(folder, {"source": str(scratch.data(world.scratch) / "tiny-llama"), "outtype": "f16"})
    mine = ours("run", file, env=env)
    clone, python = world.scratch / "cold/by-hand/llama.cpp", python_in(world.scratch / "cold/by-hand/venv")
    words = [str(scratch.data(world.scratch) / "tiny-llama"), "--outtype", "f16", "--outfile", str(folder / "by-hand.gguf")]
    script = timed([str(python), str(clone / "convert_hf_to_gguf.py"), *words], world.env(HF_HUB_OFFLINE="1"))
    note = "ours comes from the package index, and is checked against its source; all caches empty on both sides"
    name = "setup: first GGUF, `orchestrate run` against clone, venv, pip and script"
    return compared(name, [(mine, by_hand_seconds + script)], unit="s", goal=0.1, note=note)


def downloaded(world: World, upstream: Upstream, tag: str) -> float:
    """Seconds in which bare git brings what the driver brings of a tag."""
    folder = world.folder(f"cold/bare-{tag}")
    git = ["git", "-C", str(folder), "-c", "core.sparseCheckout=true"]
    fetch = ["fetch", "--quiet", "--depth=1", "--no-tags", "--filter=blob:none", "origin", f"refs/tags/{tag}"]
    run([*git, "init", "--quiet"], world.env())
    run([*git, "remote", "add", "origin", f"{upstream.url}/{upstreams.PLACE}"], world.env())
    (folder / ".git" / "info" / "sparse-checkout").write_text("\n".join(PATTERNS) + "\n", encoding="utf-8")
    words = (["ls-remote", "origin", f"refs/tags/{tag}"], fetch, ["checkout", "--quiet", "--detach", "FETCH_HEAD"])
    return sum(timed([*git, *each], world.env()) for each in words)


def own(world: World, upstream: Upstream) -> dict[str, str]:
    """The driver's environment: a cache of this row's own, and the server here for github.com."""
    folder = world.folder("cold")
    caches = {"ORCHESTRATE_CACHE_DIR": str(folder / "cache"), "UV_CACHE_DIR": str(folder / "uv")}
    servers = {"ORCHESTRATE_GITHUB_URL": upstream.url, "ORCHESTRATE_GITHUB_API_URL": upstream.url}
    return world.env(**caches, **servers, ORCHESTRATE_LLAMA_CPP_FROM="git")


def job(world: World, tag: str) -> Path:
    """A job at a tag; its model is not looked at."""
    return worlds.write_job(world.folder(f"cold/{tag}"), {"source": str(scratch.data(world.scratch) / "tiny-llama")}, tag=tag)


def by_hand(world: World, upstream: Upstream) -> float:
    """Seconds of what the tutorials say, up to the same packages."""
    folder = world.folder("cold/by-hand")
    clone, venv = folder / "llama.cpp", folder / "venv"
    env = world.env(PIP_CACHE_DIR=str(folder / "pip"), GIT_TERMINAL_PROMPT="0")
    seconds = timed(["git", "clone", "--quiet", f"{upstream.url}/{upstreams.PLACE}", str(clone)], env)
    for name in (path.name for path in (clone / "requirements").iterdir()):
        fit(clone / "requirements" / name)
    seconds += timed([sys.executable, "-m", "venv", str(venv)], env)
    asked = [word for name in REQUIREMENTS for word in ("-r", name)]
    seconds += timed([str(python_in(venv)), "-m", "pip", "install", "--quiet", *asked], env, clone)
    run([str(python_in(venv)), "-c", IMPORTS], env)
    return seconds


def fit(requirements: Path) -> None:
    """Give the tutorial's side the same PyTorch, from the same place."""
    text = requirements.read_text(encoding="utf-8")
    index = f"--extra-index-url {scratch.torch_index()}" if scratch.torch_index() else ""
    text = re.sub(r"^--extra-index-url .*$", index, text, flags=re.MULTILINE)
    requirements.write_text(re.sub(r"^torch[=~<>].*$", scratch.TORCH, text, flags=re.MULTILINE), encoding="utf-8")
