"""GGUF files, sound and broken in every way that has been seen, made byte by byte."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.job.tensor_types import TENSOR_TYPES
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.util import background
from llamacpp_orchestrator.verify import gguf as verify_gguf
from llamacpp_orchestrator.verify import numbers
from tests.support import TAG
from tests.support.gguf_bytes import ARCH
from tests.support.gguf_bytes import gguf
from tests.support.gguf_bytes import text
from tests.support.gguf_bytes import value


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_a_header_says(tmp_path: Path) -> None:
    keys = [
        ARCH,
        ("general.name", 8, "Name é"),
        ("general.type", 8, "adapter"),
        ("general.file_type", 4, 7),
        ("general.alignment", 4, 64),
        ("adapter.lora.alpha", 6, 16.0),
        ("other.flag", 7, True),
        ("other.text", 8, "x" * 100_000),
        ("other.numbers", 9, (4, [1, 2, 3])),
        ("other.texts", 9, (8, ["a", "", "b"])),
    ]
    content = gguf([("a", (4,), 0, 0), ("b", (2, 2), 30, 64), ("c", (9,), 99, 128)], keys, bytes(256))
    found = verify_gguf.check(saved(tmp_path / "x.gguf", content))
    assert found == verify_gguf.Checks(
        version=3,
        tensors=3,
        architecture="llama",
        name="Name é",
        kind="adapter",
        size=len(content),
        adapter_alpha=16.0,
        file_type=7,
    )


def test_big_vocabularies_are_skipped_fast(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.gguf", gguf(keys=[ARCH, ("t", 9, (8, ["token"] * 150_000)), ("n", 9, (6, [0.5] * 150_000))]))
    began = time.process_time()
    assert verify_gguf.check(path).tensors == 1
    assert time.process_time() - began < 1


def header(version: int = 3, tensors: int = 1, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


KEY = text("k")
GOOD = gguf()
BROKEN = {
    "is empty": b"",
    "is no GGUF: it begins with b'PK": b"PK\x03\x04" + bytes(40),
    "it was cut off": bytes(100),
    "ends in the middle of its header": GOOD[:60],
    "GGUF version 1": gguf(version=1),
    "is big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(40),
    "holds no weights": gguf(tensors=()),
    "holds no weights (0 tensors)": gguf((), keys=[ARCH, ("split.tensors.count", 5, 2)]),
    "names no architecture": gguf(keys=()),
    "alignment 3": gguf(keys=[ARCH, ("general.alignment", 4, 3)]),
    "alignment 'x'": gguf(keys=[ARCH, ("general.alignment", 8, "x")]),
    "has 5 dimensions": gguf([("a", (1,) * 5, 0, 0)]),
    "tensor a twice": gguf([("a", (4,), 0, 0), ("a", (4,), 0, 32)], data=bytes(64)),
    "begins at 8": gguf([("a", (4,), 0, 8)]),
    "not whole blocks of 256": gguf([("a", (100,), 12, 0)]),
    "tensors a and b overlap": gguf([("b", (4,), 0, 32), ("a", (16,), 0, 0)], data=bytes(96)),
    "is cut: tensor a ends at byte": gguf(data=bytes(8)),
}


@pytest.mark.parametrize("said", BROKEN)
def test_broken(tmp_path: Path, said: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        verify_gguf.check(saved(tmp_path / "x.gguf", BROKEN[said]))
    assert said in caught.value.message and "x.gguf" in caught.value.message and caught.value.hint


@pytest.mark.parametrize(("limit", "content"), [("MAX_KEYS", gguf(keys=[ARCH] * 3)), ("MAX_TENSORS", header(tensors=3))])
def test_more_than_any_model_has(tmp_path: Path, limit: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_gguf, limit, 2)
    with pytest.raises(IntegrityError, match="more than any model has"):
        verify_gguf.check(saved(tmp_path / "x.gguf", content))


@pytest.mark.parametrize(
    "rest",
    [
        struct.pack("<Q", 1000),
        KEY + struct.pack("<I", 77),
        KEY + struct.pack("<IQ", 8, 1000),
        KEY + struct.pack("<IIQ", 9, 8, 1000),
        KEY + struct.pack("<IIQ", 9, 4, 1000),
        KEY + struct.pack("<IIQ", 9, 9, 1),
    ],
)
def test_a_header_that_promises_what_is_not_there(tmp_path: Path, rest: bytes) -> None:
    with pytest.raises(IntegrityError, match="in the middle of its header"):
        verify_gguf.check(saved(tmp_path / "x.gguf", header(keys=2, rest=rest)))


@pytest.mark.parametrize(
    ("limit", "rest"),
    [
        ("MAX_NAME", text("name") + struct.pack("<IB", 0, 1)),
        ("MAX_STRINGS", KEY + struct.pack("<I", 9) + value(9, (8, ["a", "b", "c"]))),
    ],
)
def test_more_than_is_read_of_a_header(tmp_path: Path, limit: str, rest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_gguf, limit, 2)
    with pytest.raises(IntegrityError, match="in the middle of its header"):
        verify_gguf.check(saved(tmp_path / "x.gguf", header(keys=1, rest=rest)))


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        verify_gguf.check(tmp_path / "none.gguf")


def shard(number: int, count: int, tensors: int, total: int) -> bytes:
    split = [("split.no", 2, number), ("split.count", 2, count), ("split.tensors.count", 5, total)]
    made = [(f"t{number}{index}", (8,), 0, 32 * index) for index in range(tensors)]
    return gguf(made, ([ARCH] if number == 0 else []) + split, bytes(32 * tensors))


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ([(0, 1, 1, 1)], ""),
        ([(0, 2, 0, 3), (1, 2, 3, 3)], ""),
        ([(1, 2, 2, 3), (0, 2, 1, 3)], ""),
        ([(0, 2, 1, 3)], "is one of 2 shards, but 1 are here"),
        ([(0, 2, 1, 3), (1, 3, 2, 3)], "is one of 2 shards"),
        ([(0, 2, 1, 2), (0, 2, 1, 2)], "do not number from 1 to 2"),
        ([(0, 2, 1, 3), (1, 2, 1, 3)], "hold 2 tensors and promise 3"),
    ],
)
def test_sets(tmp_path: Path, shards: list[tuple[int, int, int, int]], said: str) -> None:
    paths = [saved(tmp_path / f"{index}.gguf", shard(*one)) for index, one in enumerate(shards)]
    if said:
        with pytest.raises(IntegrityError, match=said):
            verify_gguf.check_set(paths)
    else:
        assert sum(one.tensors for one in verify_gguf.check_set(paths)) == shards[0][3]


F16, BF16, F32, Q8_0 = 1, 30, 0, 8
BLOCK = struct.pack("<e32b", 0.5, *range(-16, 16))


@pytest.mark.parametrize(
    ("kind", "elements", "data", "good"),
    [
        (F32, 2, struct.pack("<2f", 1.0, -3e38), True),
        (F32, 2, struct.pack("<2f", 1.0, float("nan")), False),
        (F32, 2, struct.pack("<2f", float("-inf"), 1.0), False),
        (F16, 2, struct.pack("<2e", 65504.0, -65504.0), True),
        (F16, 2, struct.pack("<2e", 1.0, float("inf")), False),
        (F16, 2, struct.pack("<2e", float("nan"), 1.0), False),
        (BF16, 2, b"\x7f\x7f\x80\x3f", True),
        (BF16, 2, b"\x80\x3f\x80\xff", False),
        (BF16, 2, b"\x80\x3f\xc0\x7f", False),
        (Q8_0, 64, BLOCK + BLOCK, True),
        (Q8_0, 64, BLOCK + struct.pack("<e", float("inf")) + bytes(32), False),
        (26, 2, b"\xff" * 8, True),
        (28, 2, struct.pack("<2d", 1.0, -1e308), True),
        (28, 2, struct.pack("<2d", 1.0, float("nan")), False),
        (15, 512, struct.pack("<f", 2e38) + bytes(288) + struct.pack("<f", float("inf")) + bytes(288), False),
        (40, 64, b"\xff" * 36, True),
        (F16, numbers.CHUNK, bytes(2 * numbers.CHUNK - 2) + b"\x00\x7c", False),
    ],
)
def test_numbers(tmp_path: Path, kind: int, elements: int, data: bytes, good: bool) -> None:
    path = saved(tmp_path / "x.gguf", gguf([("w", (elements,), kind, 0)], data=data))
    assert verify_gguf.check(path).tensors == 1
    if good:
        verify_gguf.check_set([path])
    else:
        with pytest.raises(IntegrityError, match="tensor w holds NaN or infinite"):
            verify_gguf.check_set([path])


RANDOM = bytes(range(1, 121)) * 200


@pytest.mark.parametrize(
    ("kind", "data", "blank"),
    [
        (F16, RANDOM[:8192], False),
        (F16, RANDOM[:4096] + bytes(4096), True),
        (F32, bytes(64), True),
        (F32, bytes(60) + struct.pack("<f", 1.0), False),
        (BF16, RANDOM[:4000] + bytes(4000), False),
        (Q8_0, (BLOCK * 120)[:4080] + bytes(34 * 240), True),
        (Q8_0, BLOCK * 120, False),
        (F16, (RANDOM * 24)[: numbers.CHUNK] + bytes(numbers.WINDOW), True),
        (F16, (RANDOM * 24)[: numbers.CHUNK] + bytes(2), True),
        (26, bytes(8192), False),
    ],
)
def test_what_may_be_blank_is_named(tmp_path: Path, kind: int, data: bytes, blank: bool) -> None:
    row = TENSOR_TYPES[kind]
    shape = (len(data) // row.size * row.elements,)
    path = saved(tmp_path / "x.gguf", gguf([("w", shape, kind, 0)], data=data))
    assert verify_gguf.check_set([path])[0].blank == (("w",) if blank else ())
    assert verify_gguf.check(path).blank == ()


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.gguf", bytes(100))
    with path.open("rb") as file, pytest.raises(IntegrityError, match="x.gguf is cut: tensor w was longer a moment ago"):
        numbers.read("x.gguf", file, [numbers.Tensor("w", F32, 32, 72)])


def written(path: Path, content: bytes) -> verify_gguf.Checks | None:
    """What is found of a file that appears, and grows by and by once somebody reads it, or nobody does for a while."""
    done, read = threading.Event(), threading.Event()

    def begin(*args: Any) -> tuple[str, tuple[str, ...]]:
        read.set()
        return numbers.read(*args)

    with mock.patch.object(verify_gguf, "numbers", SimpleNamespace(read=begin)), path.open("wb", buffering=0) as file:
        followed = background.begin(lambda: verify_gguf.follow(path, done))
        for at in range(0, len(content), len(content) // 7):
            file.write(content[at : at + len(content) // 7])
            read.wait(0.2)
        done.set()
        return followed()


SOUND = struct.pack("<f", 0.5) * 300_000
TENSORS: list[tuple[str, tuple[int, ...], int, int]] = [("a", (200_000,), F32, 0), ("b", (100_000,), F32, 800_000)]


@pytest.mark.parametrize("tail", [b"", b"more"])
def test_a_file_is_read_while_it_is_written(tmp_path: Path, tail: bytes) -> None:
    content = gguf(TENSORS, data=SOUND) + tail
    found = written(tmp_path / "x.gguf", content)
    assert found and (found,) == verify_gguf.check_set([tmp_path / "x.gguf"])
    assert (found.sha256, found.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert verify_gguf.check_set([tmp_path / "x.gguf"], found) == (found,)


@pytest.mark.parametrize(
    "content",
    [
        gguf(TENSORS, data=SOUND)[:-1],
        gguf(TENSORS, data=SOUND)[:100],
        gguf(TENSORS, data=SOUND[:-4] + struct.pack("<f", float("nan"))),
        bytes(500) + gguf(TENSORS, data=SOUND),
    ],
    ids=["cut", "cut in its header", "bad", "no GGUF"],
)
def test_what_is_wrong_with_a_file_that_was_read_meanwhile_is_told_afterwards(tmp_path: Path, content: bytes) -> None:
    assert written(tmp_path / "x.gguf", content) is None
    with pytest.raises(IntegrityError):
        verify_gguf.check_set([tmp_path / "x.gguf"])


def test_a_file_that_has_its_whole_length_before_it_is_written_is_read_afterwards(tmp_path: Path) -> None:
    content, path, done = gguf(TENSORS, data=SOUND), tmp_path / "x.gguf", threading.Event()
    saved(path, content[:4000] + bytes(len(content) - 4000))
    followed = background.begin(lambda: verify_gguf.follow(path, done))
    time.sleep(0.1)
    saved(path, content)
    done.set()
    assert followed() is None


def test_a_header_without_all_that_comes_before_the_first_tensor_is_waited_for(tmp_path: Path) -> None:
    content = gguf(TENSORS, data=SOUND)
    begin = len(content) - len(SOUND)
    assert verify_gguf._begun(saved(tmp_path / "x.gguf", content[: begin - 1])) is None
    head, tensors = verify_gguf._begun(saved(tmp_path / "x.gguf", content[:begin])) or (b"", [])
    assert (head, [tensor.name for tensor in tensors]) == (content[:begin], ["a", "b"])


def test_what_is_never_written_is_not_waited_for(tmp_path: Path) -> None:
    done = threading.Event()
    done.set()
    assert verify_gguf.follow(tmp_path / "x.gguf", done) is None


@pytest.mark.parametrize("sizes", [[], [0], [1], [40, 8, 3], [numbers.CHUNK // 4 + 1, 12, 5000], [7, numbers.CHUNK, 7]])
def test_every_byte_is_read_once_whatever_the_sizes_of_tensors(tmp_path: Path, sizes: list[int]) -> None:
    tensors, at = [], 33
    for index, count in enumerate(sizes):
        tensors.append(numbers.Tensor(str(index), F32, at, 4 * count, (count,)))
        at += 4 * count + index
    (tmp_path / "x").write_bytes(content := bytes(at % 251 for at in range(at + 5)))
    with (tmp_path / "x").open("rb", buffering=0) as file:
        assert numbers.read("x", file, tensors)[0] == hashlib.sha256(content).hexdigest()
    for tensor in (tensor for tensor in tensors if tensor.size):  # each is looked at up to its last number
        bad = bytearray(content)
        bad[tensor.start + tensor.size - 4 : tensor.start + tensor.size] = struct.pack("<f", float("inf"))
        (tmp_path / "x").write_bytes(bad)
        with (tmp_path / "x").open("rb", buffering=0) as file, pytest.raises(IntegrityError, match=f"tensor {tensor.name} holds"):
            numbers.read("x", file, tensors)


def test_what_is_no_number_in_a_block_is_what_upstream_reads_so(
    tmp_path: Path, python: Path, tree: Callable[[str], Path]
) -> None:
    script = Path(__file__).parents[1] / "inside" / "blocks.py"
    said = process.capture(Command((str(python), str(script), str(tree(TAG) / "gguf-py"))))
    found = {int(kind): blocks for kind, blocks in json.loads(said).items()}
    scaled = {number for number, row in TENSOR_TYPES.items() if row.floats}
    assert found.keys() >= scaled - {9, 15, 28, 41, 42}, "what that package has no reader for"
    for kind, blocks in found.items():
        sound, bad = ([bytes.fromhex(block) for block, none in blocks if none is wanted] for wanted in (False, True))
        assert sound and bool(bad) is bool(TENSOR_TYPES[kind].floats), kind
        elements = TENSOR_TYPES[kind].elements
        shape = (elements, len(sound))
        verify_gguf.check_set([saved(tmp_path / "x.gguf", gguf([("w", shape, kind, 0)], data=b"".join(sound)))])
        for block in bad:
            path = saved(tmp_path / "x.gguf", gguf([("w", (elements,), kind, 0)], data=block))
            with pytest.raises(IntegrityError, match="tensor w holds NaN or infinite"):
                verify_gguf.check_set([path])
