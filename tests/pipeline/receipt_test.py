"""Receipts: what they say, when an output is current, and what is never overwritten."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt


def gguf(number: int = 0, count: int = 1) -> bytes:
    """A file with one tensor of four numbers, or one shard of `count` such files."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 4) + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for key, value in (("split.no", number), ("split.count", count), ("split.tensors.count", count)):
        head += text(key) + struct.pack("<IH", 2, value)
    head += text(f"t{number}") + struct.pack("<IQIQ", 1, 4, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(32)


def receipt(*files: Path) -> pipeline_receipt.Receipt:
    return pipeline_receipt.Receipt(
        path="x.gguf",
        kind="model",
        type="f16",
        recipe="r1",
        command=("{python}", "convert_hf_to_gguf.py"),
        inputs=(pipeline_receipt.Input(name="m/config.json", digest="00"),),
        versions=pipeline_receipt.Versions(tool="1", tag="b1", commit="c", tree="t", environment="e"),
        files=tuple(map(pipeline_receipt.record, files)),
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf())
    pipeline_receipt.write(path, receipt(path))
    return path


def test_a_receipt_is_read_back_and_always_the_same(made: Path) -> None:
    beside = made.with_name("x.gguf.receipt.json")
    first = beside.read_bytes()
    found = pipeline_receipt.read(made)
    assert found == receipt(made)
    pipeline_receipt.write(made, receipt(made))
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
    beside = pipeline_receipt.receipt_path(made)
    beside.write_bytes(damage(beside.read_bytes()))  # type: ignore[operator]
    assert pipeline_receipt.read(made) is None
    assert not pipeline_receipt.is_current(pipeline_receipt.read(made), "r1", made.parent)
    assert "no readable receipt" in pipeline_receipt.recheck(made)[0]


def test_what_reading_an_output_has_found_comes_with_what_is_wrong_with_it(made: Path, tmp_path: Path) -> None:
    wrong, checks = pipeline_receipt.examine(made)
    assert (wrong, [one.sha256 for one in checks]) == ([], [receipt(made).files[0].sha256])
    made.write_bytes(made.read_bytes()[:-32] + b"\x00\x00\xc0\x7f" + bytes(28))
    wrong, checks = pipeline_receipt.examine(made)
    assert "sha256" in wrong[0] and checks == (), "what cannot be read to its end is compared all the same"


def test_a_job_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"job\.yaml is a job or its lock, not an output"):
        pipeline_receipt.outputs(tmp_path / "job.yaml")


