"""The judge: each kind of adapter as PEFT makes it, merged by its plan, against PEFT; and what several adapters are together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import check
from llamacpp_orchestrator.merge import names
from llamacpp_orchestrator.merge import plan
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.merge.records import Plan
from llamacpp_orchestrator.merge.records import Stored
from llamacpp_orchestrator.merge.records import Update
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from tests.support import ROOT
from tests.support.merging import MODEL
from tests.support.merging import TIED
from tests.support.merging import UP
from tests.support.merging import Q
from tests.support.merging import low_rank
from tests.support.merging import make_adapter
from tests.support.merging import make_base

SCRIPTS = ROOT / "tests" / "inside"
# PEFT 0.21.2 adds the update to the one matrix twice (ensure_weight_tying), or to layers that share it (layer_replication).
WRONG = {"ensure", "ensure-both", "repeated"}
# A difference of products, reckoned in another order than PEFT's product of what it has put side by side;
# PEFT's own sums depend on how many threads it gets.
LAST_PLACE = {"pissa", "olora"}


@pytest.fixture
def kinds(reference: Path, shared_cache: Path, compiled: dict[str, str]) -> Path:
    """The folder of peft_kinds.py, made once in a session."""
    folder = shared_cache / "peft-kinds"
    if not (folder / "kinds.json").is_file():
        process.capture(Command((str(reference), str(SCRIPTS / "peft_kinds.py"), str(folder)), env=compiled), timeout=300)
    return folder


def numbers(folder: Path) -> dict[tuple[str, ...], Any]:
    """The bits of the tensors in a folder, by what is left of their names; transformers 5 names a new head otherwise."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= adapter_parts.stored_tensors(path)
    return {names.key(name): bits(tensor) for name, tensor in tensors.items()}


def bits(stored: Stored) -> Any:
    assert stored.dtype == "BF16"
    size = 2 * int(numpy.prod(stored.shape))
    return numpy.frombuffer(Path(stored.file).read_bytes()[stored.offset :][:size], "<i2").astype(int).reshape(stored.shape)


def question(name: str, found: Plan, dest: Path) -> list[dict[str, Any]]:
    """The files of one merge for the script, as they come out and in float32; the small ones are written at once."""
    files = []
    for folder, dtype in (("bits", ""), ("answers", "F32")):
        place = dest / folder / name
        place.mkdir(parents=True)
        for small, text in found.texts.items():
            (place / small).write_text(text, encoding="utf-8")
        for small, origin in found.copies.items():
            shutil.copy(origin, place / small)
        for file in found.files:
            tensors = tuple(msgspec.structs.replace(tensor, dtype=dtype or tensor.dtype) for tensor in file.tensors)
            files.append(msgspec.structs.replace(file, path=f"{folder}/{name}/{file.path}", tensors=tensors))
    return [msgspec.to_builtins(file) for file in files]


@pytest.mark.slow
def test_a_merged_model_is_that_of_peft_and_acts_as_the_adapter_does(
    kinds: Path, reference: Path, compiled: dict[str, str], tmp_path: Path
) -> None:
    entries = json.loads((kinds / "kinds.json").read_text())
    files = []
    for name, entry in entries.items():
        base, adapters = (
            kinds / "bases" / entry["base"],
            [Adapter(name=one, folder=kinds / "adapters" / one) for one in entry["adapters"]],
        )
        check.check(base, entry["base"], adapters)
        files += question(name, plan.plan(base, entry["base"], adapters), tmp_path)
        assert entry["moved"] > 0.2, name
        assert (entry["worst"] > 0.2) == (name in WRONG), name

    def ask(script: Path, *words: Path) -> str:
        return process.capture(Command((str(reference), str(script), *map(str, words)), env=compiled), timeout=300)

    (tmp_path / "asked.json").write_bytes(msgspec.json.encode({"files": files, "dest": str(tmp_path)}))
    ask(Path(inside.__file__).with_name("merge_weights.py"), tmp_path / "asked.json", tmp_path / "answer.json")
    others: dict[str, object] = {}
    for name in entries.keys() - WRONG:
        ours, theirs = numbers(tmp_path / "bits" / name), numbers(kinds / "merged" / name)
        assert ours.keys() == theirs.keys(), name
        places = max(int(numpy.abs(ours[key] - theirs[key]).max()) for key in ours)
        others |= {name: places} if places > (name in LAST_PLACE) else {}
    answers = json.loads(ask(SCRIPTS / "answers_of.py", tmp_path / "answers"))
    for name, entry in entries.items():
        # Without the rounding of a type, what is planned is what PEFT does.
        worst = numpy.abs(numpy.array(answers[name]) - numpy.array(entry["answers"])).max()
        others |= {name: worst} if worst > 1e-4 else {}
    assert len(entries) > 50 and others == {}


