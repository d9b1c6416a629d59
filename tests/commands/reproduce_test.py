"""A receipt leads back to its job: outputs are made again and compared, their sources hashed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml

from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.verify import gguf
from tests.support.answer import Answer
from tests.support.folders import sums

Run = Callable[..., Answer]


@pytest.fixture
def made(
    orchestrate: Run, job: Callable[..., Path], copy: Callable[..., Path], data: Path, once: Callable[..., None], world: Path
) -> Path:
    """A finished job with a base and an adapter; the base's file."""

    def make() -> None:
        copy("tiny-llama")
        file = job({"source": "./model", "name": "tiny", "outtype": ["f16", "f32"], "loras": [{"source": str(data / "lora-a")}]})
        answer = orchestrate("run", file)
        assert answer.code == 0, answer.err

    once("made", make)
    return world / "dist" / "tiny-f16.gguf"


def forge(path: Path, spot: bytes, by: bytes) -> None:
    """Change bytes of an output and let its receipt agree, as somebody would who wants to hide it."""
    content = path.read_bytes()
    assert content.count(spot) == 1 and len(spot) == len(by)
    path.write_bytes(content.replace(spot, by))
    receipt = pipeline_receipt.read(path)
    assert receipt
    pipeline_receipt.write(path, msgspec.structs.replace(receipt, files=(pipeline_receipt.record(path),)))


@pytest.mark.slow
def test_an_output_is_made_again_and_is_identical(made: Path, orchestrate: Run) -> None:
    before = sums(made.parent, "*")
    for path in (made, pipeline_receipt.receipt_path(made), made.parent / "tiny-lora-a-lora-f16.gguf"):
        answer = orchestrate("reproduce", path, "--offline")
        assert answer.code == 0, answer.err
        assert answer.out.startswith("identical ") and "f32" not in answer.err
    assert sums(made.parent, "*") == before
    shown = orchestrate("reproduce", made, "--json").json()
    assert shown[0]["made"] == shown[0]["recorded"] == before[made.name]


