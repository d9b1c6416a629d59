"""Which of the user's own folders and files a chain needs, and what of them a worker has."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.cluster import sources
from llamacpp_orchestrator.cluster.records import Content
from llamacpp_orchestrator.cluster.records import Handshake
from llamacpp_orchestrator.cluster.records import Order
from llamacpp_orchestrator.cluster.records import Source
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.source.pin import SourcePin
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import Store

JOB = b"""
version: 1
llama_cpp: {tag: b11434}
models:
  - {source: ./a, outtype: [f16, q8_0], loras: [./x, ./y], args: [--metadata, ./card.json]}
  - {source: org/b, outtype: f16, quantize: Q4_K_M, imatrix: {text: ./words.txt}, loras: ./x}
"""
PIN = SourcePin(tag="b11434", repo="", tree="0" * 64, commit="0" * 40)


def here(folder: Path) -> Settings:
    """A machine with a cache in a folder."""
    return settings.load({"ORCHESTRATE_CACHE_DIR": str(folder / "cache")})


def order(file: Path, *more: Source, lock: Lock | None = None) -> Order:
    handshake = Handshake(run="r", version="")
    return Order(handshake=handshake, job=str(file), text=JOB, lock=lock or Lock(llama_cpp=PIN, models=()), sources=more)


@pytest.mark.parametrize(
    "outputs, texts",
    [
        (("a-f16.gguf",), ["./a", "./card.json"]),
        (("a-x-lora-f16.gguf",), ["./a", "./x", "./card.json"]),
        (("b-Q4_K_M.gguf",), ["./words.txt"]),
        (("b-x-lora-f16.gguf", "a-y-lora-f16.gguf"), ["./a", "./y", "./x", "./words.txt", "./card.json"]),
        ((), []),
    ],
)
def test_a_chain_needs_what_its_own_outputs_are_made_of(outputs: tuple[str, ...], texts: list[str], tmp_path: Path) -> None:
    pinned = sources.pinned(order(tmp_path / "job.yaml"), outputs, here(tmp_path))
    assert sources.texts(pinned.context.job) == texts
    assert pinned.context.file == tmp_path / "job.yaml"


def adapter(folder: Path, text: str = "{}") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(text)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def at(tmp_path: Path) -> tuple[PinnedJob, Source]:
    """A pinned job with the adapter ./x, and that as a source."""
    file, store = tmp_path / "job.yaml", Store(tmp_path / "cache")
    context = Context(job=loader.parse(JOB, file), file=file, settings=here(tmp_path), store=store)
    wanted = records.lora_wanted(context.job.models[0].loras[0])
    pin = local_folders.listed(context, wanted)
    pinned = PinnedJob(context, Lock(llama_cpp=PIN, models=(pin,)))
    files = {item.path: Content(item.size, item.sha256) for item in pin.files}
    return pinned, Source(text="./x", place=str(tmp_path / "x"), files=files)


def test_a_folder_is_here_with_the_same_content_and_no_other(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "x")
    pinned, source = at(tmp_path)
    assert sources.is_here(pinned, source)
    (folder / "README.md").write_text("more that is read")
    assert not sources.is_here(pinned, source)
    (folder / "README.md").unlink()
    (folder / "adapter_config.json").write_text("[]")
    assert not sources.is_here(pinned, source)
    folder.rename(tmp_path / "gone")
    assert not sources.is_here(pinned, source)


def test_what_has_come_is_kept_by_its_content_once_it_is_right(tmp_path: Path) -> None:
    adapter(tmp_path / "x")
    pinned, source = at(tmp_path)
    place = sources.kept(pinned.store, source)
    assert place.name == "x" and sorted(sources.lacking(pinned.store, source, place)) == sorted(source.files)
    for name in source.files:
        part = tmp_path / "part"
        part.write_bytes((tmp_path / "x" / name).read_bytes())
        sources.take(pinned.store, source, name, part)
        assert not part.exists()
    assert not sources.lacking(pinned.store, source, place)
    (tmp_path / "part").write_bytes(b"others")
    with pytest.raises(IntegrityError, match="adapter_config.json is not what was locked"):
        sources.take(pinned.store, source, "adapter_config.json", tmp_path / "part")
    assert not (tmp_path / "part").exists() and not sources.lacking(pinned.store, source, place)


def test_a_file_is_a_source_of_one(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    file, store = tmp_path / "job.yaml", Store(tmp_path / "cache")
    asked = order(file)
    pinned = sources.pinned(asked, ("b-Q4_K_M.gguf",), here(tmp_path))
    (source,) = sources.sources(pinned)
    assert source.files == {".": Content(5, file_sha256(tmp_path / "words.txt"))} and sources.is_here(pinned, source)
    assert sources.kept(store, source).name == "words.txt"
    (tmp_path / "words.txt").write_text("other")
    assert not sources.is_here(pinned, source)
