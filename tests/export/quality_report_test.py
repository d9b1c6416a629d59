"""What a job asks to be measured, how the tool is called, and what is read of its words, of today and of 2024."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator import results
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.verify import perplexity

HEAD = "version: 1\nllama_cpp: {tag: b11434}\nmodels:\n  - source: a/b\n    "
TABLE = """0.00.202.865 I kl_divergence: computing over 6 chunks, n_ctx=512, batch_size=2048, n_seq=4
   6    39061.4378 ±  558.4188       0.00326 ±    0.00113       0.00082 ±    0.00001     0.000 ±  0.000 %    75.359 ±  1.102 %
====== Perplexity statistics ======
Mean PPL(Q)                   : 39061.437835 ± 558.418783
Mean PPL(base)                : 38934.162368 ± 542.608583
Cor(ln(PPL(Q)), ln(PPL(base))):  99.71%
Mean ln(PPL(Q)/PPL(base))     :   0.003264 ±   0.001133
Mean PPL(Q)/PPL(base)         :   1.003269 ±   0.001137
====== KL divergence statistics ======
Mean    KLD:   0.000818 ±   0.000006
Maximum KLD:   0.001560
99.9%   KLD:   0.001489
Median  KLD:   0.000781
Minimum KLD:   0.000414
====== Token probability statistics ======
Mean    Δp:  0.000 ± 0.000 %
RMS Δp    :  0.000 ± -nan %
Same top p: 75.359 ± 1.102 %
"""
READ = {
    "ppl": 39061.437835, "ppl_error": 558.418783, "base_ppl": 38934.162368, "base_ppl_error": 542.608583,
    "kld": 0.000818, "kld_error": 0.000006, "kld_median": 0.000781,
    "kld_max": 0.00156, "same_top": 75.359, "same_top_error": 1.102,
}  # fmt: skip


def test_what_the_tool_says_of_two_models() -> None:
    assert perplexity.parse(TABLE) == READ
    # On Windows the sign between may come through as other letters.
    assert perplexity.parse(TABLE.replace("±", "Â±").replace("Δ", "??").replace("\n", "\r\n")) == READ
    assert perplexity.parse("") == {}


@pytest.mark.parametrize(
    ("old", "new", "absent"),
    [
        ("Mean    KLD:   0.000818 ±   0.000006", "Mean    KLD:       -nan ±       -nan", {"kld", "kld_error"}),
        ("Mean PPL(Q)                   : 39061.437835 ±", "Mean PPL(Q)                   :      inf ±", {"ppl", "ppl_error"}),
        ("Same top p: 75.359 ± 1.102 %", "Same top p: 75.359 ± -nan %", {"same_top_error"}),
        ("Mean    KLD:   0.000818", "Mean    KLD:  -0.000001", set()),
    ],
)
def test_what_is_no_number_is_not_taken_for_one(old: str, new: str, absent: set[str]) -> None:
    assert old in TABLE
    assert READ.keys() - perplexity.parse(TABLE.replace(old, new)).keys() == absent


@pytest.mark.parametrize(
    ("line", "now"),
    [
        (TABLE.splitlines()[1], "6/6"),
        ("  12    9.1 ± 0.1     0.00153 ±    0.00259       0.00071 ±    0.00001", "12/6"),
        ("[1]39199.5107,[2]39476.9965", ""),
        ("chunk             PPL               ln(PPL(Q)/PPL(base))", ""),
    ],
)
def test_progress(line: str, now: str) -> None:
    assert perplexity.progress_of(line, "6") == now and perplexity.progress_of(line, "") == ""


def test_the_commands() -> None:
    asked = spec.Quality(text="t.txt", chunks=3, args=("-t", "4"))
    first = perplexity.command(Path("/b/p"), Path("/m.gguf"), asked, Path("/t.txt"))
    again = perplexity.command(Path("/b/p"), Path("/q.gguf"), asked)
    shared = ("--kl-divergence-base", "base.logits", "-c", "512", "-ngl", "0")
    assert first.argv == (
        *(str(Path("/b/p")), "-m", str(Path("/m.gguf")), "-f", str(Path("/t.txt"))),
        *shared,
        *("--chunks", "3", "-t", "4"),
    )
    assert again.argv == (str(Path("/b/p")), "-m", str(Path("/q.gguf")), "--kl-divergence", *shared, "-t", "4")
    assert dict(first.env)["CUDA_VISIBLE_DEVICES"] == ""
    gpu = perplexity.command(Path("/b/p"), Path("/q.gguf"), spec.Quality(text="t", args=("-ngl", "99")))
    assert dict(gpu.env).get("CUDA_VISIBLE_DEVICES") != "" and gpu.argv[-2:] == ("-ngl", "99")


@pytest.mark.parametrize(
    ("tail", "message", "cause", "hint"),
    [
        (
            "0.0 E perplexity: the data file you provided tokenizes to only 2 tokens",
            "",
            "too short (the data file",
            "1024 tokens",
        ),
        ("x", "`p` took longer than 5 min", "", "`minutes`"),
        ("kl_divergence: failed reading log-probs for chunk 3", "", "the file between", "disk full"),
        ("Mean    KLD: -nan", "", "no numbers", "drop the type"),
        ("what nobody knows", "", "", "the log holds"),
    ],
)
def test_explanations(tail: str, message: str, cause: str, hint: str) -> None:
    said = perplexity.explain(CommandFailed(message, code=1, tail=tail))
    assert cause in said[0] and hint in said[1] and bool(cause) == bool(said[0])


def test_the_file_of_answers(tmp_path: Path) -> None:
    # Of a real one: tiny-llama's 32000 words, 6 pieces.
    assert perplexity.logits_bytes(6, 32000) == 97_944_548
    file = tmp_path / "base.logits"
    whole = perplexity.HEADER.pack(b"_logits_", 512, 3, 2) + bytes(perplexity.logits_bytes(2, 3) - perplexity.HEADER.size)
    no_room = ("the file between could not be written or read", "is the disk full?")
    too_short = ("the text is too short", "give one of at least 1024 tokens, better of 50,000 or more")
    assert perplexity.flaw(file) == no_room
    for content, flaw in ((whole, ("", "")), (whole[:-1], no_room), (whole[:12], too_short)):
        file.write_bytes(content)
        assert perplexity.flaw(file) == flaw


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quality: t.txt", "models[0].quality: nothing is measured"),
        ("outtype: []\n    quantize: [Q4_0]\n    quality: t.txt", "none is kept: add bf16 to `outtype`"),
        ("outtype: q8_0\n    quantize: [Q4_0]\n    quality: t.txt", "none is kept: add bf16 to `outtype`"),
        ("quantize: [Q4_0]\n    quality: {chunks: 3}", "models[0].quality.text: missing"),
        ("quantize: [Q4_0]\n    quality: ' '", "expected a file"),
        ("quantize: [Q4_0]\n    quality: {text: t, minutes: 0}", "expected a number of minutes"),
        ("quantize: [Q4_0]\n    quality: {text: t, chunks: -1}", "expected a number"),
        ("quantize: [Q4_0]\n    quality: {text: t, args: [-m, x]}", "-m is not yours to give"),
        ("quantize: [Q4_0]\n    quality: {text: t, chunk: 1}", 'did you mean "chunks"?'),
        (
            "quantize: [Q4_0]\n    quality: t\n  - {source: c/b, quantize: [Q5_0], quality: t, outfile: 'x-{type}.gguf'}",
            "makes the file b-quality.json, and so does models[0].quality",
        ),
    ],
)
def test_complaints(text: str, said: str) -> None:
    with pytest.raises(JobError) as caught:
        loader.parse((HEAD + text).encode(), Path("job.yaml"))
    assert said in caught.value.message


def test_in_the_job(tmp_path: Path) -> None:
    def found(text: str) -> spec.Quality | None:
        return loader.parse(f"{HEAD}quantize: [Q4_0]\n    quality: {text}\n".encode(), tmp_path / "job.yaml").models[0].quality

    assert found("t.txt") == spec.Quality(text="t.txt")
    assert found("{text: t.txt, chunks: 4, minutes: 5, args: [-t, 2]}") == spec.Quality(
        text="t.txt", chunks=4, minutes=5, args=("-t", "2")
    )
    file = tmp_path / "job.yaml"
    (tmp_path / "b").mkdir()
    for text, place in (("t.txt", "quality: "), ("{text: t.txt}", "quality.text: ")):
        file.write_text(HEAD.replace("a/b", "./b") + f"quantize: [Q4_0]\n    quality: {text}\n")
        with pytest.raises(JobError, match=f"models.0..{place}.*t.txt is not a file"):
            loader.load(file)
    asked = loader.schema()["$defs"]["Model"]["properties"]["quality"]
    assert asked["anyOf"][0] == {"type": "string"} and asked["description"]


def test_the_table() -> None:
    def row(**more: Any) -> results.Measure:
        return results.Measure(file="a/x.gguf", type="t", size=9_100_000, bits=16.0, ppl=12.5, **more)

    shown = results.Quality(
        model="m", report="/r.json", plot="/r.svg", unquantized=row(), types=(row(kld=0.0123456, same_top=95.123),)
    )
    assert shown.lines() == [
        "quality    9.1 MB  16.00 bits  PPL    12.5000                               a/x.gguf",
        "quality    9.1 MB  16.00 bits  PPL    12.5000  KLD 0.012346   95.12 % same  a/x.gguf",
        "quality /r.svg",
    ]
    assert len(msgspec_less(shown).lines()) == 1


def msgspec_less(shown: results.Quality) -> results.Quality:
    return results.Quality(model="m", report="/r.json", plot="/r.svg", unquantized=shown.unquantized, types=())