def test_the_longest_names_have_receipts(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{'é' * 100}{'x' * 44}{last}.gguf" for last in "ab")
    assert pipeline_receipt.receipt_path(first) != pipeline_receipt.receipt_path(second)
    for path in (first, second):
        path.write_bytes(gguf())
        pipeline_receipt.write(path, msgspec.structs.replace(receipt(path), path=path.name))
        assert pipeline_receipt.recheck(path) == []
        assert pipeline_receipt.recheck(pipeline_receipt.receipt_path(path)) == []


def test_current(made: Path) -> None:
    known = pipeline_receipt.read(made)
    assert pipeline_receipt.is_current(known, "r1", made.parent)
    assert not pipeline_receipt.is_current(known, "r2", made.parent)
    assert not pipeline_receipt.is_current(None, "r1", made.parent)
    os.utime(made, ns=(1, 1))
    assert not pipeline_receipt.is_current(known, "r1", made.parent)
    made.unlink()
    assert not pipeline_receipt.is_current(known, "r1", made.parent)


def test_a_copy_with_other_times_is_known_by_its_digest(made: Path) -> None:
    os.utime(made, ns=(1, 1))
    assert not pipeline_receipt.recognise(made, {"r2"}) and not pipeline_receipt.is_current(
        pipeline_receipt.read(made), "r1", made.parent
    )
    assert pipeline_receipt.recognise(made, {"r1", "r2"})
    assert pipeline_receipt.is_current(pipeline_receipt.read(made), "r1", made.parent)
    made.write_bytes(made.read_bytes()[:-1] + b"\x01")
    assert not pipeline_receipt.recognise(made, {"r1"})
    made.unlink()
    assert not pipeline_receipt.recognise(made, {"r1"})


def test_what_may_be_written(made: Path, tmp_path: Path) -> None:
    known = pipeline_receipt.read(made)
    pipeline_receipt.may_write(tmp_path / "new.gguf", None, False)
    pipeline_receipt.may_write(made, known, False)
    os.utime(made, ns=(1, 1))
    pipeline_receipt.may_write(made, known, False)
    with pytest.raises(JobError, match="nothing says that orchestrate made it"):
        pipeline_receipt.may_write(made, None, False)
    (tmp_path / "other.gguf").touch()
    with pytest.raises(JobError, match="nothing says"):
        pipeline_receipt.may_write(tmp_path / "other.gguf", known, False)
    made.write_bytes(made.read_bytes()[:-1] + b"\x01")
    with pytest.raises(JobError, match="was changed"):
        pipeline_receipt.may_write(made, known, False)
    pipeline_receipt.may_write(made, known, True)
    with pytest.raises(JobError, match="is a folder"):
        pipeline_receipt.may_write(tmp_path, None, True)
    with pytest.raises(JobError, match="is a pipe or a device"):
        pipeline_receipt.may_write(Path(os.devnull), None, True)


def test_recheck(made: Path) -> None:
    assert pipeline_receipt.recheck(made) == []
    good = made.read_bytes()
    made.write_bytes(good[:-1] + b"\x01")
    assert "sha256" in pipeline_receipt.recheck(made)[0]
    made.write_bytes(good + b"\x00")
    assert f"has {len(good) + 1} bytes, the receipt says {len(good)}" in pipeline_receipt.recheck(made)[0]
    made.unlink()
    assert "cannot be read" in pipeline_receipt.recheck(made)[0]
    made.write_bytes(b"no GGUF at all")
    pipeline_receipt.write(made, receipt(made))
    assert "is no GGUF" in pipeline_receipt.recheck(made)[0]


def test_shards_share_the_receipt_of_their_output(tmp_path: Path) -> None:
    files = [tmp_path / f"x-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, file in enumerate(files):
        file.write_bytes(gguf(number, 2))
    pipeline_receipt.write(tmp_path / "x.gguf", receipt(*files))
    assert pipeline_receipt.recheck(files[1]) == pipeline_receipt.recheck(tmp_path / "x.gguf") == []
    files[0].unlink()
    assert "x-00001-of-00002.gguf cannot be read" in pipeline_receipt.recheck(files[1])[0]


def test_a_receipt_vouches_for_its_own_output_alone(made: Path) -> None:
    text = pipeline_receipt.receipt_path(made).read_bytes()
    other = made.with_name("y.gguf")
    other.write_bytes(made.read_bytes()[:-1])
    pipeline_receipt.receipt_path(other).write_bytes(text)
    assert pipeline_receipt.read(other) is None
    assert "y.gguf has a receipt beside it that is of x.gguf" in pipeline_receipt.recheck(other)[0]
    pipeline_receipt.receipt_path(other).write_bytes(text.replace(b'"path": "x.gguf"', b'"path": "y.gguf"'))
    assert pipeline_receipt.read(other) is None, "the file that it names is another's"
    pipeline_receipt.receipt_path(other).write_bytes(text.replace(b'"x.gguf"', b'"y.gguf"'))
    assert "y.gguf has 223 bytes" in pipeline_receipt.recheck(other)[0]


def test_what_has_the_name_of_a_shard_is_no_file_of_the_receipt(made: Path) -> None:
    stray = made.with_name("x-00001-of-00002.gguf")
    stray.write_bytes(gguf(0, 2))
    assert pipeline_receipt.recheck(stray) == ["x-00001-of-00002.gguf is none of the files that its receipt names"]


def test_unknown_keys_of_a_later_version_do_not_disturb(made: Path) -> None:
    beside = pipeline_receipt.receipt_path(made)
    known = msgspec.json.decode(beside.read_bytes())
    beside.write_bytes(msgspec.json.encode({**known, "later": 1}))
    assert pipeline_receipt.read(made) == receipt(made)


def test_a_receipt_from_before_the_levels_is_read_and_current(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"x")
    file = pipeline_receipt.record(tmp_path / "x.gguf")
    versions = pipeline_receipt.Versions(tool="0", tag="b1", commit="", tree="", environment="")
    old = pipeline_receipt.Receipt(
        path="x.gguf", kind="model", type="f16", recipe="r", command=(), inputs=(), versions=versions, files=(file,)
    )
    said = msgspec.to_builtins(old)
    del said["levels"]
    pipeline_receipt.receipt_path(tmp_path / "x.gguf").write_bytes(msgspec.json.encode(said))
    assert pipeline_receipt.read(tmp_path / "x.gguf") == old and pipeline_receipt.is_current(old, "r", tmp_path)


@pytest.mark.parametrize("name", ["..", "../x", "/x", "a/../b", "a//b", "./a", "a/", "", "C:x", "a\\b"])
def test_a_receipt_vouches_for_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf())
    good = receipt(path)
    pipeline_receipt.write(path, good)
    assert pipeline_receipt.read(path) == good
    inner = msgspec.structs.replace(good.files[0], name="sub/x.json")
    pipeline_receipt.write(path, msgspec.structs.replace(good, files=(*good.files, inner)))
    assert pipeline_receipt.read(path)
    pipeline_receipt.write(path, msgspec.structs.replace(good, files=(*good.files, msgspec.structs.replace(inner, name=name))))
    assert pipeline_receipt.read(path) is None
