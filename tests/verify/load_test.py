"""Loading an output with the tag's own program: which one, how it is called, and what its last words mean."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.verify import load
from llamacpp_orchestrator.verify.gguf import Checks
from tests.support.programs import script

NEW, OLD, OLDEST = ("llama-completion", "llama-cli", "llama-embedding"), ("llama-cli", "llama-embedding"), ("llama-cli",)


@pytest.mark.parametrize(
    ("there", "architecture", "chosen"),
    [
        (NEW, "llama", "llama-completion"),
        (OLD, "llama", "llama-cli"),
        (NEW, "bert", "llama-embedding"),
        (NEW, "nomic-bert-moe", "llama-embedding"),
        (OLDEST, "bert", "llama-cli"),
        ((), "llama", None),
        ((), "bert", None),
    ],
)
def test_the_program_of_an_architecture(there: tuple[str, ...], architecture: str, chosen: str | None) -> None:
    def find(name: str) -> Path:
        if name not in there:
            raise OrchestrateError(f"the archive has no program `{name}`")
        return Path(name)

    if chosen:
        assert load.program(architecture, find) == Path(chosen)
    else:
        with pytest.raises(OrchestrateError, match="no program `llama-cli`"):
            load.program(architecture, find)


@pytest.mark.parametrize(
    ("tool", "base", "help_text", "words"),
    [
        ("llama-completion", (), "-cnv, -no-cnv", "-m /o/a.gguf -p a -c 64 -ngl 0 -n 1 -no-cnv"),
        ("llama-completion", (), "-no-cnv, --warmup, --no-warmup", "-m /o/a.gguf -p a -c 64 -ngl 0 -n 1 -no-cnv --no-warmup"),
        ("llama-cli", (), "usage", "-m /o/a.gguf -p a -c 64 -ngl 0 -n 1"),
        ("llama-embedding", (), "-no-cnv", "-m /o/a.gguf -p a -c 64 -ngl 0"),
        ("llama-cli", ("/o/base.gguf",), "", "-m /o/base.gguf --lora /o/a.gguf -p a -c 64 -ngl 0 -n 1"),
    ],
)
def test_the_call(tool: str, base: tuple[str, ...], help_text: str, words: str) -> None:
    asked = load.command(Path(tool), [Path("/o/a.gguf")], [Path(path) for path in base], help_text)
    assert asked.argv == (tool, *(str(Path(word)) if word.startswith("/") else word for word in words.split()))


GOOD = "llama_model_loader: loaded meta data with 24 key-value pairs and 101 tensors from x.gguf"
WRONG_SHAPE = "tensor 'blk.0.ffn_up.weight' has wrong shape; expected 384, 1536, got 384, 768, 1, 1"


@pytest.mark.parametrize(
    ("words", "code", "architecture", "said"),
    [
        (f"{GOOD}\nGGML_ASSERT failed\n", 134, "bert", ""),
        (f"{GOOD}\nGGML_ASSERT failed\n", -6, "bert", ""),
        (f"{GOOD}\nGGML_ASSERT failed\n", -6, "llama", "ended badly"),
        (f"{GOOD}\n", -11, "bert", "ended badly"),
        ("cannot execute\n", 134, "bert", "ended badly"),
        (f"{GOOD}\nllama_model_load: error loading model: {WRONG_SHAPE}\n", 134, "bert", f"error loading model: {WRONG_SHAPE}"),
        (f"{GOOD}\ncheck_tensor_dims: {WRONG_SHAPE}\n", 1, "llama", WRONG_SHAPE),
        ("missing tensor 'output_norm.weight'\n", 1, "llama", "missing tensor 'output_norm.weight'"),
        ("unknown model architecture: 'x'\n", 1, "x", "unknown model architecture: 'x'"),
        (
            "done_getting_tensors: wrong number of tensors; expected 21, got 20\n",
            1,
            "llama",
            "wrong number of tensors; expected 21",
        ),
    ],
)
def test_last_words(words: str, code: int, architecture: str, said: str) -> None:
    why = load.cause(words, CommandFailed("ended badly", code=code), architecture)
    assert said in why and bool(why) == bool(said)
    assert load.blames(CommandFailed(why, code=code)) == (said not in ("", "ended badly"))


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
@pytest.mark.parametrize(("architecture", "code"), [("bert", 134), ("bert", 0)])
def test_an_encoder_that_has_loaded_is_well(tmp_path: Path, architecture: str, code: int) -> None:
    tool, model, log = tmp_path / "llama-embedding", tmp_path / "x.gguf", tmp_path / "log"
    log.write_text("error loading model: of another run\n")
    model.write_bytes(b"x")
    script(tool, "[ $1 = --help ] && exit 1", f"echo '{GOOD}'", f"exit {code}")
    checks = Checks(version=3, tensors=1, architecture=architecture, name="", kind="", size=1)
    load.check([model], (), checks, lambda name: tool, log)
    assert GOOD in log.read_text()


def test_loading_may_take_long_but_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(10_000_000))
    assert load.limit([tmp_path / "x"], [tmp_path / "x"]) == load.LIMIT_SECONDS + 2
    sleeper = Command((sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"))
    began = time.monotonic()
    with pytest.raises(CommandFailed, match="took longer than 1 s") as caught:
        process.stream(sleeper, tmp_path / "log", limit=1)
    assert time.monotonic() - began < 30 and caught.value.tail.endswith("on")
