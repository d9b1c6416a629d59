"""The level `logits`: what llama-perplexity records, how far an output may be off, and real models that say something else."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.verify import gguf as verify_gguf
from llamacpp_orchestrator.verify import logits
from llamacpp_orchestrator.verify.logits import Answer as Said
from llamacpp_orchestrator.verify.logits import Position
from llamacpp_orchestrator.verify.logits import Sides
from tests.support.answer import Answer
from tests.support.gguf_bytes import gguf
from tests.support.makers import edit
from tests.support.makers import tensors
from tests.support.programs import script

Run = Callable[..., Answer]


def record(context: int = 8, vocabulary: int = 5, pieces: int = 2, magic: bytes = b"_logits_", cut: int = 0) -> bytes:
    """A file as llama-perplexity writes it, with every number zero but the tokens."""
    row = 8 + 2 * (vocabulary + vocabulary % 2)
    body = struct.pack(f"<{context * pieces}i", *range(context * pieces)) + bytes(
        pieces * max(0, context - 1 - context // 2) * row
    )
    return (magic + struct.pack("<3i", context, vocabulary, pieces) + body)[: -cut or None]


@pytest.mark.parametrize(("context", "vocabulary", "pieces"), [(8, 5, 2), (8, 6, 1), (64, 1001, 1), (9, 3, 3)])
def test_a_record_is_read(tmp_path: Path, context: int, vocabulary: int, pieces: int) -> None:
    (tmp_path / "x").write_bytes(record(context, vocabulary, pieces))
    found = logits.read(tmp_path / "x")
    assert found.tokens == tuple(range(context)) and found.vocabulary == vocabulary and found.first == context // 2
    assert found.start + pieces * found.rows * found.stride == (tmp_path / "x").stat().st_size
    assert found.first + found.rows == context - 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it begins with b''"),
        (b"GGUF" + bytes(30), "it begins with b'GGUF"),
        (record(magic=b"_logits2"), "it begins with b'_logits2'"),
        (record(context=0), "it begins with b'_logits_'"),
        (record(cut=1), "bytes, not"),
        (record() + b"x", "bytes, not"),
        (record()[:20], "it has 20 bytes"),
    ],
)
def test_what_is_no_record_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(OrchestrateError, match="cannot be read") as caught:
        logits.read(tmp_path / "x")
    assert said in caught.value.message and "verify: load" in caught.value.hint


@pytest.mark.parametrize(
    ("types", "least"), [((), 0), ((0, 1), 1), ((30, 1, 0), 30), ((0, 8, 30), 8), ((0, 12, 14), 12), ((8, 39, 1), 12)]
)
def test_the_least_exact_type_decides(types: tuple[int, ...], least: int) -> None:
    assert logits.bounds(types) == logits.bounds((least,))


SAME = Position(1e-5, 7, 7, 0.0)
F16, BF16, Q8_0, Q4 = (logits.bounds((type_,)) for type_ in (1, 30, 8, 12))
NAN = float("nan")


@pytest.mark.parametrize(
    ("positions", "effect", "allowed", "failure", "note"),
    [
        ([SAME] * 3, 0.0, F16, "", "mean KL divergence 1e-05 from T over 3 positions, all top tokens equal"),
        ([SAME, Position(-1e-6, 7, 8, 0.01)], 0.0, F16, "", "1 of the top tokens differ (nearly tied)"),
        ([Position(-1e-9, 7, 7, 0.0)], 0.0, F16, "", "mean KL divergence 0 from T over"),
        ([SAME, Position(1e-4, 7, 8, 0.1)], 0.0, F16, "at position 33 its likeliest token is 8, the source's 7", ""),
        ([SAME, Position(1e-4, 7, 8, 0.1)], 0.0, Q8_0, "", "nearly tied"),
        ([SAME, Position(0.2, 7, 8, 3.0)], 0.0, Q8_0, "at position 33", ""),
        ([SAME, Position(0.2, 7, 8, 3.0)], 0.0, Q4, "", "1 of the top tokens differ"),
        ([Position(0.4, 7, 7, 0.0), Position(0.9, 7, 7, 0.0)], 0.0, Q4, "at position 33 its likeliest token is 7", ""),
        ([Position(0.0011, 7, 7, 0.0)], 0.0, F16, "0.0011 from T over 1 positions, where 0.001 is allowed", ""),
        ([SAME, Position(NAN, 7, 7, NAN)], 0.0, Q4, "mean KL divergence nan", ""),
        ([SAME, Position(NAN, 7, 8, NAN)], 0.0, F16, "mean KL divergence nan", ""),
        ([Position(0.0019, 7, 7, 0.0)], 0.015, BF16, "(what the adapter changes: 0.015), where 0.0015 is allowed", ""),
        ([Position(0.0009, 7, 7, 0.0)], 0.001, BF16, "", "0.0009 from T over 1 positions (what the adapter changes: 0.001)"),
        ([Position(0.005, 7, 7, 0.0)], 0.02, Q8_0, "", "0.005 from T over 1 positions"),
    ],
)
def test_how_far_an_output_may_be_off(
    positions: list[Position], effect: float, allowed: logits.Bounds, failure: str, note: str
) -> None:
    found = logits.judge("x.gguf", Said(by="T", positions=tuple(positions), effect=effect), allowed, 32)
    assert bool(found.failures) == bool(failure) and bool(found.notes) == (not failure)
    assert failure in "".join(found.failures) and note in "".join(found.notes)


@pytest.mark.parametrize(
    ("base", "ends", "words"),
    [
        ((), False, "-m /o/x.gguf -f logits.txt"),
        (("/o/base.gguf",), False, "-m /o/base.gguf --lora /o/x.gguf -f logits.txt"),
        ((), True, "-m /o/x.gguf --override-kv tokenizer.ggml.add_eos_token=bool:false -f logits.txt"),
    ],
)
def test_the_call(base: tuple[str, ...], ends: bool, words: str) -> None:
    asked = logits.command(Path("/b/p"), [Path("/o/x.gguf")], [Path(path) for path in base], Path("/s"), ends)
    begin = tuple(str(Path(word)) if word.startswith("/") else word for word in words.split())
    assert asked.argv[1:][: len(begin)] == begin and asked.cwd == str(Path("/s"))
    assert dict(asked.env)["CUDA_VISIBLE_DEVICES"] == "" and asked.argv[asked.argv.index("-ngl") + 1] == "0"


@pytest.mark.parametrize("tokens", [2 * logits.LEAST, 2 * logits.MOST])
def test_the_text_is_long_enough_for_any_tokenizer(tokens: int) -> None:
    # By the most sparing tokenizer: one that takes each word for one token.
    words = logits.text(tokens).split()
    assert len(words) == tokens and logits.text(tokens).isascii()
    # What comes later is no repetition, which a model would only copy.
    pairs = list(zip(words, words[1:], strict=False))
    assert len(set(pairs)) > len(pairs) // 2


@pytest.mark.parametrize(
    ("metadata", "config", "expected"),
    [
        ({}, {}, []),
        ({}, {"sliding_window": None}, []),
        ({}, {"sliding_window": 4096}, [4096]),
        ({}, {"sliding_window": 4096, "use_sliding_window": False}, []),
        ({}, {"sliding_window": 4096, "use_sliding_window": True}, [4096]),
        ({}, {"text_config": {"sliding_window": 512}}, [512]),
        ({"general.architecture": "gemma2", "gemma2.attention.sliding_window": 64}, {"sliding_window": 48}, [48, 64]),
        ({"general.architecture": "gemma2", "gemma2.attention.sliding_window": 64}, {}, [64]),
        ({"general.architecture": "gemma2", "gemma2.attention.sliding_window": 0}, {}, []),
    ],
)
def test_windows_are_those_of_either_side(metadata: dict[str, Any], config: dict[str, Any], expected: list[int]) -> None:
    assert logits.windows(metadata, config) == expected


@pytest.mark.parametrize(
    ("reach", "vocabulary", "tokens"),
    [
        ([], 32_000, 256),
        ([48], 32_000, 256),
        ([128], 32_000, 256),
        ([512], 262_144, 1024),
        ([1024], 262_144, 2048),
        ([4096, 512], 32_000, 1024),
        ([1024], 600_000, 256),  # the record would be too large
        ([4096], 32_000, 256),  # and here the text too long
    ],
)
def test_what_is_compared_lies_beyond_the_window(reach: list[int], vocabulary: int, tokens: int) -> None:
    assert logits.context(reach, vocabulary) == tokens


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("echo 'no such device'; exit 1", "llama-perplexity cannot run x.gguf: `llama-perplexity` ended with exit code 1"),
        ("exit 0", "said that it was done, but has recorded nothing"),
        ("echo nonsense > logits.bin", "what this tag's llama-perplexity has recorded cannot be read"),
        ("cp ../good logits.bin", "transformers cannot run the source of x.gguf"),
    ],
)
def test_what_cannot_be_compared_is_told_and_leaves_nothing(tmp_path: Path, words: str, said: str) -> None:
    tool, scratch = tmp_path / "llama-perplexity", tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "x.gguf").write_bytes(gguf())
    (tmp_path / "good").write_bytes(record())
    script(tool, words)
    # The interpreter of the tests has no torch.
    files, log = (tmp_path / "x.gguf",), tmp_path / "log"
    by = Interpreter(python=sys.executable, run=warm_worker.run_alone, scratch=scratch, log=log)
    sides = Sides(files=files, model=tmp_path, interpreter=by)
    with pytest.raises(OrchestrateError) as caught:
        logits.check(sides, lambda name: tool, lambda text: None)
    assert said in caught.value.message and "verify: load" in caught.value.hint and not list(scratch.iterdir())
    if "transformers" in said:
        assert isinstance(caught.value, CommandFailed) and "4 bytes of memory" in caught.value.hint


@pytest.mark.slow
def test_models_and_adapters_go_on_as_transformers_and_peft_do(
    orchestrate: Run, job: Callable[..., Path], built: dict[str, Any], copy: Callable[..., Path], data: Path, world: Path
) -> None:
    copy("tiny-llama")
    edit(copy("lora-b", "rs") / "adapter_config.json", use_rslora=True)
    loras = [str(data / "lora-a"), {"source": "./rs", "name": "rs"}]
    model = {"source": "./model", "name": "tiny", "outtype": ["f16", "q8_0"], "quantize": ["Q4_K_M"], "loras": loras}
    file = job(model | {"verify": "logits"}, binaries=built)
    answer = orchestrate("run", file, "--json")
    assert answer.code == 0, answer.err
    for output in answer.json()["outputs"]:
        receipt = pipeline_receipt.read(Path(output["path"]))
        assert receipt and receipt.levels == ("structure", "content", "load", "logits"), receipt
        by = " and PEFT 0.21.2" if output["kind"] == "adapter" else ""
        assert f"from transformers 5.23.0{by} over 127 positions" in receipt.notes[-1]
        assert ("adapter" in receipt.notes[-1]) == bool(by)
    # The rows of one matrix are others' now: all is sound, and acts otherwise.
    strong, plain = (world / "dist" / f"tiny-{name}-lora-f16.gguf" for name in ("rs", "lora-a"))
    place = verify_gguf.contents([plain]).tensors["blk.1.attn_v.weight.lora_b"][1]
    numbers = plain.read_bytes()[place.start : place.start + place.size]
    spoil(plain, place.start, numbers[64:] + numbers[:64])
    answer = orchestrate("verify", plain, "--level", "load")
    assert answer.code == 0, answer.err
    answer = orchestrate("verify", plain, "--level", "logits")
    assert answer.code == 1 and "tiny-lora-a-lora-f16.gguf does not go on as its source does" in answer.out, answer.out
    answer = orchestrate("verify", strong, "--level", "logits")
    assert answer.code == 0, answer.err


def spoil(path: Path, at: int, by: bytes) -> None:
    """Change bytes of an output and let its receipt agree."""
    content = path.read_bytes()
    path.write_bytes(content[:at] + by + content[at + len(by) :])
    receipt = pipeline_receipt.read(path)
    assert receipt
    pipeline_receipt.write(path, msgspec.structs.replace(receipt, files=(pipeline_receipt.record(path),)))


@pytest.mark.slow
def test_an_output_that_is_sound_and_another_model_is_told(
    orchestrate: Run, job: Callable[..., Path], built: dict[str, Any], data: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": ["f16"], "quantize": ["Q8_0"]}
    file = job(model, binaries=built)
    assert orchestrate("run", file).code == 0
    base, small = (world / "dist" / f"tiny-llama-{name}.gguf" for name in ("f16", "Q8_0"))
    answer = orchestrate("verify", small, "--level", "logits")
    assert answer.code == 2 and "job.lock.yaml pins nothing to compare next tokens with" in answer.err
    assert "set `verify: logits` for tiny-llama in job.yaml, then: orchestrate setup job.yaml" in answer.err
    # The outputs stay as they are: what they are compared with is none of what they are made of.
    assert orchestrate("setup", job(model | {"verify": "logits"}, binaries=built)).code == 0
    answer = orchestrate("run", file, "--json")
    assert {output["status"] for output in answer.json()["outputs"]} == {"current"}
    assert orchestrate("verify", small, "--level", "logits").code == 0
    # Where positions begin to turn faster; a type of 6 and a float of 10,000. That is told by what config.json says.
    key = b"rope.freq_base" + struct.pack("<If", 6, 10_000.0)
    at = base.read_bytes().index(key) + len(key) - 4
    spoil(base, at, struct.pack("<f", 500_000.0))
    answer = orchestrate("verify", base, "--level", "content")
    assert answer.code == 1 and "its rope.freq_base is 500000.0, where config.json says 10000.0" in answer.out, answer.out
    spoil(base, at, struct.pack("<f", 10_000.0))
    # Another block's matrix is as sound as its own, and only what it says tells.
    for path in (small, base):
        one, two = (verify_gguf.contents([path]).tensors[f"blk.{number}.attn_v.weight"][1] for number in (0, 1))
        spoil(path, two.start, path.read_bytes()[one.start : one.start + one.size])
        assert orchestrate("verify", path, "--level", "load").code == 0
        answer = orchestrate("verify", path, "--level", "logits")
        assert answer.code == 1 and "does not go on as its source does: at position" in answer.out, answer.out


def headless(model: Path) -> None:
    tensors(model / "model.safetensors", lambda found: {name: each for name, each in found.items() if "lm_head" not in name})


SOURCES: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown": (lambda model: edit(model / "config.json", model_type="no_such"), "transformers 5.23.0 does not know the model"),
    "pair": (lambda model: edit(model / "config.json", model_type="t5"), "the model has an encoder"),
    "reader": (lambda model: edit(model / "config.json", model_type="vit"), "a model of the type vit has no next token"),
    "quantized": (
        lambda model: edit(model / "config.json", quantization_config={"quant_method": "awq"}),
        "the source is quantized itself",
    ),
    "misread": (
        lambda model: edit(model / "config.json", model_type="olmo3", architectures=["Olmo3ForCausalLM"]),
        "transformers 5.23.0 takes 500000 for its rope base, where its config.json says 10000",
    ),
    "headless": (headless, "the source has no lm_head.weight, which transformers would have to make up"),
}


@pytest.fixture
def made(orchestrate: Run, job: Callable[..., Path], copy: Callable[..., Path], once: Callable[..., None], world: Path) -> Path:
    """A model that is converted, and may be spoilt."""

    def make() -> None:
        copy("tiny-llama")
        assert orchestrate("run", job("./model")).code == 0

    once("made of a copy", make)
    return world / "model"


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_transformers_cannot_judge_is_a_note(
    name: str, reference: Path, recorder: Path, made: Path, compiled: dict[str, str], world: Path
) -> None:
    change, said = SOURCES[name]
    change(made)
    files, env = (world / "dist" / "model-bf16.gguf",), clean_env(HF_HUB_OFFLINE="1", **compiled)
    by = Interpreter(python=str(reference), run=warm_worker.run_alone, env=env, scratch=world, log=world / "log")
    sides = Sides(files=files, model=made, interpreter=by)
    found, done = logits.check(sides, lambda name: recorder, lambda text: None)
    assert not done and not found.failures and said in found.notes[0], found


def test_a_job_without_programs_cannot_ask_for_it(orchestrate: Run, job: Callable[..., Path], data: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "verify": "logits"}, binaries={"backend": "none"})
    answer = orchestrate("plan", file)
    assert answer.code == 2 and "`logits` needs the tag's programs" in answer.err


def test_what_is_compared_with_is_pinned_and_missed_offline(
    orchestrate: Run, job: Callable[..., Path], data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "f16"}
    programs = {"backend": "source"}  # what needs no list of a release
    file = job(model, binaries=programs)
    assert orchestrate("lock", file).code == 0
    before = lock_file.read(lock_file.path_for(file))
    job(model | {"verify": "logits"}, binaries=programs)
    answer = orchestrate("run", file, "--locked")
    assert answer.code == 3 and "reference: the environment that `verify: logits` compares with is not locked" in answer.err
    assert orchestrate("plan", file, "--offline").code == 1
    answer = orchestrate("lock", file, "--json")
    after = lock_file.read(lock_file.path_for(file))
    assert answer.code == 0 and before and after and after.reference and not before.reference
    assert msgspec.structs.replace(after, reference=None, assets=()) == before
    # Only that part was asked for; the largest packages are the ones that the scripts have, too.
    assert after.environment and after.reference.overrides == ("torch==2.13.0",) and after.reference.python == "3.11"
    pinned = (after.reference.requirements, after.environment.requirements)
    mine, theirs = (dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)) for text in pinned)
    assert (mine["transformers"], mine["peft"]) == ("5.23.0", "0.21.2") and theirs["transformers"].startswith("4.")
    assert all(mine[name] == theirs[name] for name in ("torch", "numpy"))
    assert mine.keys() >= {"accelerate", "psutil"} and not mine.keys() & {"gguf", "sentencepiece"}
    (world / "empty").mkdir()
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "empty"))
    answer = orchestrate("run", file, "--offline")
    assert answer.code == 1 and "the environment that `verify: logits` compares with" in answer.err


@pytest.mark.slow
def test_what_is_quantized_is_compared_with_the_source_itself(
    orchestrate: Run, job: Callable[..., Path], built: dict[str, Any], copy: Callable[..., Path], shared_cache: Path
) -> None:
    copy("tiny-llama")
    model = {"source": "./model", "name": "tiny", "outtype": ["f16"]}
    assert orchestrate("run", job(model, binaries=built)).code == 0
    # Later only the quantized file is to be made, and the view of the source has gone.
    for mark in (shared_cache / "views").glob("*.complete.json"):
        mark.unlink()
    answer = orchestrate("run", job(model | {"quantize": ["Q8_0"], "verify": "logits"}, binaries=built), "--json")
    assert answer.code == 0, answer.err
    assert [step["name"] for step in answer.json()["steps"] if step["name"].startswith("fetch")] == ["fetch tiny"]
