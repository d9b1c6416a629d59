"""What leaves the machine says nothing of it: cards, receipts, outputs, lock; and what an output holds is told as it is."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.translation import Reader
from llamacpp_orchestrator.translation import card
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import held
from llamacpp_orchestrator.verify.gguf import Contents
from llamacpp_orchestrator.verify.gguf import Tensor
from tests.support import makers
from tests.support.answer import Answer

BASE = "base_model: org/base\n"


@pytest.mark.parametrize(
    ("front", "shown"),
    [
        (BASE, None),
        ("base_model: https://host/org/base\nurl: http://host/a\n", None),
        ("tags:\n- base_model:adapter:org/base\n- lora\n", None),
        ("description: either/or, see ./docs\n", None),
        ("base_model: [\n", None),
        (f"merged_from: /home/me/base\n{BASE}", BASE),
        ("base_model: /home/me/base\n", ""),
        ("base_model: C:\\Users\\me\\base\nlicense: mit\n", "license: mit\n"),
        ("base_model:\n- ~/base\n- org/other\n", "base_model:\n- org/other\n"),
        ("base_model: file:///home/me/base\nversion: 1.10\n", "version: 1.1\n"),
        ("tags:\n- base_model:adapter:/home/me/base\n- lora\n", "tags:\n- lora\n"),
        ("datasets: [../data]\nlanguage:\n- no\n- en\n", "language:\n- 'no'\n- en\n"),
    ],
)
def test_a_card_without_folders_of_a_machine(front: str, shown: str | None) -> None:
    text = f"---\n{front}---\n\n# Mine, of /home/me/base\n"
    found = card.card({"README.md": text}.get, Reader())
    assert found == ({} if shown is None else {"README.md": f"---\n{shown}---\n"})


@pytest.mark.parametrize(
    ("named", "fires"),
    [
        ("org/model", False), ("model", False), (None, False), (3, False),
        ("/home/me/model", False),  # upstream sees that it is no name
        ("/model", True), ("~/model", True), ("./model", True), ("C:\\Users\\me\\Llama-3B", True),
    ],
)  # fmt: skip
def test_a_config_without_a_folder_for_a_name(named: Any, fires: bool) -> None:
    config = {"_name_or_path": named, "model_type": "llama"}
    assert card.name_or_path({"config.json": config}.get, Reader()) == ({"config.json": {"model_type": "llama"}} if fires else {})


@pytest.mark.parametrize(
    ("args", "kept", "file"),
    [
        ((), (), ""),
        (("--metadata", "a.json", "--no-lazy"), ("--no-lazy",), "a.json"),
        (("--verbose", "--metadata=a.json"), ("--verbose",), "a.json"),
        (("--meta", "a.json"), (), "a.json"),
        (("--mmproj", "--mtp"), ("--mmproj", "--mtp"), ""),
    ],
)
def test_the_file_of_metadata_among_arguments(args: tuple[str, ...], kept: tuple[str, ...], file: str) -> None:
    assert commands.metadata(args) == (kept, file)


def contents(*types: int, **metadata: Any) -> Contents:
    tensors = {str(at): (Path(), Tensor(str(at), kind, 0, 0, (4, 4))) for at, kind in enumerate(types)}
    return Contents(metadata=metadata, tensors=tensors)


@pytest.mark.parametrize(
    ("kind", "asked", "types", "said"),
    [
        ("adapter", "f16", (1, 1), ""),
        ("adapter", "f16", (0, 0), "as f16 says, they are 2 f32; this tag's script does not heed --outtype"),
        ("adapter", "auto", (30,), ""),
        ("model", "bf16", (30, 0), ""),
        ("model", "tq1_0", (34, 1), ""),
        ("quantized", "Q4_K_M", (12, 14), ""),
        ("quantized", "IQ2_M", (22, 21), ""),
        ("quantized", "MXFP4_MOE", (39, 8), ""),
        ("quantized", "MXFP4_MOE", (8, 8, 8), "as MXFP4_MOE says, they are 3 q8_0; that type is for stacked experts"),
        ("quantized", "15", (12,), ""),
        ("quantized", "Q4_0", (), ""),
    ],
)
def test_what_an_output_holds_against_its_name(kind: str, asked: str, types: tuple[int, ...], said: str) -> None:
    found = held.notes(kind, asked, contents(*types))
    assert bool(found) is bool(said) and all(said in note for note in found)


@pytest.mark.parametrize(("dataset", "told"), [("/home/me/wiki.txt", True), ("wiki.txt", False), (None, False)])
def test_a_path_that_a_matrix_brings_along_is_told(dataset: str | None, told: bool) -> None:
    found = held.notes("quantized", "Q8_0", contents(8, **{"quantize.imatrix.dataset": dataset}))
    assert bool(found) is told


@pytest.mark.slow
def test_what_leaves_the_machine_says_nothing_of_it(
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    copy: Callable[..., Path],
    built: dict[str, Any],
    world: Path,
    shared_cache: Path,
) -> None:
    model, mine = copy("tiny-llama", "my-model"), copy("lora-a", "bot")
    front = f"base_model: {world}/base\ntags:\n- base_model:adapter:{world}/base\n- lora\n"
    for folder in (model, mine):
        (folder / "README.md").write_text(f"---\n{front}---\n")
    makers.edit(mine / "adapter_config.json", base_model_name_or_path=f"{world}/base", use_rslora=True)
    makers.edit(model / "config.json", _name_or_path=f"/{world.name}")
    (world / "meta.json").write_text(json.dumps({"general.author": "Somebody", "general.name": "Mine"}))
    (world / "words.txt").write_text("the of and to in is that was " * 400)
    keys = {"outtype": "f16", "args": ["--metadata", "meta.json"], "quantize": ["Q8_0"], "loras": ["./bot"]}
    file = job({"source": "./my-model", **keys, "imatrix": {"text": "words.txt", "chunks": 1}}, binaries=built)
    answer = orchestrate("run", file)
    assert answer.code == 0, answer.err
    outputs = sorted((world / "dist").iterdir())
    assert [path.suffix for path in outputs].count(".gguf") == 4
    places = (str(world), str(shared_cache), str(Path.home()), f"/{getpass.getuser()}/")
    for path in (*outputs, world / "job.lock.yaml"):
        raw = path.read_bytes()
        assert not [place for place in places if place.encode() in raw], path
    made = {
        path.name: gguf.contents([path]).metadata for path in outputs if path.suffix == ".gguf" and "imatrix" not in path.name
    }
    base = made["my-model-f16.gguf"]
    assert (base["general.name"], base["general.author"]) == ("Mine", "Somebody")
    assert not [key for found in made.values() for key in found if key.startswith(("general.base_model", "general.basename"))]
    assert made["my-model-bot-lora-f16.gguf"]["general.tags"] == ["lora"]
    for path in outputs:
        if path.name.endswith(".gguf.receipt.json"):
            receipt = pipeline_receipt.read(path.with_name(path.name.removesuffix(pipeline_receipt.SUFFIX)))
            assert receipt and all(len(each.sha256) == 64 for each in receipt.inputs)
            assert not [word for word in receipt.command if word.startswith(("/", "~")) or ":\\" in word]
    receipt = pipeline_receipt.read(world / "dist" / "my-model-f16.gguf")
    assert receipt and {each.source for each in receipt.inputs if each.name.startswith("my-model/")} == {"my-model"}
    assert receipt.command[-2:] == ("--metadata", "{metadata}") and "--model-name" not in receipt.command
    # The file of metadata is an input: what it says anew is written anew.
    assert file_sha256(world / "meta.json") in [each.sha256 for each in receipt.inputs]
    assert orchestrate("verify", "dist", "--deep").code == 0
    (world / "meta.json").write_text('{"general.author": "Another"}')
    assert orchestrate("run", file).out.count("built") >= 1
    again = gguf.contents([world / "dist" / "my-model-f16.gguf"]).metadata
    assert (again["general.name"], again["general.author"]) == ("my-model", "Another")
    (world / "meta.json").unlink()
    answer = orchestrate("run", file)
    assert answer.code == 2 and "--metadata meta.json is not there" in answer.err
