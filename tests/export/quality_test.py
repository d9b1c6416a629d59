"""Measuring with the tag's real llama-perplexity: a report and its plot, kept current, and what goes wrong."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.verify import gguf
from tests.support.answer import Answer
from tests.support.programs import script

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
VERSE = """The river that runs by the mill is slow in summer and loud in spring. Children count the stones under the bridge, and
every year there is one more, for somebody throws one in for luck. The miller says that stones do not grow, and the children say
that he has never looked."""


@pytest.fixture
def text(world: Path) -> Path:
    """Words of our own, enough for some pieces of 512 tokens."""
    chosen, words = random.Random(1), VERSE.split()
    (world / "words.txt").write_text("\n".join([VERSE, *(" ".join(chosen.choices(words, k=20)) for _ in range(120))]))
    return world / "words.txt"


def steps(answer: Answer, word: str = "quality") -> dict[str, str]:
    return {step["name"].removeprefix("quality "): step["status"] for step in answer.json()["steps"] if word in step["name"]}


@pytest.mark.slow
def test_a_report_and_its_plot_are_made_once_and_kept_current(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, text: Path, shared_cache: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "name": "tiny", "outtype": ["bf16", "q8_0"], "quantize": ["Q4_0", "Q2_K"]}
    model["quality"] = {"text": "words.txt", "chunks": 3}
    file = job(model, binaries=built)
    planned = orchestrate("plan", file).out
    assert "run     quality tiny-bf16" in planned and "--kl-divergence-base base.logits" in planned
    assert "for measuring tiny, in " in planned
    answer = orchestrate("run", file, "--json")
    assert answer.code == 0, answer.err
    names = ["tiny-bf16", "tiny-q8_0", "tiny-Q4_0", "tiny-Q2_K"]
    assert steps(answer) == dict.fromkeys(names, "done") | {"tiny-quality.json": "current"}
    (found,) = answer.json()["quality"]
    assert found["model"] == "tiny" and [row["type"] for row in found["types"]] == ["q8_0", "Q4_0", "Q2_K"]
    assert found["unquantized"]["bits"] == pytest.approx(16, abs=0.1) and found["unquantized"]["kld"] is None
    best, *_, worst = found["types"]
    assert 0 <= best["kld"] < worst["kld"] <= worst["kld_max"] and best["bits"] > worst["bits"] > 2
    assert best["same_top"] > 90 and best["ppl"] == pytest.approx(found["unquantized"]["ppl"], rel=0.01)
    assert worst["size"] == (world / "dist" / "tiny-Q2_K.gguf").stat().st_size and worst["file"] == "tiny-Q2_K.gguf"
    report = json.loads((world / "dist" / "tiny-quality.json").read_text(encoding="utf-8"))
    assert report["types"] == found["types"] and report["text"] == "words.txt" and report["text_sha256"] == file_sha256(text)
    assert str(world) not in json.dumps(report)
    plot = ElementTree.parse(world / "dist" / "tiny-quality.svg")
    assert {"Q4_0", "Q2_K", "q8_0"} <= {each.text for each in plot.iter("{http://www.w3.org/2000/svg}text")}
    assert not list((shared_cache / "downloads").glob("quality-*"))

    again = orchestrate("run", file)
    assert again.code == 0 and "current quality tiny-quality.json" in again.err and "quality tiny-Q4_0" not in again.err
    assert "KLD" in again.out and again.out.endswith("tiny-quality.svg\n")
    assert "current quality tiny-Q4_0" in orchestrate("plan", file).out

    # One more type is measured alone, and a plot that has gone is drawn again without measuring.
    file = job(model | {"quantize": ["Q4_0", "Q5_0"]}, binaries=built)
    more = orchestrate("run", file, "--json")
    assert list(steps(more)) == ["tiny-bf16", "tiny-Q5_0", "tiny-quality.json"]
    assert [row["type"] for row in more.json()["quality"][0]["types"]] == ["q8_0", "Q4_0", "Q5_0"]
    assert more.json()["quality"][0]["types"][1] == found["types"][1]
    before = (world / "dist" / "tiny-quality.svg").read_bytes()
    (world / "dist" / "tiny-quality.svg").unlink()
    assert steps(orchestrate("run", file, "--json")) == {"tiny-quality.json": "done"}
    assert (world / "dist" / "tiny-quality.svg").read_bytes() == before

    # Another text decides other numbers; the same command by force gives the same.
    text.write_text(text.read_text() + VERSE)
    assert "tiny-Q4_0" in steps(orchestrate("run", file, "--json"))
    kept = (world / "dist" / "tiny-quality.json").read_bytes()
    forced = orchestrate("run", file, "--json", "--force")
    assert "tiny-Q4_0" in steps(forced), forced.err
    assert (world / "dist" / "tiny-quality.json").read_bytes() == kept


def test_a_split_model_is_measured_as_one_and_merged_by_the_tags_own_program(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, text: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "args": ["--split-max-size", "5M"], "quantize": ["Q8_0"]}
    file = job(model | {"quality": {"text": "words.txt", "chunks": 1}}, binaries=built)
    answer = orchestrate("run", file, "--json")
    assert answer.code == 0, answer.err
    row = answer.json()["quality"][0]["types"][0]
    made = [output for output in answer.json()["outputs"] if output["kind"] == "quantized"]
    assert len(made) > 1 and row["file"] == Path(made[0]["path"]).name and row["size"] == sum(each["size"] for each in made)
    whole = world / "whole.gguf"
    merged = orchestrate("exec", file, "--", "llama-gguf-split", "--merge", made[0]["path"], whole)
    assert merged.code == 0, merged.err
    parts = gguf.contents([Path(each["path"]) for each in made])
    assert gguf.check_set([whole])[0].split == (0, 1)
    assert gguf.contents([whole]).tensors.keys() == parts.tensors.keys()


def test_a_text_that_is_too_short(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, shared_cache: Path
) -> None:
    (world / "short.txt").write_text("only this")
    model = {"source": str(data / "tiny-llama"), "quantize": ["Q4_0"], "quality": "short.txt"}
    answer = orchestrate("run", job(model, binaries=built))
    # How many tokens it has is in the tool's own words, which are lost where it ends before they are written.
    assert answer.code == 1 and "the text is too short" in answer.err
    assert "1024 tokens" in answer.err and "tiny-llama-Q4_0.gguf" in answer.out, "the outputs are made, and said"
    assert not list((world / "dist").glob("*quality*")) and not list((shared_cache / "downloads").glob("quality-*"))


def test_an_encoder_has_no_perplexity(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, text: Path
) -> None:
    model = {"source": str(data / "all-MiniLM-L6-v2"), "outtype": "f16", "quantize": ["Q8_0"], "quality": "words.txt"}
    answer = orchestrate("run", job(model, binaries=built))
    assert answer.code == 1 and "is an encoder (bert)" in answer.err and "leave `quality` out" in answer.err


def test_what_is_measured_already_is_kept_when_a_file_fails(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, text: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "quantize": ["Q4_0"], "quality": {"text": "words.txt", "chunks": 1}}
    assert orchestrate("run", job(model, binaries=built)).code == 0
    failing = model | {"quantize": ["Q4_0", "Q5_0"], "quality": {"text": "words.txt", "chunks": 1, "args": ["--no-such"]}}
    answer = orchestrate("run", job(failing, binaries=built), "--json", "--keep-going")
    assert answer.code == 1 and "llama-perplexity` ended with exit code 1" in answer.err and "no-such" in answer.err
    assert answer.json()["quality"] == [] and len(answer.json()["outputs"]) == 3
    again = orchestrate("run", job(model, binaries=built), "--json")
    assert steps(again) == {"tiny-llama-quality.json": "current"} and len(again.json()["quality"][0]["types"]) == 1


@pytest.mark.parametrize("name", ["tiny-llama-quality.json", "tiny-llama-quality.svg"])
def test_a_file_of_the_user_is_never_overwritten(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, text: Path, name: str
) -> None:
    file = job({"source": str(data / "tiny-llama"), "quantize": ["Q4_0"], "quality": "words.txt"}, binaries=built)
    mine = world / "dist" / name
    mine.parent.mkdir()
    mine.write_text("{}")
    answer = orchestrate("run", file)
    assert answer.code == 2 and f"{name} exists already, and orchestrate did not write it" in answer.err
    assert mine.read_text() == "{}" and not list(mine.parent.glob("*.gguf"))
    for make in (Path.mkdir, getattr(os, "mkfifo", Path.mkdir)):
        mine.unlink() if mine.is_file() else mine.rmdir() if mine.is_dir() else None
        make(mine)
        assert orchestrate("run", file, "--force").code == 2 and mine.exists() and not mine.is_file()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="such a file is Linux's own")
def test_a_text_that_cannot_be_read(orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path) -> None:
    model = {"source": str(data / "tiny-llama"), "quantize": ["Q4_0"], "quality": "/proc/self/mem"}
    answer = orchestrate("run", job(model, binaries=built))
    assert answer.code == 2 and "quality: /proc/self/mem cannot be read" in answer.err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_a_tool_that_ends_before_its_words_are_written(
    orchestrate: Orchestrate,
    job: Job,
    built: dict[str, Any],
    data: Path,
    world: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = binaries.tool

    def tool(pinned: PinnedJob, name: str) -> Path:
        if name != "llama-perplexity":
            return real(pinned, name)
        # It writes where a program in the fence may, and names what it starts where such a program is told of folders.
        monkeypatch.setenv("LD_LIBRARY_PATH", str(real(pinned, name).parent))
        ends = f'[ "$(grep -c -- --kl-divergence\\  calls)" = "{times}" ] && exit 0'
        return script(world / "perplexity.sh", 'echo "$@" >> calls', ends, f'exec "{real(pinned, name)}" "$@"')

    monkeypatch.setattr("llamacpp_orchestrator.pipeline.binaries.tool", tool)
    model = {"source": str(data / "tiny-llama"), "quantize": ["Q4_0"], "quality": {"text": "words.txt", "chunks": 1}}
    times = "1"
    answer = orchestrate("run", job(model, binaries=built), "--json")
    assert answer.code == 0, answer.err
    assert answer.err.count("note: llama-perplexity ended before its result was written; asking again") == 1
    assert answer.json()["quality"][0]["types"][0]["kld"] > 0

    monkeypatch.setattr("llamacpp_orchestrator.export.quality.TRIES", 1)
    again = orchestrate("run", job(model, binaries=built), "--force")
    assert again.code == 1 and "its result is not whole" in again.err

    (world / "perplexity.sh").unlink()
    times = "0"  # already the unquantized one, which keeps nothing then
    last = orchestrate("run", job(model, binaries=built), "--force")
    assert last.code == 1 and "the file between could not be written" in last.err and "is the disk full?" in last.err
