"""Which outputs are made together: what one task of a cluster does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence

from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job.spec import Model
from llamacpp_orchestrator.pipeline.build import Build

LATE = 4  # one adapter of so many is shared out late, in small chains: who began earlier, or is faster, takes more of these


def chains(stale: Iterable[Build], tasks: int, is_loaded: Callable[[Build], bool], memory: Callable[[Build], int]) -> list[Chain]:
    """The chains of outputs that are to be made: a model with all that is quantized from it; adapters, shared out.

    `tasks` is how many the workers do at a time. Adapters of one base are few chains and not one each: a worker's interpreter
    serves many once it is warm. Those that are loaded to check them come after their base. A task makes one output after the
    other, so the largest decides its `memory`.
    """
    by_model: dict[Model, list[Build]] = {}
    for build in stale:
        by_model.setdefault(build.output.model, []).append(build)
    listed: list[Chain] = []
    for number, builds in enumerate(by_model.values()):
        # An adapter that is loaded only because the programs are there anyway is so only where they are: with its base.
        alone = [build for build in builds if build.output.lora and not (is_loaded(build) and _by_chance(build))]
        models = [build for build in builds if build not in alone]
        own = [build for build in models if not build.output.temporary]
        need = max(map(memory, models), default=0)
        gpu = any(build.matrix and build.matrix.on_gpu for build in own)
        base = Chain(key=f"{number}-base", outputs=tuple(build.name for build in own), memory=need, gpu=gpu)
        listed += [base] if own else []
        for part, group in enumerate(shared(alone, max(tasks, 1))):
            after = (base.key,) if own and any(map(is_loaded, group)) else ()
            names, need = tuple(build.name for build in group), max(map(memory, group))
            listed.append(Chain(key=f"{number}-adapters-{part}", outputs=names, after=after, memory=need))
    return listed


def shared(builds: Sequence[Build], tasks: int) -> list[list[Build]]:
    """Outputs in a large group for each task at a time, then in as many small ones; the types of one adapter stay together."""
    adapters: dict[str, list[Build]] = {}
    for build in builds:
        assert build.output.lora is not None
        adapters.setdefault(build.output.lora.name, []).append(build)
    listed = list(adapters.values())
    late = -(-len(listed) // LATE)
    return _dealt(listed[: len(listed) - late], tasks) + _dealt(listed[len(listed) - late :], tasks)


def _dealt(adapters: Sequence[list[Build]], tasks: int) -> list[list[Build]]:
    groups = (adapters[number::tasks] for number in range(tasks))
    return [list(itertools.chain(*group)) for group in groups if group]


def _by_chance(build: Build) -> bool:
    return build.output.model.verify == check_levels.AUTO
