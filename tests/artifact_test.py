"""Receipts: what they say, when an output is current, and what is never overwritten."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator import artifact
from llamacpp_orchestrator.errors import JobError


def gguf(number: int = 0, count: int = 1) -> bytes:
    """A file with one tensor of four numbers, or one shard of `count` such files."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 4) + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for key, value in (("split.no", number), ("split.count", count), ("split.tensors.count", count)):
        head += text(key) + struct.pack("<IH", 2, value)
    head += text(f"t{number}") + struct.pack("<IQIQ", 1, 4, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(32)


def receipt(*files: Path) -> artifact.Receipt:
    return artifact.Receipt(
        path="x.gguf",
        kind="model",
        type="f16",
        recipe="r1",
        command=("{python}", "convert_hf_to_gguf.py"),
        inputs=(artifact.Input(name="m/config.json", digest="00"),),
        versions=artifact.Versions(tool="1", tag="b1", commit="c", tree="t", environment="e"),
        files=tuple(map(artifact.record, files)),
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf())
    artifact.write(path, receipt(path))
    return path


def test_a_receipt_is_read_back_and_always_the_same(made: Path) -> None:
    beside = made.with_name("x.gguf.receipt.json")
    first = beside.read_bytes()
    found = artifact.read(made)
    assert found == receipt(made)
    artifact.write(made, receipt(made))
    assert beside.read_bytes() == first
    assert first.endswith(b"}\n") and first.startswith(b'{\n  "command": [\n') and b"\r" not in first


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:50],
        lambda text: b"",
        lambda text: b"\xff" + text,
        lambda text: b"[" * 100_000,
        lambda text: text.replace(b'"format": 1', b'"format": 2'),
        lambda text: text.replace(b'"name": "x.gguf"', b'"name": "../x.gguf"'),
        lambda text: text.replace(b'"recipe"', b'"receipt"'),
    ],
)
def test_a_damaged_receipt_counts_as_none(made: Path, damage: object) -> None:
    beside = artifact.receipt_path(made)
    beside.write_bytes(damage(beside.read_bytes()))  # type: ignore[operator]
    assert artifact.read(made) is None
    assert not artifact.is_current(artifact.read(made), "r1", made.parent)
    assert "no readable receipt" in artifact.recheck(made)[0]


def test_a_job_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"job\.yaml is a job or its lock, not an output"):
        artifact.outputs(tmp_path / "job.yaml")


def test_the_longest_names_have_receipts(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{'é' * 100}{'x' * 44}{last}.gguf" for last in "ab")
    assert artifact.receipt_path(first) != artifact.receipt_path(second)
    for path in (first, second):
        path.write_bytes(gguf())
        artifact.write(path, receipt(path))
        assert artifact.recheck(path) == []
        assert artifact.recheck(artifact.receipt_path(path)) == []


def test_current(made: Path) -> None:
    known = artifact.read(made)
    assert artifact.is_current(known, "r1", made.parent)
    assert not artifact.is_current(known, "r2", made.parent)
    assert not artifact.is_current(None, "r1", made.parent)
    os.utime(made, ns=(1, 1))
    assert not artifact.is_current(known, "r1", made.parent)
    made.unlink()
    assert not artifact.is_current(known, "r1", made.parent)


def test_what_may_be_written(made: Path, tmp_path: Path) -> None:
    known = artifact.read(made)
    artifact.may_write(tmp_path / "new.gguf", None, False)
    artifact.may_write(made, known, False)
    os.utime(made, ns=(1, 1))
    artifact.may_write(made, known, False)
    with pytest.raises(JobError, match="nothing says that orchestrate made it"):
        artifact.may_write(made, None, False)
    (tmp_path / "other.gguf").touch()
    with pytest.raises(JobError, match="nothing says"):
        artifact.may_write(tmp_path / "other.gguf", known, False)
    made.write_bytes(made.read_bytes()[:-1] + b"\x01")
    with pytest.raises(JobError, match="was changed"):
        artifact.may_write(made, known, False)
    artifact.may_write(made, known, True)
    with pytest.raises(JobError, match="is a folder"):
        artifact.may_write(tmp_path, None, True)


def test_recheck(made: Path) -> None:
    assert artifact.recheck(made) == []
    good = made.read_bytes()
    made.write_bytes(good[:-1] + b"\x01")
    assert "sha256" in artifact.recheck(made)[0]
    made.write_bytes(good + b"\x00")
    assert f"has {len(good) + 1} bytes, the receipt says {len(good)}" in artifact.recheck(made)[0]
    made.unlink()
    assert "cannot be read" in artifact.recheck(made)[0]
    made.write_bytes(b"no GGUF at all")
    artifact.write(made, receipt(made))
    assert "is no GGUF" in artifact.recheck(made)[0]


def test_shards_share_the_receipt_of_their_output(tmp_path: Path) -> None:
    files = [tmp_path / f"x-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, file in enumerate(files):
        file.write_bytes(gguf(number, 2))
    artifact.write(tmp_path / "x.gguf", receipt(*files))
    assert artifact.recheck(files[1]) == artifact.recheck(tmp_path / "x.gguf") == []
    files[0].unlink()
    assert "x-00001-of-00002.gguf cannot be read" in artifact.recheck(files[1])[0]


def test_unknown_keys_of_a_later_version_do_not_disturb(made: Path) -> None:
    beside = artifact.receipt_path(made)
    known = msgspec.json.decode(beside.read_bytes())
    beside.write_bytes(msgspec.json.encode({**known, "later": 1}))
    assert artifact.read(made) == receipt(made)


def test_a_receipt_from_before_the_levels_is_read_and_current(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"x")
    file = artifact.record(tmp_path / "x.gguf")
    versions = artifact.Versions(tool="0", tag="b1", commit="", tree="", environment="")
    old = artifact.Receipt(
        path="x.gguf", kind="model", type="f16", recipe="r", command=(), inputs=(), versions=versions, files=(file,)
    )
    said = msgspec.to_builtins(old)
    del said["levels"]
    artifact.receipt_path(tmp_path / "x.gguf").write_bytes(msgspec.json.encode(said))
    assert artifact.read(tmp_path / "x.gguf") == old and artifact.is_current(old, "r", tmp_path)
