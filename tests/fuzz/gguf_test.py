"""GGUF files: headers that promise what is not there, and what a program leaves as a record."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.verify import gguf as verify_gguf
from llamacpp_orchestrator.verify import logits
from llamacpp_orchestrator.verify import perplexity
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import reading
from tests.fuzz.common import spoilt
from tests.support.gguf_bytes import gguf

KEYS = (
    ("general.architecture", 8, "llama"), ("general.name", 8, "x"), ("general.alignment", 4, 32), ("general.file_type", 4, 1),
    ("split.no", 2, 0), ("split.count", 2, 1), ("split.tensors.count", 5, 2), ("adapter.lora.alpha", 6, 16.0),
    ("tokenizer.ggml.tokens", 9, (8, ["a", "b"])), ("numbers", 9, (4, [1, 2])), ("flag", 7, True), ("big", 10, 2**40),
)  # fmt: skip
TENSORS = (("a", (4,), 0, 0), ("b", (2, 4), 1, 32), ("c", (32,), 8, 64), ("d", (4,), 30, 128))
NUMBERS = (0, 1, 3, 4, 5, 77, 1000, 2**16, 2**17)


@st.composite
def files(draw: Any) -> bytes:
    """A GGUF of some keys and tensors, with other numbers in some places."""
    keys = draw(st.lists(st.sampled_from(KEYS), max_size=6))
    tensors = draw(st.lists(st.sampled_from(TENSORS), max_size=4))
    made = bytearray(gguf(tensors, keys, bytes(256), draw(st.sampled_from((2, 3, 3, 3, 1, 0x3000000)))))
    for _ in range(draw(st.integers(0, 2))):
        at, form = draw(st.integers(0, len(made) - 8)), draw(st.sampled_from("IQ"))
        struct.pack_into(f"<{form}", made, at, draw(st.sampled_from(NUMBERS)) % 2 ** (8 * struct.calcsize(f"<{form}")))
    for place in draw(st.lists(st.sampled_from((4, 8, 16)), max_size=1)):
        struct.pack_into(
            "<I" if place == 4 else "<Q", made, place, draw(st.sampled_from(NUMBERS)) % (2**32 if place == 4 else 2**64)
        )
    return bytes(made)


@fuzzed(st.lists(files() | spoilt(files()) | st.binary(max_size=100), min_size=1, max_size=2))
def test_files(contents: list[bytes]) -> None:
    with folder() as here:
        paths = [here / f"a-{number}.gguf" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        reading(lambda: verify_gguf.check(paths[0]))
        if reading(lambda: verify_gguf.check_set(paths)):
            assert verify_gguf.contents(paths).tensors or len(paths) > 1


def record(context: int, vocabulary: int, pieces: int) -> bytes:
    """A record of llama-perplexity."""
    rows, stride = context - 1 - context // 2, 2 * (2 * ((vocabulary + 1) // 2) + 4)
    return logits.HEAD.pack(logits.MAGIC, context, vocabulary, pieces) + bytes(4 * context * pieces + pieces * rows * stride)


heads = st.tuples(st.sampled_from((logits.MAGIC, b"_logitz_", b"")), *[st.integers(-1000, 100_000)] * 3)
records = (
    st.builds(record, st.integers(1, 64), st.integers(1, 64), st.integers(1, 2))
    | heads.map(lambda head: logits.HEAD.pack(*head))
    | st.binary(max_size=100)
)


@fuzzed(records | spoilt(records))
def test_records(content: bytes) -> None:
    with folder() as here:
        (here / "logits.bin").write_bytes(content)
        found = reading(lambda: logits.read(here / "logits.bin"))
        assert found is None or len(found.tokens) <= len(content)
        reading(lambda: perplexity.flaw(here / "logits.bin"))


TABLE = "Mean PPL(Q)   : 39061.437835 ± 558.418783\nMean    KLD:   0.000818 ±   0.000006\nSame top p: 75.359 ± 1.1 %\n"


@fuzzed(spoilt(st.just(TABLE.encode())).map(lambda text: text.decode("utf-8", "replace")))
def test_tables(text: str) -> None:
    found = reading(lambda: perplexity.parse(text))
    assert found is not None and all(type(number) is float for number in found.values())
