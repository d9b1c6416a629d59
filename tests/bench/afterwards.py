"""What comes after the outputs of a model: its Modelfile, its card and the page of what was made."""

from __future__ import annotations

import json
from collections.abc import Iterator

import yaml

from tests.bench import world as worlds
from tests.bench.clock import orchestrate
from tests.bench.clock import ours
from tests.bench.table import Row
from tests.bench.table import limited
from tests.support import scratch
from tests.support.scratch import World

ROUNDS = 5


def rows(world: World) -> Iterator[Row]:
    """The step of the Modelfile, and how much longer than `plan` of the same job the commands of card and page take."""
    env, folder = world.env(), world.folder("afterwards")
    model = {"source": str(scratch.data(world.scratch) / "tiny-llama"), "outtype": "f16", "ollama": True}
    job = worlds.write_job(folder, model)
    job.write_text(job.read_text(encoding="utf-8") + yaml.safe_dump({"publish": {"repo": "me/m"}}), encoding="utf-8")
    ours("run", job, env=env)
    seconds = []
    for _ in range(ROUNDS):
        steps = json.loads(orchestrate("run", job, "--force", "--json", env=env))["steps"]
        modelfile = sum(step["seconds"] for step in steps if step["name"].startswith("modelfile "))
        page = ours("report", job, "-o", folder / "page.html", env=env)
        card = ours("publish", job, "--dry-run", env=env)
        seconds.append(modelfile + page + card - 2 * ours("plan", job, env=env))
    note = "theirs is the goal"
    yield limited("after: Modelfile, card and page of a model", seconds, 0.3, unit="s", note=note)
