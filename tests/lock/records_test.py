"""The names of a job's parts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import records
from tests.support.locks import TEXT


def test_names_of_steps_are_told_apart() -> None:
    job = loader.parse(TEXT.replace(b"org/l]", b"org/l, {source: other/l, name: m}]"), Path("job.yaml"))
    assert list(records.names(job).values()) == ["m", "l", "m (other/l)"]


@pytest.mark.parametrize(
    ("source", "name"),
    [("org/m", "m"), ("./models/x", "x"), ("..", "m-l"), ("~/y", "y"), (".", "m-l"), ("C:\\models\\z", "z")],
)
def test_a_merge_is_made_of_its_base_and_its_adapters(source: str, name: str) -> None:
    text = TEXT.replace(b"org/m", b"org/m\n    name: m-l\n    merge: [org/l, {source: ./n, weight: 0.5}]")
    job = loader.parse(text, Path("job.yaml"))
    model = msgspec.structs.replace(job.models[0], source=source)
    merged = records.model_need(model)
    assert (merged.name, [weight for _, weight in merged.merged]) == ("m-l", [1.0, 0.5])
    assert [(part.name, part.wanted.kind, part.wanted.is_adapter) for part in merged.parts] == [
        (name, "model", False),
        ("l", "merge", True),
        ("n", "merge", True),
    ]
    assert records.model_need(msgspec.structs.replace(model, merge=())).parts == (
        records.Ingredient(records.base_wanted(model), "m-l"),
    )
    # The adapter to merge has another name in the steps than the same one to convert, for other files of it may count.
    assert list(records.names(job).values()) == ["m", "l", "n", "l (org/l)"]
