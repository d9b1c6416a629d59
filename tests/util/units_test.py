"""Sizes: as they are shown, and as people write them."""

from __future__ import annotations

import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.util import units


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8G", 8_000_000_000),
        ("8g", 8_000_000_000),
        (" 8 GB ", 8_000_000_000),
        ("8GiB", 8 << 30),
        ("1.5M", 1_500_000),
        ("900K", 900_000),
        ("0.5T", 500_000_000_000),
    ],
)
def test_a_size_is_read(text: str, count: int) -> None:
    assert units.parse(text, "--memory") == count


@pytest.mark.parametrize(
    "text", ["8", "0G", "", "-1G", "8X", "G", "8GG", "8iB", "1e9", "8,5G", "half", "9" * 400 + "G", "0.0000000001K"]
)
def test_what_is_no_size_is_told_with_its_place(text: str) -> None:
    with pytest.raises(JobError, match="^ORCHESTRATE_MEMORY: expected a size, found") as wrong:
        units.parse(text, "ORCHESTRATE_MEMORY")
    assert "8G" in wrong.value.hint and len(wrong.value.message) < 200


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (1500, "1.5 kB"), (8e9, "8.0 GB"), (2.5e15, "2500.0 TB")])
def test_a_size_is_shown(count: float, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (15_700, "15.7 kB"), (1.5e9, "1.5 GB"), (2e13, "20.0 TB")]
)
def test_sizes_for_people(count: float, shown: str) -> None:
    assert units.size(count) == shown
