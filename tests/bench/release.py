"""A release of one model in six types, checked and with receipts, against the same commands one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from tests.bench import overhead
from tests.bench import world as worlds
from tests.bench.clock import orchestrate
from tests.bench.clock import ours
from tests.bench.clock import settled
from tests.bench.clock import turns
from tests.bench.table import Row
from tests.bench.table import compared
from tests.support import TAG
from tests.support import scratch
from tests.support.scratch import Failed
from tests.support.scratch import World

LAYERS = 2  # 0.44 GB: to quantize 2 GB six times takes two cores ten minutes on each side
TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS"]
# Programs that the tests have built.
BUILDS = Path(platformdirs.user_cache_dir("llamacpp-orchestrator-tests")) / TAG / "programs"


def rows(world: World) -> Iterator[Row]:
    """All files of a release; then what its Modelfiles add."""
    if not any(BUILDS.glob("*.complete.json")):
        raise Failed(f"no programs of {TAG} are here: the tests that quantize build them (make test-all)")
    env, folder = world.env(), world.folder("release")
    shutil.copytree(BUILDS, world.scratch / "cache" / "builds", dirs_exist_ok=True)
    model = folder / "llama"
    size = overhead.write_model(scratch.data(world.scratch) / "tiny-llama", model, LAYERS)
    asked = {"source": str(model), "outtype": "bf16", "verify": "load"}
    ours("run", worlds.write_job(world.folder("release/first"), asked, backend="source"), env=env)  # with what is made once
    job = worlds.write_job(folder, asked | {"quantize": TYPES}, backend="source")
    orchestrate("lock", job, env=env)
    made, by_hand = folder / "dist", folder / "by-hand"

    def fresh(place: Path) -> None:
        for path in place.glob("*.gguf*"):
            path.unlink()
        settled()

    def mine() -> float:
        fresh(made)
        return ours("run", job, env=env)

    tool = str(next((world.scratch / "cache" / "builds").rglob("llama-quantize*")))
    bare = worlds.by_hand(
        world, [[word.replace("{llama-quantize}", tool) for word in command] for command in worlds.commands(job, env)]
    )

    def other() -> float:
        fresh(by_hand)
        return bare()

    note = (
        f"a Llama of {size / 1e9:.2f} GB to bf16, {', '.join(TYPES)}; ours with receipts and the checks structure, content, load"
    )
    yield compared("release: six types in a run against the bare commands", turns(1, mine, other), unit="s", goal=1.05, note=note)
    shutil.rmtree(folder)
