"""The small files of a merged model: copies, an index, a tokenizer of the adapter, and a config that says what has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.merge import plan
from llamacpp_orchestrator.models.weight_files import INDEX
from tests.support.merging import TIED
from tests.support.merging import Q
from tests.support.merging import low_rank
from tests.support.merging import make_adapter
from tests.support.merging import make_base
from tests.support.merging import save

E = "model.embed_tokens"
LOOK_UP = {f"{E}.lora_embedding_A": (2, 16), f"{E}.lora_embedding_B": (8, 2)}
TOKENS = {f"{E}.token_adapter.trainable_tokens_delta": (1, 8)}


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_all_else_of_the_base_is_copied(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    small = (
        "generation_config.json",
        "README.md",
        "tokenizer.json",
        "1_Pooling/config.json",
        "additional_chat_templates/tools.jinja",
    )
    put(base, *small, ".cache/x", "training.bin")
    save(base / "1_Dense" / "model.safetensors", {"linear.weight": (2, 2)})
    mine = make_adapter(tmp_path / "mine", low_rank(Q, 8, 8))
    put(mine.folder, "tokenizer.json", "README.md")
    found = plan.plan(base, "base", [mine])
    assert found.copies == {name: str(base / name) for name in (*small, "config.json", "1_Dense/model.safetensors")}
    assert not found.texts and not found.notes


def test_shards_keep_their_names_and_an_index_that_still_holds(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", TIED, tie_word_embeddings=True)
    (base / "model.safetensors").rename(base / "model-00002-of-00002.safetensors")
    save(base / "model-00001-of-00002.safetensors", {"first.weight": (4, 4)}, "F32")
    places = dict.fromkeys(TIED, "model-00002-of-00002.safetensors") | {"first.weight": "model-00001-of-00002.safetensors"}
    index = {"metadata": {"total_size": 1, "total_parameters": 9}, "weight_map": places}
    (base / INDEX).write_text(json.dumps(index))
    found = plan.plan(base, "base", [make_adapter(tmp_path / "mine", low_rank(Q, 8, 8))])
    assert [file.path for file in found.files] == sorted({*places.values()}) and INDEX in found.copies and not found.texts
    parted = plan.plan(base, "base", [make_adapter(tmp_path / "parted", LOOK_UP)])
    assert INDEX not in parted.copies and "config.json" not in parted.copies
    written = json.loads(parted.texts[INDEX])
    assert written["weight_map"] == places | {"lm_head.weight": "model-00002-of-00002.safetensors"}
    sizes = (16 * 8 * 2 + 2 * (64 + 8 + 96 + 8) + 8) * 2 + 16 * 4
    assert written["metadata"] == {"total_size": sizes, "total_parameters": 9}
    (base / INDEX).write_text(json.dumps(index | {"metadata": None}))
    again = plan.plan(base, "base", [make_adapter(tmp_path / "parted", LOOK_UP)])
    assert json.loads(again.texts[INDEX])["metadata"] == {"total_size": sizes}


@pytest.mark.parametrize(
    ("files", "comes"),
    [
        (("tokenizer.json", "tokenizer_config.json"), True),
        (("tokenizer.model",), True),
        (("chat_template.jinja", "tokenizer_config.json"), False),
        ((), False),
    ],
)
def test_the_tokenizer_of_an_adapter_comes_with_its_tokens(files: tuple[str, ...], comes: bool, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    put(base, "tokenizer.json", "chat_template.jinja", "special_tokens_map.json", "preprocessor_config.json")
    mine = make_adapter(tmp_path / "mine", TOKENS, trainable_token_indices=[3])
    put(mine.folder, *files)
    found = plan.plan(base, "base", [make_adapter(tmp_path / "first", low_rank(Q, 8, 8)), mine])
    own = {name for name, origin in found.copies.items() if origin.startswith(str(mine.folder))}
    assert own == (set(files) if comes else set()) and "preprocessor_config.json" in found.copies
    assert ("chat_template.jinja" in found.copies) != comes
    assert any("are those of the adapter mine" in note for note in found.notes) == comes


def test_of_two_tokenizers_that_of_the_larger_vocabulary_counts(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", TIED)
    rows = make_adapter(tmp_path / "rows", TOKENS, trainable_token_indices=[3])
    more = make_adapter(tmp_path / "more", {f"{E}.weight": (18, 8)})
    put(rows.folder, "tokenizer.json")
    put(more.folder, "tokenizer.json")
    found = plan.plan(base, "base", [rows, more])
    assert found.copies["tokenizer.json"] == str(more.folder / "tokenizer.json")
    assert found.notes[-1] == "the tokenizer of the adapter rows is not used"


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"vocab_size": 16}, {"vocab_size": 18}),
        ({"vocab_size": 16, "text_config": {"vocab_size": 16}}, {"vocab_size": 18, "text_config": {"vocab_size": 18}}),
        ({"vocab_size": 16, "text_config": {"x": 1}}, {"vocab_size": 18, "text_config": {"x": 1}}),
        ({"text_config": {"x": 1}}, {"text_config": {"x": 1, "vocab_size": 18}}),
        ({}, {"vocab_size": 18}),
    ],
)
def test_the_size_of_a_vocabulary_stands_where_it_is_read(
    config: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", TIED)
    (base / "config.json").write_text(json.dumps({"n": [1.5, None], **config}))
    mine = make_adapter(tmp_path / "mine", {f"{E}.weight": (18, 8)})
    found = plan.plan(base, "base", [mine])
    assert json.loads(found.texts["config.json"]) == {"n": [1.5, None], **changed}
    assert found.notes == ("the vocabulary has 18 tokens now, and no adapter brings a tokenizer: the base's stays",)
