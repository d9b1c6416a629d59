"""Quantizing with the tag's real programs: every type it lists, temporary files, matrices, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.binaries.toolchain import Toolchain
from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.verify import gguf
from tests.support import TAG
from tests.support.answer import Answer
from tests.support.folders import remains
from tests.support.folders import sums
from tests.support.programs import script

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
HEAD = "version: 1\nllama_cpp: {tag: b11434}\nmodels:\n  - source: a/b\n    "
OTHER_B = "{source: c/B, outtype: [], quantize: [Q5_0]}"
USAGE = """usage: llama-quantize [--help] model-f32.gguf [model-quant.gguf] type [nthreads]
  --tensor-type X : not a type
Allowed quantization types:
   2  or  Q4_0    :  4.34G, +0.4685 ppl @ Llama-3-8B
  38  or  MXFP4_MOE :  MXFP4 MoE
  15  or  Q4_K    : alias for Q4_K_M
          COPY    : only copy tensors, no quantizing
"""


def test_the_types_in_a_help() -> None:
    assert quantize.listed(USAGE) == ("Q4_0", "MXFP4_MOE", "Q4_K", "COPY", "2", "38", "15")
    assert quantize.listed("usage: something else : 1\n") == ()


@pytest.mark.parametrize(
    ("asked", "known", "unknown"),
    [
        (["q4_0", "Copy", "15", "0"], ("Q4_0", "COPY", "15", "0"), []),
        (["Q4_0", "Q9_X", "99", "0"], ("Q4_0", "COPY", "15"), ["Q9_X", "99", "0"]),
        (["Q9_X"], (), []),
    ],
)
def test_types_are_compared_without_case(asked: list[str], known: tuple[str, ...], unknown: list[str]) -> None:
    assert quantize.unknown(asked, known) == unknown


NOW = "warning: blk.{}.x - ncols 64 not divisible by 256 (required for type    {}) -> falling back to    {}"
ONE = "1 tensor has rows that {} cannot hold, and is {} instead"
THEN = "get_type : tensor cols 64 x 64 are not divisible by 256, required for q4_K - using fallback quantization q5_0"


@pytest.mark.parametrize(
    ("lines", "notes"),
    [
        ([], []),
        (["[ 1/ 2] x, converting to q4_K .."], []),
        ([NOW.format(0, "q4_K", "q5_0")], [ONE.format("q4_k", "q5_0")]),
        (
            [NOW.format(0, "q4_K", "q5_0"), NOW.format(1, "q6_K", "q8_0"), NOW.format(2, "q4_K", "q5_0")],
            ["2 tensors have rows that q4_k cannot hold, and are q5_0 instead", ONE.format("q6_k", "q8_0")],
        ),
        ([THEN], [ONE.format("q4_k", "q5_0")]),
        (["(required for type iq1_s) (WARNING: must use F16) -> falling back to f16"], [ONE.format("iq1_s", "f16")]),
    ],
)
def test_tensors_that_a_type_cannot_hold_are_noted(lines: list[str], notes: list[str]) -> None:
    assert list(quantize.fallbacks(lines)) == notes


def test_the_command_with_a_matrix_and_arguments() -> None:
    model = spec.Model(source="a/b", quantize_args=("--pure",))
    asked = commands.quantize_command(Path("/b/q"), Path("/o/a.gguf"), Path("/s/b.gguf"), "IQ1_S", model, True, "imatrix/m.gguf")
    assert asked.argv[1:5] == ("--keep-split", "--imatrix", "imatrix/m.gguf", "--pure") and asked.argv[-1] == "IQ1_S"


def test_the_number_of_threads_comes_last_and_decides_nothing() -> None:
    one, other = (
        commands.quantize_command(Path("q"), Path("a"), Path("b"), "Q4_0", spec.Model(source="a/b", quantize_threads=threads))
        for threads in (0, 3)
    )
    assert other.argv == (*one.argv, "3") and other.deciding == one.deciding == one.argv


@pytest.mark.parametrize(
    ("text", "kept", "between"),
    [
        ("quantize: [Q4_0]", ["b-bf16.gguf", "b-Q4_0.gguf"], None),
        ("outtype: [q8_0, f16]\n    quantize: [Q4_0]", ["b-q8_0.gguf", "b-f16.gguf", "b-Q4_0.gguf"], None),
        ("outtype: q8_0\n    quantize: [Q4_0]", ["b-q8_0.gguf", "b-Q4_0.gguf"], "b-bf16.gguf"),
        ("outtype: []\n    quantize: [Q4_0, Q8_0]", ["b-Q4_0.gguf", "b-Q8_0.gguf"], "b-bf16.gguf"),
        ("outtype: []\n    quantize: [Q4_0]\n    outfile: sub/m.gguf", ["sub/m.gguf"], "sub/m-bf16.gguf"),
        ("outtype: q8_0", ["b-q8_0.gguf"], None),
    ],
)
def test_an_unquantized_file_that_nobody_asks_for_is_temporary(text: str, kept: list[str], between: str | None) -> None:
    job = loader.parse((HEAD + text).encode(), Path("job.yaml"))
    root = (Path.cwd() / "dist").absolute()
    assert [output.path.relative_to(root).as_posix() for output in layout.outputs(job, Path())] == kept
    hidden = [output.path.relative_to(root).as_posix() for _, output in layout.placed(job, Path()) if output.temporary]
    assert hidden == ([between] if between else [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("outtype: []", "expected at least one type"),
        ("quantize: [Q4_0, iq1_s, Q2_K_S]", "iq1_s, Q2_K_S cannot be made without an importance matrix"),
        ("imatrix: x.gguf", "models[0].imatrix: nothing uses it"),
        ("quantize_args: [--pure]", "models[0].quantize_args: nothing uses it"),
        ("quantize_threads: 2", "models[0].quantize_threads: nothing uses it"),
        ("quantize: [Q4_0]\n    quantize_threads: many", "models[0].quantize_threads: expected a number of processors"),
        ("quantize: [Q4_0]\n    imatrix: {chunks: 5}", "expected `file` or `text`"),
        ("quantize: [Q4_0]\n    imatrix: {file: a, text: b}", "and not both"),
        ("quantize: [Q4_0]\n    imatrix: {file: a, chunks: 5}", "made from a `text`"),
        ("quantize: [Q4_0]\n    imatrix: {text: a, chunks: 010}", "expected a number"),
        ("quantize: [Q4_0]\n    imatrix: {text: a, minutes: 0}", "expected a number of minutes"),
        ("quantize: [Q4_0]\n    imatrix: {text: a, chunk: 1}", 'did you mean "chunks"?'),
        ("quantize: [Q4_0]\n    imatrix: ' '", "expected a file"),
        ("quantize: [Q4_0]\n    quantize_args: [--imatrix, x]", "write it under `imatrix`"),
        ("quantize: [Q4_0]\n    quantize_args: [--tensor-type-file, x]", "write each of its lines as --tensor-type"),
        (f"outtype: q8_0\n    quantize: [Q4_0]\n  - {OTHER_B}", "makes the file B-bf16.gguf, and so does models[0].quantize"),
    ],
)
def test_complaints(text: str, said: str) -> None:
    with pytest.raises(JobError) as caught:
        loader.parse((HEAD + text).encode(), Path("job.yaml"))
    assert said in caught.value.message


def test_a_matrix_in_the_job(tmp_path: Path) -> None:
    def found(text: str) -> spec.Imatrix | None:
        return loader.parse(f"{HEAD}quantize: [IQ1_S]\n    imatrix: {text}\n".encode(), tmp_path / "job.yaml").models[0].imatrix

    assert found("m.gguf") == spec.Imatrix(file="m.gguf")
    assert found("{text: a.txt, chunks: 10, minutes: 5, args: [-ngl, 99]}") == spec.Imatrix(
        text="a.txt", chunks=10, minutes=5, args=("-ngl", "99")
    )
    file = tmp_path / "job.yaml"
    (tmp_path / "b").mkdir()
    for text, place in (("m.gguf", "imatrix: "), ("{text: m.txt}", "imatrix.text: ")):
        file.write_text(HEAD.replace("a/b", "./b") + f"quantize: [Q4_0]\n    imatrix: {text}\n")
        with pytest.raises(JobError, match=f"models.0..{place}.*m.* is not a file"):
            loader.load(file)
    matrix = loader.schema()["$defs"]["Model"]["properties"]["imatrix"]
    assert matrix["anyOf"][0] == {"type": "string"} and matrix["description"]


def test_what_decides_a_matrix(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    (tmp_path / "t.txt").write_text("one")

    def digest(recipe: str = "r", tree: str = "t", **asked: Any) -> str:
        wanted = spec.Imatrix(**{"text": "t.txt"} | asked)
        matrix = imatrix.find(wanted, tmp_path / "t.txt", store, ("mine", recipe), ("b11434", tree))
        assert not imatrix.ready(matrix, store)
        return matrix.digest

    made = [digest(), digest(recipe="s"), digest(tree="u"), digest(chunks=3), digest(args=("-ngl", "1"))]
    assert digest(minutes=1) == made[0] and len(set(made)) == len(made)
    (tmp_path / "t.txt").write_text("three")
    assert digest() not in made
    sides = ("mine", "r"), ("b3878", "t")
    older = imatrix.find(spec.Imatrix(text="t.txt"), tmp_path / "t.txt", store, *sides)
    assert older.name == "mine-imatrix.dat"
    given = imatrix.find(spec.Imatrix(file="t.txt"), tmp_path / "t.txt", store, *sides)
    assert imatrix.ready(given, store) and given.digest == file_sha256(tmp_path / "t.txt")
    with pytest.raises(JobError, match="none.txt cannot be read"):
        imatrix.find(spec.Imatrix(text="none.txt"), tmp_path / "none.txt", store, *sides)


@pytest.mark.parametrize(
    ("message", "tail", "hint"),
    [
        ("ended with exit code 1", "you need at least 1024 tokens for a context of 512 tokens", "1024 tokens"),
        ("`llama-imatrix` took longer than 5 min", "[1]4.2", "`minutes`"),
        ("ended with exit code 1", "something", "log"),
    ],
)
def test_words_of_llama_imatrix(message: str, tail: str, hint: str) -> None:
    assert hint in imatrix.explain(CommandFailed(message, code=1, tail=tail))[1]


def test_a_matrix_is_made_on_the_processor_unless_layers_are_given_away() -> None:
    asked = imatrix.command(Path("/b/i"), Path("/m.gguf"), "t.txt", "made.gguf", ("--chunks", "3"), Path("/c"))
    assert asked.argv[1:7] == ("-m", str(Path("/m.gguf")), "-f", "t.txt", "-o", "made.gguf") and asked.cwd == str(Path("/c"))
    assert dict(asked.env)["CUDA_VISIBLE_DEVICES"] == "" and asked.argv[-2:] == ("--chunks", "3")
    given = dict(imatrix.command(Path("/b/i"), Path("/m"), "t", "o", ("-ngl", "99"), Path("/c")).env)
    assert given.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_a_tool_that_says_done_and_has_made_no_matrix(tmp_path: Path) -> None:
    store, tool = Store(tmp_path / "cache"), tmp_path / "llama-imatrix"
    (tmp_path / "t.txt").write_text("words")
    script(tool, "echo 'tokenizes to only 1 tokens'")
    matrix = imatrix.find(spec.Imatrix(text="t.txt"), tmp_path / "t.txt", store, ("mine", "r"), ("b11434", "t"))
    assert matrix.name == "mine-imatrix.gguf"
    with pytest.raises(OrchestrateError, match="the text is too short: .* wrote no matrix"):
        imatrix.make(matrix, store, tool, tmp_path / "m.gguf", tmp_path / "log", lambda text: None)
    assert not imatrix.ready(matrix, store)
    script(tool, 'echo matrix > "$6"')
    imatrix.make(matrix, store, tool, tmp_path / "m.gguf", tmp_path / "log", lambda text: None)
    stage = tmp_path / "stage"
    stage.mkdir()
    laid, kept = stage / matrix.name, tmp_path / matrix.name
    # Beside the output it is put once, over what was made before, and not over what somebody else has put there.
    for there, ours, now in (
        (None, (), "matrix\n"),
        ("matrix\n", (), "matrix\n"),
        ("old", (), "old"),
        ("old", ("old",), "matrix\n"),
    ):
        kept.unlink(missing_ok=True)
        if there is not None:
            kept.write_text(there)
        imatrix.lay(matrix, store, stage)
        assert laid.read_text() == "matrix\n"
        notes = imatrix.keep(matrix, stage, tmp_path, [hashlib.sha256(each.encode()).hexdigest() for each in ours])
        assert kept.read_text() == now and not laid.exists() and bool(notes) == (now == "old")
    shutil.rmtree(store.root)
    with pytest.raises(OrchestrateError, match="imatrix.gguf cannot be read"):
        imatrix.lay(matrix, store, stage)


@pytest.fixture
def text(world: Path) -> Path:
    """Words enough for some pieces of 512 tokens."""
    chosen, words = random.Random(1), ("the", "of", "and", "to", "in", "is", "that", "was", "for", "on", "with", "as", "his")
    (world / "words.txt").write_text("\n".join(" ".join(chosen.choices(words, k=20)) for _ in range(150)))
    return world / "words.txt"


@pytest.mark.slow
def test_many_types_from_a_temporary_file_with_a_matrix(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, text: Path, shared_cache: Path
) -> None:
    kinds = ["Q4_K_M", "q5_1", "IQ2_XXS", "TQ2_0", "15"]
    model = {"source": str(data / "tiny-llama"), "outtype": [], "quantize": kinds}
    model["quantize_args"] = ["--output-tensor-type", "f16"]
    file = job(model | {"imatrix": {"text": "words.txt", "chunks": "2"}}, binaries=built)
    shutil.rmtree(shared_cache / "imatrix", ignore_errors=True)
    shown = orchestrate("plan", file).out
    assert "temporary, until all is made of it" in shown and "llama-imatrix" in shown and "at most 120 minutes" in shown
    answer = orchestrate("run", file, "--json")
    assert answer.code == 0, answer.err
    assert [(output["kind"], output["type"]) for output in answer.json()["outputs"]] == [("quantized", kind) for kind in kinds]
    assert "done    imatrix tiny-llama-bf16.gguf" in answer.err
    assert "note: tiny-llama-Q4_K_M.gguf: 13 tensors have rows" in answer.err
    assert remains(world / "dist", also=(".*",)) == [] and len(list((world / "dist").glob("*.gguf"))) == len(kinds) + 1
    receipt = json.loads((world / "dist" / "tiny-llama-IQ2_XXS.gguf.receipt.json").read_text())
    assert any("iq2_xxs cannot hold" in note for note in receipt["notes"])
    assert [each["name"] for each in receipt["inputs"]] == ["tiny-llama-bf16.gguf", "tiny-llama-imatrix.gguf"]
    assert receipt["inputs"][1]["sha256"] == file_sha256(world / "dist" / "tiny-llama-imatrix.gguf")
    metadata = gguf.contents([world / "dist" / "tiny-llama-q5_1.gguf"]).metadata
    assert metadata["quantize.imatrix.file"] == "tiny-llama-imatrix.gguf" and metadata["quantize.imatrix.dataset"] == "words.txt"
    assert gguf.check(world / "dist" / "tiny-llama-15.gguf").file_type == 15

    again = orchestrate("run", file, "--json")
    assert {output["status"] for output in again.json()["outputs"]} == {"current"} and "bf16" not in again.err
    assert orchestrate("verify", "dist").code == 0
    # The same matrix again, and the same bytes.
    before = sums(world / "dist")
    shutil.rmtree(shared_cache / "imatrix")
    assert orchestrate("run", file, "--force").code == 0
    assert sums(world / "dist") == before


@pytest.mark.slow
def test_a_given_matrix_is_pinned_by_its_content(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, text: Path, shared_cache: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "f16", "quantize": ["IQ2_XS"]}
    keys = []
    for chunks in (2, 3):
        assert orchestrate("run", job(model | {"imatrix": {"text": "words.txt", "chunks": chunks}}, binaries=built)).code == 0
        receipt = json.loads((world / "dist" / "tiny-llama-IQ2_XS.gguf.receipt.json").read_text())
        keys.append(receipt["inputs"][1]["digest"])
    made = {path.parent.name: path for path in (shared_cache / "imatrix").glob("*/imatrix.gguf")}
    file = job(model | {"imatrix": "./mine.gguf"}, binaries=built)
    shutil.copy(made[keys[0]], world / "mine.gguf")
    first = orchestrate("run", file, "--json")
    assert first.code == 0, first.err
    assert "imatrix tiny" not in first.err and orchestrate("run", file, "--json").json()["outputs"][1]["status"] == "current"
    shutil.copy(made[keys[1]], world / "mine.gguf")
    second = orchestrate("run", file, "--json").json()
    assert [output["status"] for output in second["outputs"]] == ["current", "built"]
    assert second["outputs"][1]["sha256"] != first.json()["outputs"][1]["sha256"]
    (world / "mine.gguf").write_text("not a matrix")
    answer = orchestrate("run", file)
    assert answer.code == 1 and "cannot read the importance matrix" in answer.err


def test_an_unknown_type_is_told_before_anything_is_converted(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path
) -> None:
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "quantize": ["q4_k_mm"]}, binaries=built))
    assert answer.code == 2 and f"the llama-quantize of {TAG} has no type `q4_k_mm`" in answer.err
    assert 'did you mean "Q4_K_M"?' in answer.err and not (world / "dist").exists()


def test_a_failed_quantization_keeps_the_temporary_file_for_the_next_run(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": "q8_0", "quantize": ["Q4_0", "Q5_0"]}
    answer = orchestrate("run", job(model | {"quantize_args": ["--tensor-type", "x=nonsense"]}, binaries=built), "--keep-going")
    assert answer.code == 1 and "does not take these arguments" in answer.err and "'nonsense'" in answer.err
    left = remains(world / "dist", also=(".*",))
    assert len(left) == 1 and (world / "dist" / left[0] / "tiny-llama-bf16.gguf").is_file()
    again = orchestrate("run", job(model, binaries=built), "--json")
    assert again.code == 0 and not [step for step in again.json()["steps"] if "bf16" in step["name"]], again.err
    assert remains(world / "dist", also=(".*",)) == []
    # What nothing is to be made of any more goes, even when nothing else is to be done.
    (world / "dist" / left[0]).mkdir()
    assert orchestrate("run", job(model, binaries=built)).code == 0 and remains(world / "dist", also=(".*",)) == []


def test_a_failed_conversion_leaves_no_folder(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], copy: Callable[..., Path], world: Path
) -> None:
    (copy("tiny-llama") / "tokenizer.model").unlink()
    answer = orchestrate("run", job({"source": "./model", "outtype": [], "quantize": ["Q4_0"]}, binaries=built))
    assert answer.code == 1 and "tokenizer" in answer.err and not list((world / "dist").iterdir())


def test_a_kept_file_and_a_temporary_one_give_the_same(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "quantize": ["Q8_0"]}
    kept = orchestrate("run", job(model, binaries=built), "--json").json()["outputs"]
    file = job(model | {"outtype": []}, binaries=built)
    assert orchestrate("run", file, "--json").json()["outputs"] == [kept[1] | {"status": "current"}]
    assert (world / "dist" / "tiny-llama-bf16.gguf").is_file(), "what is no longer asked for is nobody's to delete"
    assert orchestrate("run", file, "--json", "--force").json()["outputs"] == [kept[1]]


def test_a_split_model_is_quantized_to_a_split_one(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": [], "args": ["--split-max-size", "5M"], "quantize": ["Q8_0"]}
    answer = orchestrate("run", job(model, binaries=built), "--json")
    assert answer.code == 0, answer.err
    names = [Path(output["path"]).name for output in answer.json()["outputs"]]
    assert len(names) > 1 and names[0] == f"tiny-llama-Q8_0-00001-of-{len(names):05}.gguf"
    assert remains(world / "dist", also=(".*",)) == []
    # The same where the split source is kept, whether the receipt is of a first run or of an earlier version's second.
    kept = job(model | {"outtype": "bf16"}, binaries=built)
    assert orchestrate("run", kept).code == 0
    assert {output["status"] for output in orchestrate("run", kept, "--json").json()["outputs"]} == {"current"}
    command = next(step["command"] for step in orchestrate("plan", kept, "--json").json()["steps"] if "Q8_0" in step["name"])
    assert "--keep-split" in command and "-00001-of-" in command


def test_a_text_that_is_too_short(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path, shared_cache: Path
) -> None:
    (world / "short.txt").write_text("only this")
    model = {"source": str(data / "tiny-llama"), "quantize": ["IQ2_S"], "imatrix": {"text": "short.txt"}}
    answer = orchestrate("run", job(model, binaries=built))
    assert answer.code == 1 and "the text is too short" in answer.err and "1024 tokens" in answer.err


def test_the_programs_of_a_job_with_no_release(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, world: Path
) -> None:
    file = job(str(data / "tiny-llama"), binaries=built)
    answer = orchestrate("exec", file, "--", "llama-quantize", "--help")
    assert answer.code == 1 and "Q4_K_M" in answer.out and "assets" not in (world / "job.lock.yaml").read_text()
    assert "11434" in orchestrate("exec", file, "--", "llama-imatrix", "--version").err
    answer = orchestrate("doctor", file)
    assert "built from source with" in answer.out
    shown = orchestrate("plan", job({"source": str(data / "tiny-llama"), "quantize": ["Q8_0"]}, binaries=built), "--json").json()
    assert next(step for step in shown["steps"] if step["name"] == "binaries")["status"] == "cached"
    assert orchestrate("run", file, "--locked", "--offline").code == 0


OTHER = Toolchain(cc="cc", cxx="c++", version="other")


def test_programs_that_are_not_built_yet_are_planned_and_missed_offline(
    orchestrate: Orchestrate, job: Job, built: dict[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job({"source": str(data / "tiny-llama"), "quantize": ["Q8_0"]}, binaries=built)
    assert orchestrate("lock", file).code == 0
    monkeypatch.setattr("llamacpp_orchestrator.pipeline.binaries.toolchain", lambda here: OTHER)
    shown = orchestrate("plan", file).out
    assert "build   binaries: from the source of b11434, with other" in shown and "for building the programs" in shown
    answer = orchestrate("run", file, "--offline")
    assert answer.code == 1 and f"the source of {TAG}" in answer.err


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("main: invalid ftype 'Q9'", "llama-quantize"),
        ("this quantization requires an importance matrix! it is required", "Q4_K_M"),
        ("load_imatrix: failed to load imatrix from 'x'", "from a text"),
        ("imatrix size 64 is different from tensor size 128 for x", "of this model"),
        ("usage: llama-quantize [--help]", "quantize_args"),
        ("No space left on device", "free some space"),
        ("other", "log"),
    ],
)
def test_llama_quantize_is_explained(said: str, hint: str) -> None:
    assert hint in quantize.explain(said)[1]
