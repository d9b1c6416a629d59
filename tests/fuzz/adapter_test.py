"""Adapters: their config, their tensors, and the base that they are tried on."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.models import adapter
from tests.fuzz.common import altered
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_bytes
from tests.fuzz.common import json_text
from tests.fuzz.common import reading
from tests.support import makers
from tests.support.adapters import BASE
from tests.support.adapters import CONFIG
from tests.support.adapters import TENSORS

# What is refused by its form, and harmless here: a repeat of what is in brackets, and more repeats than are taken.
REFUSED = ("(a)+b", "(ab)*x", "(\\w)+!", "(a|b)*", "((a)+)+", "(a){2}", "a*b*c*d*")
refused = st.sampled_from(REFUSED).map(
    lambda pattern: json_bytes(CONFIG | {"alpha_pattern": {pattern: 4}, "rank_pattern": {pattern: 4}})
)


@fuzzed(st.tuples(json_text(CONFIG) | refused, altered(TENSORS), json_text(BASE)))
def test_adapters(said: tuple[bytes, Any, bytes]) -> None:
    config, tensors, base = said
    with folder() as here:
        (here / "adapter").mkdir()
        (here / "base").mkdir()
        (here / "adapter" / "adapter_config.json").write_bytes(config)
        (here / "adapter" / "adapter_model.safetensors").write_bytes(makers.safetensors(json_bytes(tensors), bytes(256)))
        (here / "base" / "config.json").write_bytes(base)
        found = reading(lambda: adapter.check(here / "adapter", here / "base", "mine", "org/base"))
        assert found is None or all(len(note) < 1000 for note in found.notes)
