"""Which outputs one task makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.cluster import chains
from llamacpp_orchestrator.cluster.records import Chain
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system.command import Command


def build(name: str, model: spec.Model, kind: str = "model", lora: spec.Lora | None = None, temporary: bool = False) -> Build:
    output = Output(path=Path("/d") / name, kind=kind, type="f16", model=model, lora=lora, temporary=temporary)
    return Build(output=output, name=name, command=Command(()), portable_argv=(), inputs=(), recipes=("r",))


def unknown(build: Build) -> int:
    """Of a build whose headers are not here."""
    return 0


ONE, TWO = spec.Model(source="a/b", name="one"), spec.Model(source="a/b", name="two")


def adapters(count: int, model: spec.Model = ONE) -> list[Build]:
    return [build(f"l{number}", model, "adapter", spec.Lora(source=f"a/{number}", name=f"l{number}")) for number in range(count)]


def test_a_model_is_one_chain_with_what_is_quantized_from_it() -> None:
    builds = [build("base", ONE, temporary=True), build("q4", ONE, "quantized"), build("q8", ONE, "quantized"), build("two", TWO)]
    assert chains.chains(builds, 4, lambda build: False, unknown) == [
        Chain(key="0-base", outputs=("q4", "q8")),
        Chain(key="1-base", outputs=("two",)),
    ]


@pytest.mark.parametrize(
    "count, tasks, sizes",
    [
        (100, 0, [75, 25]),
        (100, 1, [75, 25]),
        (100, 2, [38, 37, 13, 12]),
        (101, 3, [25, 25, 25, 9, 9, 8]),
        (8, 4, [2, 2, 1, 1, 1, 1]),
        (5, 9, [1, 1, 1, 1, 1]),
        (2, 1, [1, 1]),
        (1, 4, [1]),
    ],
)
def test_adapters_are_shared_out_to_a_large_chain_for_each_task_at_a_time_and_a_small_one(
    count: int, tasks: int, sizes: list[int]
) -> None:
    listed = chains.chains(adapters(count), tasks, lambda build: False, unknown)
    assert [len(chain.outputs) for chain in listed] == sizes
    assert sorted(name for chain in listed for name in chain.outputs) == sorted(f"l{number}" for number in range(count))
    assert not any(chain.after for chain in listed)


def test_the_types_of_one_adapter_stay_together() -> None:
    lora = spec.Lora(source="a/x", name="x")
    builds = [build("x-f16", ONE, "adapter", lora), build("x-f32", ONE, "adapter", lora), *adapters(1)]
    assert [chain.outputs for chain in chains.chains(builds, 2, lambda build: False, unknown)] == [("x-f16", "x-f32"), ("l0",)]


@pytest.mark.parametrize("loaded", [True, False])
def test_an_adapter_that_is_loaded_comes_after_its_base(loaded: bool) -> None:
    model = spec.Model(source="a/b", name="one", verify="load")
    listed = chains.chains([build("base", model), *adapters(1, model)], 1, lambda build: loaded, unknown)
    assert [chain.after for chain in listed] == [(), ("0-base",) if loaded else ()]
    assert chains.chains(adapters(1), 1, lambda build: loaded, unknown)[0].after == (), "its base is there already"


def test_the_largest_output_decides_what_a_chain_takes() -> None:
    builds = [build("base", ONE, temporary=True), build("q4", ONE, "quantized"), *adapters(6)]
    needs = {"base": 9, "q4": 5, "l0": 1, "l1": 7, "l2": 3, "l3": 4, "l4": 6, "l5": 0}
    listed = chains.chains(builds, 1, lambda build: False, lambda build: needs[build.name])
    assert [chain.memory for chain in listed] == [9, 7, 6]


def test_an_adapter_that_is_loaded_only_where_the_programs_are_stays_with_its_base() -> None:
    listed = chains.chains(
        [build("base", ONE), build("q4", ONE, "quantized"), *adapters(2)], 2, lambda build: build.name != "l1", unknown
    )
    assert [chain.outputs for chain in listed] == [("base", "q4", "l0"), ("l1",)]