def test_a_forged_output_is_told_by_key_and_by_tensor(made: Path, orchestrate: Run) -> None:
    content = made.read_bytes()
    pieces = (content[at : at + 32] for at in range(len(content) // 2, len(content), 32))
    piece = next(piece for piece in pieces if content.count(piece) == 1 and content.count(bytes(byte ^ 1 for byte in piece)) == 0)
    forge(made, piece, bytes(byte ^ 1 for byte in piece))
    forge(
        made,
        b"general.name\x08\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00tiny",
        b"general.name\x08\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00Tiny",
    )
    assert orchestrate("verify", made).code == 0
    answer = orchestrate("reproduce", made)
    assert answer.code == 1 and answer.out.startswith("differs ")
    assert "metadata general.name: 'Tiny', now 'tiny'" in answer.out
    assert answer.out.count("tensor ") == 1 and "other values" in answer.out


def test_what_leads_nowhere_is_an_error_with_a_way_out(made: Path, orchestrate: Run, world: Path) -> None:
    (world / "nothing.gguf").write_bytes(b"x")
    assert "no readable receipt" in orchestrate("reproduce", world / "nothing.gguf").err
    file, lock = world / "job.yaml", world / "job.lock.yaml"
    moved = file.rename(world / "moved.yaml")
    answer = orchestrate("reproduce", made)
    assert answer.code == 2 and "--job FILE" in answer.err
    assert orchestrate("reproduce", made, "--job", moved).code == 3
    lock.rename(world / "moved.lock.yaml")
    assert orchestrate("reproduce", made, "--job", moved).code == 0
    moved.write_text(moved.read_text().replace("f16", "bf16", 1))
    answer = orchestrate("reproduce", made, "--job", moved)
    assert answer.code == 2 and "makes no tiny-f16.gguf any more" in answer.err


def test_deep_verification_hashes_the_sources_again(made: Path, orchestrate: Run, world: Path) -> None:
    assert orchestrate("verify", made, "--deep").code == 0
    weights = world / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert orchestrate("verify", made).code == 0
    answer = orchestrate("verify", made, "--deep")
    assert answer.code == 1 and "model.safetensors has digest" in answer.out and "locked" in answer.out
    weights.unlink()
    assert "is gone" in orchestrate("verify", made, "--deep").out


def test_deep_verification_knows_the_files_of_the_environment(made: Path, orchestrate: Run, shared_cache: Path) -> None:
    init = next((shared_cache / "environments").glob("*/venv/**/site-packages/tqdm/__init__.py"))
    # Moved aside, for the file may be one with that in uv's own cache.
    kept = init.rename(init.with_suffix(".kept"))
    try:
        init.write_text("print('other')\n")
        venv.altered.cache_clear()
        answer = orchestrate("verify", made, "--deep")
        assert answer.code == 1 and "package tqdm-" in answer.out and "was changed after it was installed" in answer.out
    finally:
        kept.rename(init)
        venv.altered.cache_clear()
    assert orchestrate("verify", made, "--deep").code == 0


def test_what_becomes_of_the_rest_of_the_lock_is_no_matter(made: Path, orchestrate: Run, data: Path) -> None:
    file = made.parent.parent / "job.yaml"
    asked = yaml.safe_load(file.read_text())
    asked["models"][0]["loras"].append({"source": str(data / "lora-b")})
    file.write_text(yaml.safe_dump(asked))
    assert orchestrate("lock", file).code == 0
    assert orchestrate("reproduce", made, "--offline").code == 0
    asked["models"][0]["name"] = "other"
    file.write_text(yaml.safe_dump(asked))
    answer = orchestrate("reproduce", made, "--offline")
    assert answer.code == 3 and "was made with lock" in answer.err


@pytest.mark.slow
def test_a_level_is_checked_again_against_the_source(made: Path, orchestrate: Run, world: Path) -> None:
    folder = made.parent
    answer = orchestrate("verify", folder, "--level", "content")
    assert answer.code == 0, answer.err
    assert not [path for path in folder.iterdir() if path.suffix not in (".gguf", ".json")] and not list(folder.glob("a*.json"))
    place = gguf.contents([made]).tensors["blk.1.ffn_up.weight"][1]
    content = made.read_bytes()
    made.write_bytes(content[: place.start] + bytes(place.size) + content[place.start + place.size :])
    receipt = pipeline_receipt.read(made)
    assert receipt
    pipeline_receipt.write(made, msgspec.structs.replace(receipt, files=(pipeline_receipt.record(made),)))
    assert orchestrate("verify", made).code == 0
    answer = orchestrate("verify", made, "--level", "content")
    assert answer.code == 1 and "blk.1.ffn_up.weight has 8192 zeros in 8192 numbers" in answer.out
    answer = orchestrate("verify", made, "--level", "load")
    assert answer.code == 2 and "programs" in answer.err, answer.err
    (world / "job.yaml").write_text((world / "job.yaml").read_text().replace("tiny", "small"))
    answer = orchestrate("verify", made, "--level", "content")
    assert answer.code == 2 and "makes no tiny-f16.gguf any more" in answer.err


def test_a_check_shows_a_source_again_as_it_was_locked(made: Path, orchestrate: Run, world: Path, shared_cache: Path) -> None:
    shutil.rmtree(shared_cache / "views")
    answer = orchestrate("verify", made.parent, "--level", "content")
    assert answer.code == 0, answer.err
    weights = world / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for path in (made, made.with_name("tiny-lora-a-lora-f16.gguf")):
        answer = orchestrate("verify", path, "--level", "content")
        assert answer.code == 1 and "model.safetensors has changed since it was locked" in answer.err


def test_a_check_names_the_way_to_what_is_not_here(made: Path, orchestrate: Run, world: Path, shared_cache: Path) -> None:
    for kind in ("source", "environments"):
        away = (shared_cache / kind).rename(shared_cache / "away")
        answer = orchestrate("verify", made, "--level", "content")
        away.rename(shared_cache / kind)
        assert answer.code == 2 and "orchestrate setup job.yaml" in answer.err, answer.err
    assert orchestrate("verify", made, "--level", "content").code == 0


def test_nothing_of_a_changed_tree_is_run_for_a_check(made: Path, orchestrate: Run, world: Path, shared_cache: Path) -> None:
    lock = lock_file.read(world / "job.lock.yaml")
    assert lock
    script = shared_cache / "source" / lock.llama_cpp.key() / "gguf-py" / "gguf" / "__init__.py"
    before = script.read_bytes()
    script.write_bytes(before + f"\nopen({str(world / 'MARK')!r}, 'w')\n".encode())
    assert orchestrate("verify", made, "--level", "content").code == 0
    assert not (world / "MARK").exists() and script.read_bytes() == before
