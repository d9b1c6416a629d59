"""Weights: safetensors headers and the index of their shards."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.convert import memory_model
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.models import selection
from llamacpp_orchestrator.models import weight_files
from tests.fuzz.common import altered
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_bytes
from tests.fuzz.common import json_text
from tests.fuzz.common import reading
from tests.fuzz.common import spoilt
from tests.support import makers

HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "model.norm.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [16, 20]},
}
INDEX = {
    "metadata": {"total_size": 20},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}
LENGTHS = (0, 1, 2, 7, 8, 100, 1000, 100_000)


@st.composite
def files(draw: Any, *headers: Any, body: int = 20) -> bytes:
    """A safetensors file around an altered header, which may promise another length than it has."""
    header = json_bytes(draw(altered(*headers)))
    length = draw(st.sampled_from((len(header), len(header), len(header), *LENGTHS)))
    return makers.safetensors(header, bytes(body), length)


@fuzzed(files(HEADER) | spoilt(files(HEADER)) | st.binary(max_size=100))
def test_headers(content: bytes) -> None:
    with folder() as here:
        path = here / "model.safetensors"
        path.write_bytes(content)
        reading(lambda: safetensors.check_safetensors(path))
        header = reading(lambda: safetensors.safetensors_header(path))
        for name, said in (header or {}).items():
            assert name == "__metadata__" or (isinstance(said["dtype"], str) and all(type(each) is int for each in said["shape"]))
        if header:
            reading(lambda: memory_model.weights([header]))


@fuzzed(json_text(INDEX))
def test_the_index(text: bytes) -> None:
    with folder() as here:
        (here / weight_files.INDEX).write_bytes(text)
        names = [weight_files.INDEX, *INDEX["weight_map"].values()]
        reading(lambda: selection.check_index(here, names))


names = st.sampled_from(
    ("config.json", "adapter_config.json", "adapter_model.safetensors", "model.safetensors", weight_files.INDEX,
     "tokenizer.model", "model-00001-of-00002.safetensors", "model-1-of-99999.safetensors", "x-1-of-100000.safetensors",
     "pytorch_model.bin", "README.md", "model.safetensors\n", "1_Dense/config.json", "CONFIG.JSON", "consolidated.safetensors",
     "modeling.py")
) | st.text(max_size=10)  # fmt: skip


@fuzzed(st.tuples(st.lists(names, max_size=8), st.sampled_from(("model", "adapter")), st.booleans(), st.booleans()))
def test_names(said: tuple[list[str], str, bool, bool]) -> None:
    found, kind, weights, code = said
    asked = {"source": "org/name", "kind": kind, "weights": weights, "remote_code": code}
    for name in reading(lambda: selection.select_files(found, **asked)) or ():  # type: ignore[arg-type]
        assert name in found and ".." not in name.split("/") and json.dumps(name).isascii()