def updates(found: Plan) -> dict[str, tuple[Update, ...]]:
    return {tensor.name: tensor.updates for file in found.files for tensor in file.tensors if tensor.updates}


def test_updates_of_several_adapters_are_summed_from_the_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    first = make_adapter(tmp_path / "first", low_rank(Q, 8, 8))
    second = make_adapter(tmp_path / "second", low_rank(Q, 8, 8) | low_rank(UP, 12, 8), 0.5, use_rslora=True, use_dora=False)
    found = plan.plan(base, "base", [first, second])
    assert [(update.weight, round(update.scale, 4)) for update in updates(found)[f"{Q}.weight"]] == [(1.0, 3.0), (0.5, 4.2426)]
    assert updates(found).keys() == {f"{Q}.weight", f"{UP}.weight"}
    (file,) = found.files
    assert [tensor.name for tensor in file.tensors] == list(MODEL) and file.metadata == {"format": "pt"}
    assert {tensor.dtype for tensor in file.tensors} == {"BF16"} and found.notes == () and found.texts == {}
    assert found.copies == {"config.json": str(base / "config.json")}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 1.0)])
def test_what_replaces_a_tensor_is_taken_as_it_is_unless_something_is_reckoned_from_the_base(
    weights: tuple[float, float], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    whole = make_adapter(tmp_path / "whole", {"model.embed_tokens.weight": (16, 8)}, weights[0], modules_to_save=["embed_tokens"])
    shapes = {"model.embed_tokens.lora_embedding_A": (2, 16), "model.embed_tokens.lora_embedding_B": (8, 2)}
    more = make_adapter(tmp_path / "more", shapes, weights[1])
    (tensor, *_), *_ = (file.tensors for file in plan.plan(base, "base", [whole, more]).files)
    assert [update.kind for update in tensor.updates] == ["tensor", "lora"] and (tensor.base is None) == (weights[0] == 1)
    dora = make_adapter(tmp_path / "dora", shapes | {"model.embed_tokens.lora_magnitude_vector": (8,)}, use_dora=True)
    (tensor, *_), *_ = (file.tensors for file in plan.plan(base, "base", [whole, dora]).files)
    assert tensor.base and tensor.base.file.endswith("model.safetensors") and len(tensor.updates) == 2


def test_an_adapter_reckons_from_the_matrix_that_it_brings(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    shapes = {
        "model.embed_tokens.base_layer.weight": (16, 8),
        "model.embed_tokens.lora_embedding_A": (2, 16),
        "model.embed_tokens.lora_embedding_B": (8, 2),
        "model.embed_tokens.lora_magnitude_vector": (8,),
    }
    own = make_adapter(tmp_path / "own", shapes, use_dora=True)
    (tensor, *_), *_ = (file.tensors for file in plan.plan(base, "base", [own]).files)
    assert (
        tensor.base
        and tensor.base.file.endswith("adapter_model.safetensors")
        and [one.kind for one in tensor.updates] == ["dora"]
    )
    with pytest.raises(OrchestrateError, match="replaced by an adapter that also trains it by rows or magnitudes"):
        plan.plan(base, "base", [msgspec.structs.replace(own, weight=0.5)])


def test_two_adapters_cannot_both_replace_a_module(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    every = [make_adapter(tmp_path / name, {"model.norm.weight": (8,)}, modules_to_save=["norm"]) for name in ("one", "two")]
    with pytest.raises(OrchestrateError, match=r"one and two both hold a whole model\.norm\.weight"):
        plan.plan(base, "base", every)


def test_a_kind_that_the_plan_does_not_know_is_left_to_peft(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", TIED)
    adapter = make_adapter(tmp_path / "mine", {f"{Q}.hada_w1_a": (8, 2)}, peft_type="LOHA")
    reason = "the adapter mine is of the type LOHA"
    copies = {path.name: str(path) for path in base.iterdir() if path.suffix != ".safetensors"}
    expected = Plan(by_peft=reason, copies=copies, notes=(f"{reason}: merged by PEFT itself",))
    assert plan.plan(base, "base", [adapter]) == expected and "config.json" in copies
    ends = make_adapter(tmp_path / "ends", {"lm_head.hada_w1_a": (8, 2)}, peft_type="LOHA")
    with pytest.raises(OrchestrateError, match="one matrix for both ends"):
        plan.plan(base, "base", [adapter, ends])
