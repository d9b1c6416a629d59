"""Real conversions, sound and spoiled: what upstream does not notice, the levels do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.system import interpreter
from llamacpp_orchestrator.system.command import script_env
from llamacpp_orchestrator.verify import gguf as verify_gguf
from llamacpp_orchestrator.verify import levels
from llamacpp_orchestrator.verify.levels import Subject
from tests.support import TAG
from tests.support import makers
from tests.support.answer import Answer
from tests.support.gguf_bytes import gguf
from tests.support.programs import completion

Run = Callable[..., Answer]
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def rewrite(folder: Path, drop: str = "", half: str = "") -> None:
    """Leave out the tensors that begin so, or keep only the first half of the rows of one."""

    def changed(weights: dict[str, makers.Tensor]) -> dict[str, makers.Tensor]:
        kept = {name: tensor for name, tensor in weights.items() if not drop or not name.startswith(drop)}
        if half:
            dtype, (rows, *rest), content = kept[half]
            kept[half] = (dtype, [rows // 2, *rest], content[: len(content) // 2])
        return kept

    makers.tensors(folder / "model.safetensors", changed)


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


SPOILED = {
    "one-tensor": (
        lambda folder: rewrite(folder, drop="model.layers.1.self_attn.v_proj.weight"),
        "blk.1.attn_v.weight must be there by the model's class, but the source has no such tensor",
    ),
    "one-kind": (
        lambda folder: [rewrite(folder, drop=f"model.layers.{block}.mlp.up_proj.") for block in (0, 1)],
        "blk.0.ffn_up.weight, blk.1.ffn_up.weight must be there by the model's class",
    ),
    "half": (
        lambda folder: rewrite(folder, drop="model.layers.1."),
        "blk.1.attn_norm.weight, blk.1.ffn_down.weight, blk.1.ffn_gate.weight and 6 more must be there",
    ),
    "shape": (
        lambda folder: rewrite(folder, half="model.layers.0.mlp.up_proj.weight"),
        "blk.0.ffn_up.weight has 4096 numbers in the source, where the model's class has 8192",
    ),
    "norm": (lambda folder: rewrite(folder, drop="model.norm.weight"), "output_norm.weight must be there"),
    "head": (lambda folder: rewrite(folder, drop="lm_head.weight"), "output.weight must be there"),
}


@pytest.mark.slow
def test_what_a_source_lacks_is_told_though_upstream_is_content(
    orchestrate: Run,
    job: Callable[..., Path],
    copy: Callable[..., Path],
    world: Path,
    shared_cache: Path,
    python: Path,
    run: interpreter.Run,
) -> None:
    for name in ("sound", "unchecked", *SPOILED):
        folder = copy("tiny-llama", name)
        change(folder / "tokenizer_config.json", chat_template=TEMPLATE)
        if name in SPOILED:
            SPOILED[name][0](folder)
    rewrite(world / "unchecked", drop="model.layers.1.")
    rewrite(copy("tiny-llama", "rows"), half="model.embed_tokens.weight")
    models: list[dict[str, Any]] = [{"source": f"./{name}", "outtype": "f16"} for name in ("sound", "rows", *SPOILED)]
    models.append({"source": "./unchecked", "outtype": "f16", "verify": "structure"})
    answer = orchestrate("run", job(*models), "--keep-going")
    assert answer.code == 1
    # This one is told before anything is converted.
    assert "./rows: its embedding has 16000 rows, its config a vocabulary of 32000" in answer.err
    assert not list(world.glob("dist/**/rows-f16.gguf"))
    for name, (_, said) in SPOILED.items():
        assert f"{name}-f16.gguf is not what its source is: {said}" in answer.err, answer.err
        assert pipeline_receipt.read(world / "dist" / f"{name}-f16.gguf") is None
        kept = [path for path in world.glob(f"dist/.*.stage/{name}-f16.gguf") if str(path) in answer.err]
        assert len(kept) == 1 and not list(kept[0].parent.glob("*.json"))
    for name, passed in (("sound", ("structure", "content")), ("unchecked", ("structure",))):
        receipt = pipeline_receipt.read(world / "dist" / f"{name}-f16.gguf")
        assert receipt and receipt.levels == passed and receipt.notes == ()
    _outputs(world, shared_cache, python, run)


def _outputs(world: Path, cache: Path, python: Path, run: interpreter.Run) -> None:
    """What is not the sound source's is told of an output, whatever made it so."""
    made = world / "dist" / "sound-f16.gguf"
    tree = cache / "source" / f"package-{TAG}"
    subject = Subject(
        kind="model",
        files=(made,),
        views=(world / "sound",),
        python=str(python),
        tree=tree,
        env=script_env(cache / "home"),
        scratch=world,
        log=world / "verify.log",
    )

    def complaint(file: Path, **changes: Any) -> str:
        with pytest.raises(IntegrityError) as caught:
            levels.check(msgspec.structs.replace(subject, files=(file,), **changes), run, lambda text: None)
        assert caught.value.hint
        return caught.value.message

    assert levels.check(subject, run, lambda text: None) == levels.Verdict(levels=("structure", "content"))
    assert "blk.1.ffn_up.weight has 8192 zeros in 8192 numbers" in complaint(blanked(made, "blk.1.ffn_up.weight", 0, 1))
    assert "blk.1.ffn_up.weight has 4096 zeros in 8192 numbers" in complaint(blanked(made, "blk.1.ffn_up.weight", 0, 0.5))
    assert "token_embd.weight has " in complaint(blanked(made, "token_embd.weight", 0.5, 0.51))
    assert "holds NaN" in complaint(blanked(made, "blk.0.attn_q.weight", 0.9, 1, b"\xff"), level="structure")
    assert "the source's chat template is not there" in complaint(
        respelled(made, b"tokenizer.chat_template", b"tokenizer.chat_templats")
    )
    assert "its chat template is not the source's (from letter 2" in complaint(
        respelled(made, b"{% for message", b"{%-for message")
    )
    assert "its eos_token_id is 3" in complaint(
        respelled(made, b"eos_token_id\x04\x00\x00\x00\x02", b"eos_token_id\x04\x00\x00\x00\x03")
    )
    assert "blk.0.attn_q.weight is not there, though" in complaint(
        respelled(made, b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")
    )
    other = respelled(made, b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")
    assert "blk.0.attn_q.weight is not there" in complaint(other, of=(made,))
    assert "tokenizer.chat_template is not as in the file" in complaint(
        respelled(made, b"{% for message", b"{%-for message"), of=(made,)
    )
    with pytest.raises(CommandFailed) as caught:
        levels.check(msgspec.structs.replace(subject, python=str(world / "nowhere")), warm_worker.run_alone, lambda text: None)
    assert "`verify: structure` for this model does without it" in caught.value.hint
    part = levels.check(msgspec.structs.replace(subject, args=("--mtp",)), run, lambda text: None)
    assert "only a part of the model was asked for (--mtp)" in part.notes[0]


def blanked(path: Path, tensor: str, start: float, end: float, by: bytes = b"\0") -> Path:
    """A copy in which a share of a tensor's bytes is overwritten."""
    _, place = verify_gguf.contents([path]).tensors[tensor]
    content = bytearray(path.read_bytes())
    first, last = (place.start + int(place.size * share) for share in (start, end))
    content[first:last] = by * (last - first)
    made = path.with_name("spoiled.gguf")
    made.write_bytes(content)
    return made


def respelled(path: Path, old: bytes, new: bytes) -> Path:
    """A copy in which some bytes of the header are others."""
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    made = path.with_name("spoiled.gguf")
    made.write_bytes(content.replace(old, new))
    return made


@pytest.mark.slow
def test_adapters_and_encoders(orchestrate: Run, job: Callable[..., Path], data: Path, world: Path) -> None:
    loras = [{"source": str(data / name), "outtype": "f16"} for name in ("lora-a", "lora-b")]
    file = job(
        {"source": str(data / "tiny-llama"), "outtype": "none", "loras": loras},
        {"source": str(data / "all-MiniLM-L6-v2"), "outtype": "q8_0"},
    )
    answer = orchestrate("run", file)
    assert answer.code == 0, answer.err
    for made in (world / "dist").glob("*.gguf"):
        receipt = pipeline_receipt.read(made)
        assert receipt and receipt.levels == ("structure", "content") and receipt.notes == ()
    made = world / "dist" / "tiny-llama-lora-a-lora-f16.gguf"
    subject = Subject(kind="adapter", files=(made,), views=(data, data / "lora-a"))

    def complaint(**changes: Any) -> str:
        with pytest.raises(IntegrityError) as caught:
            levels.check(msgspec.structs.replace(subject, **changes), warm_worker.run_alone, lambda text: None)
        return caught.value.message

    assert "it holds 16 tensors, where the source has 28" in complaint(views=(data, data / "lora-b"))
    for end in ("lora_a", "lora_b"):
        tensor = next(name for name in verify_gguf.contents([made]).tensors if name.endswith(end))
        assert f"{tensor} is all zero, where the source is not" in complaint(files=(blanked(made, tensor, 0, 1),))
    (world / "other").mkdir()
    for source in (data / "lora-a").iterdir():
        (world / "other" / source.name).write_bytes(source.read_bytes())
    change(world / "other" / "adapter_config.json", lora_alpha=7)
    assert "its alpha is 16.0, where the source's is 7" in complaint(views=(data, world / "other"))


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize(
    ("level", "words", "outcome"),
    [
        ("load", "exit 0", ""),
        ("auto", "exit 0", ""),
        ("load", "echo \"llama_model_load: error loading model: missing tensor 'a'\"; exit 1", "missing tensor 'a'"),
        ("auto", "echo \"llama_model_load: error loading model: missing tensor 'a'\"; exit 1", "missing tensor 'a'"),
        ("load", "echo 'no such device'; exit 1", "cannot load x.gguf: `llama-completion` ended with exit code 1"),
        ("auto", "echo 'no such device'; exit 1", "note: it was not loaded: llama-completion cannot load"),
    ],
)
def test_loading(tmp_path: Path, level: str, words: str, outcome: str) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf())
    tool = tmp_path / "llama-completion"
    completion(tool, words)
    subject = Subject(
        kind="quantized",
        files=(tmp_path / "x.gguf",),
        of=(tmp_path / "x.gguf",),
        level=level,
        log=tmp_path / "log",
        find=lambda name: tool,
    )
    try:
        found = levels.check(subject, warm_worker.run_alone, lambda text: None)
    except OrchestrateError as error:
        assert outcome and outcome in error.message and error.hint
    else:
        assert ("load" in found.levels) == (not outcome)
        assert not outcome or outcome.startswith("note: ") and outcome[6:] in found.notes[0]
    assert "-n 1 -no-cnv" in (tmp_path / "log").read_text()


def test_what_cannot_be_loaded_alone_is_a_note(tmp_path: Path) -> None:
    for name, architecture, kind in (("p.gguf", "clip", "model"), ("a.gguf", "llama", "adapter")):
        (tmp_path / name).write_bytes(gguf(keys=[("general.architecture", 8, architecture)]))
        subject = Subject(kind=kind, files=(tmp_path / name,), of=(tmp_path / name,), level="load", find=lambda name: tmp_path)
        found = levels.check(subject, warm_worker.run_alone, lambda text: None)
        assert found.levels == ("structure", "content") and "so it was not loaded" in found.notes[0]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("architecture", "more", "said"),
    [
        ("bert", {}, "it reads and says nothing"),
        ("t5", {}, "it answers to a text"),
        ("llama", {"args": ("--mtp",)}, "only a part of the model"),
        ("llama", {"remote": True}, "its source brings code of its own"),
    ],
)
def test_what_has_no_next_token_to_compare_is_a_note(tmp_path: Path, architecture: str, more: dict[str, Any], said: str) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(keys=[("general.architecture", 8, architecture)]))
    tool = tmp_path / "llama-completion"
    completion(tool, "exit 0")
    files, log = (tmp_path / "x.gguf",), tmp_path / "log"
    subject = Subject(kind="quantized", files=files, of=files, level="logits", log=log, find=lambda name: tool, **more)
    found = levels.check(subject, warm_worker.run_alone, lambda text: None)
    assert found.levels == ("structure", "content", "load")
    assert found.notes[-1].startswith(said) and found.notes[-1].endswith("so its next tokens were not compared")


def test_what_was_not_loaded_is_not_compared_either(tmp_path: Path) -> None:
    files = (tmp_path / "p.gguf",)
    files[0].write_bytes(gguf(keys=[("general.architecture", 8, "clip")]))
    subject = Subject(kind="model", files=files, of=files, level="logits", find=lambda name: tmp_path)
    found = levels.check(subject, warm_worker.run_alone, lambda text: None)
    assert found.levels == ("structure", "content") and len(found.notes) == 1


@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("structure", ("structure",)),
        ("content", ("structure", "content")),
        ("load", ("structure", "content", "load")),
        ("auto", ("structure", "content", "load")),
        ("logits", check_levels.LEVELS),
    ],
)
def test_a_level_holds_all_before_it(level: str, names: tuple[str, ...]) -> None:
    assert levels.upto(level) == names
