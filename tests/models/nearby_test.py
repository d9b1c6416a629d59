"""Folders one level off, and checkpoints in parts: each is told with the folder that is meant, or the command that makes it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.models import nearby
from llamacpp_orchestrator.models import selection
from llamacpp_orchestrator.util.pointers import LFS
from tests.support.answer import Answer

COMMIT, OTHER = "0a" * 20, "0b" * 20
MODEL = ("config.json", "model.safetensors")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
SAFE = b"parser.add_argument('--safe_serialization')"


def tree(root: Path, *names: str) -> Path:
    """Files of no content below a folder; a name that ends with a slash is a folder, one with `=` has a text."""
    for number, name in enumerate(names):
        path, _, text = name.partition("=")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(text.encode())
            os.utime((root / path).parent, (1000 + number, 1000 + number))
    return root


def under(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


CACHE = "models--org--Name"
SNAPSHOT = f"{CACHE}/snapshots/{COMMIT}"
CACHED = (
    *under(SNAPSHOT, *MODEL),
    *under(f"{CACHE}/snapshots/{OTHER}", *MODEL),
    f"{CACHE}/refs/main={COMMIT}",
    f"{CACHE}/blobs/x",
)
TRAINED = (*under("out/checkpoint-500", *MODEL), *under("out/checkpoint-1000", *MODEL), *under("out/checkpoint-90", *MODEL))
TUNED = (*under("out/checkpoint-500", *ADAPTER), *under("out/checkpoint-60", *ADAPTER))
ZERO = (
    "z/latest=global_step20",
    "z/global_step20/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "z/global_step3/mp_rank_00_model_states.pt",
)
SHARDED = ("f/pytorch_model_fsdp_0/__0_0.distcp", "f/pytorch_model_fsdp_0/.metadata", "f/optimizer_0/__0_0.distcp")
BEST = 'out/trainer_state.json={"best_model_checkpoint": "/elsewhere/out/checkpoint-90"}'

# The files, the folder that is named, its kind → what is said, and the way out; {} is the folder of all.
PLACES: dict[str, tuple[tuple[str, ...], str, str, str, str]] = {
    "the hub's cache": (CACHED, CACHE, "model", f"snapshots/{COMMIT}", f"{{}}/{SNAPSHOT}; or the hub id, org/Name"),
    "its snapshots": (CACHED, f"{CACHE}/snapshots", "model", OTHER, f"{{}}/{SNAPSHOT}; or the hub id, org/Name"),
    "its blobs": (CACHED, f"{CACHE}/blobs", "model", "a part of the hub's cache", "write the hub id: org/Name"),
    "without a whole one": ((f"{SNAPSHOT}/config.json",), CACHE, "model", "no whole snapshot of org", "the hub id: org/Name"),
    "a snapshot without weights": ((f"{SNAPSHOT}/config.json",), SNAPSHOT, "model", "no whole", "the hub id: org/Name"),
    "all of the cache": (CACHED, ".", "model", "models in a folder", f"{{}}/{SNAPSHOT}; or the hub id, org/Name"),
    "an adapter in the cache": (under(SNAPSHOT, *ADAPTER), CACHE, "adapter", "an adapter in", f"{{}}/{SNAPSHOT}; or the hub id"),
    "one checkpoint": (under("out/checkpoint-500", *MODEL), "out", "model", "below it: checkpoint-500", "{}/out/checkpoint-500"),
    "the newest": (TRAINED, "out", "model", "checkpoint-1000 (the newest)", "such as {}/out/checkpoint-1000"),
    "the trainer's best": ((*TRAINED, BEST), "out", "model", "checkpoint-90 (the best)", "such as {}/out/checkpoint-90"),
    "best by name": ((*TRAINED, *under("out/best", *MODEL)), "out", "model", "best (the best)", "such as {}/out/best"),
    "a config at the root": ((*TRAINED, "out/config.json"), "out", "model", "(the newest)", "{}/out/checkpoint-1000"),
    "and what the training needs": ((*TRAINED, "out/training_args.bin"), "out", "model", "(the newest)", "checkpoint-1000"),
    "adapters": (TUNED, "out", "adapter", "adapters in a folder below it: checkpoint-500 (the newest)", "{}/out/checkpoint-500"),
    "adapters as a model": (TUNED, "out", "model", "adapters in", "under `loras` of its base model: {}/out/checkpoint-500"),
    "a model as an adapter": (TRAINED, "out", "adapter", "models in", "belongs under `models`: {}/out/checkpoint-1000"),
    "unpacked": (under("x/tiny", *MODEL), "x", "model", "a model in a folder below it: tiny", "name that folder: {}/x/tiny"),
    "unpacked twice": (under("x/a/b", *MODEL), "x", "model", "below it: a/b", "name that folder: {}/x/a/b"),
    "pickles": (under("x/tiny", "config.json", "pytorch_model.bin"), "x", "model", "below it: tiny", "{}/x/tiny"),
    "a part of one": ((*MODEL, "1_Pooling/config.json"), "1_Pooling", "model", "in a folder above it", "name that folder: {}"),
    "a part of an adapter": ((*ADAPTER, "runs/log"), "runs", "adapter", "one lies in a folder above", "{}"),
    "ZeRO": ((*ZERO, "z/zero_to_fp32.py=safe_serialization", "z/config.json"), "z", "model", "global_step20",
             "cd {}/z && python zero_to_fp32.py . . --safe_serialization"),
    "its step": ((*ZERO, "z/zero_to_fp32.py=safe_serialization"), "z/global_step3", "model", "{}/z is a checkpoint of DeepSpeed",
                 "cd {}/z && python zero_to_fp32.py . . --safe_serialization"),
    "an old script": ((*ZERO, "z/zero_to_fp32.py"), "z", "model", "in parts", "32.py . pytorch_model.bin; it also needs"),
    "no script": (ZERO, "z", "model", "in parts", "python -m deepspeed.utils.zero_to_fp32 . . --safe_serialization"),
    "no latest": (ZERO[1:], "z", "model", "in parts", "--safe_serialization --tag global_step20"),
    "only the step": (("s/mp_rank_00_model_states.pt",), "s", "model", "DeepSpeed (ZeRO, s)", "cd {} && python"),
    "FSDP": ((*SHARDED, "f/config.json"), "f", "model", "pytorch_model_fsdp_0",
             "accelerate merge-weights {}/f/pytorch_model_fsdp_0 {}/f"),
    "its shards": (SHARDED, "f/pytorch_model_fsdp_0", "model", "a sharded checkpoint of FSDP",
                   "accelerate merge-weights {}/f/pytorch_model_fsdp_0 {}/f; it also needs config.json"),
    "a checkpoint in parts": (("out/checkpoint-9/fsdp_0/__0_0.distcp", "out/checkpoint-8/x"), "out", "model", "FSDP",
                              "merge-weights {}/out/checkpoint-9/fsdp_0 {}/out/checkpoint-9"),
    "with a blank": (("my f/p_0/__0_0.distcp",), "my f", "adapter", "FSDP", 'merge-weights "{}/my f/p_0" "{}/my f"'),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_one_level_off(place: str, tmp_path: Path) -> None:
    names, folder, kind, message, way = PLACES[place]
    tree(tmp_path, *names)
    with pytest.raises(JobError) as caught:
        nearby.check(tmp_path / folder, kind, weights=True)
    assert message.replace("{}", str(tmp_path)) in caught.value.message
    assert way.replace("{}", str(tmp_path)) in caught.value.hint
    assert caught.value.exit_code == 2 and "\n" not in caught.value.hint


QUIET = {
    "a model": (MODEL, "model", True),
    "beside checkpoints": ((*MODEL, *TRAINED), "model", True),
    "its config alone": (("config.json", *TRAINED), "model", False),
    "an adapter": (ADAPTER, "adapter", True),
    "an adapter as a model": (ADAPTER, "model", True),  # told elsewhere, by its own folder
    "pickles alone": (("config.json", "pytorch_model-00001-of-00002.bin"), "model", True),
    "of Diffusers": (("model_index.json", *under("text_encoder", *MODEL)), "model", True),
    "parts": (under("1_Pooling", *MODEL), "model", True),
    "empty": ((), "model", True),
}


@pytest.mark.parametrize("place", QUIET)
def test_no_word_where_nothing_is_nearer(place: str, tmp_path: Path) -> None:
    names, kind, weights = QUIET[place]
    nearby.check(tree(tmp_path / "a" / "b" / "c", *names, "x/"), kind, weights)
    nearby.check(tmp_path / "nowhere", kind, weights)


def checked(folder: Path, kind: str = "model") -> None:
    selection.check_pointers(folder, kind=kind, weights=True, remote_code=False)


POINTER = f"={LFS.decode()}v1\noid sha256:00\nsize 3\n"


@pytest.mark.parametrize(
    ("names", "kind", "told"),
    [
        ((*MODEL, f"tokenizer.json{POINTER}"), "model", "tokenizer.json is a Git LFS pointer"),
        ((*MODEL, f"tokenizer.model{POINTER}", f"vocab.json{POINTER}"), "model", "(as are"),
        ((f"config.json{POINTER}", "model.safetensors"), "model", "config.json is"),
        (("config.json", f"model.safetensors{POINTER}"), "model", "model.safetensors is"),
        (("config.json", f"model.safetensors.index.json{POINTER}", f"m-00001-of-00002.safetensors{POINTER}"), "model", "(as are"),
        ((*MODEL, f"chat_template.jinja{POINTER}"), "model", "chat_template.jinja is"),
        ((f"adapter_config.json{POINTER}", ADAPTER[1]), "adapter", "adapter_config.json is"),
        ((ADAPTER[0], f"adapter_model.safetensors{POINTER}"), "adapter", "adapter_model.safetensors is"),
        ((*MODEL, f"other.safetensors{POINTER}", f"pytorch_model.bin{POINTER}", f"README.md{POINTER}"), "model", ""),
        ((*ADAPTER, f"tokenizer.json{POINTER}"), "adapter", ""),
    ],
)  # fmt: skip
def test_pointers_of_git_among_what_is_read(names: tuple[str, ...], kind: str, told: str, tmp_path: Path) -> None:
    tree(tmp_path, *names)
    if not told:
        checked(tmp_path, kind)
        return
    with pytest.raises(IntegrityError) as caught:
        checked(tmp_path, kind)
    assert told in caught.value.message and "`git lfs pull`" in caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize(
    ("target", "told", "way"),
    [
        (".git/annex/objects/aa/bb/SHA256E-s3--00.json", "a git-annex link", "git annex get"),
        ("../../blobs/00", "a link to ../../blobs/00, which is not there", "again"),
    ],
)
def test_links_into_nothing(target: str, told: str, way: str, tmp_path: Path) -> None:
    (tree(tmp_path, *MODEL) / "tokenizer.json").symlink_to(target)
    (tmp_path / "notes.txt").symlink_to(target)
    with pytest.raises(IntegrityError) as caught:
        checked(tmp_path)
    assert told in caught.value.message and way in caught.value.hint and "notes" not in caught.value.message


def test_all_is_told_before_a_server_is_asked_or_anything_is_made(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], world: Path
) -> None:
    tree(world, *TRAINED, *SHARDED, *under("p", *MODEL), f"p/tokenizer.json{POINTER}")
    for folder, code, told in (("out", 2, "checkpoint-1000"), ("f", 2, "accelerate merge-weights"), ("p", 1, "git lfs pull")):
        answer = orchestrate("run", job({"source": f"./{folder}"}), "--offline")
        assert answer.code == code and told in answer.err and "offline" not in answer.err
        assert len(answer.err.splitlines()) <= 3
    assert not (world / "dist").exists()


def test_a_best_checkpoint_that_cannot_be_told(tmp_path: Path) -> None:
    for state in ("[", "{}", json.dumps({"best_model_checkpoint": None})):
        tree(tmp_path, *TRAINED, f"out/trainer_state.json={state}")
        with pytest.raises(JobError, match="the newest"):
            nearby.check(tmp_path / "out", "model", weights=True)
