"""What is told about a job's options, against the answers of the scripts' own argparse."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.convert import arguments
from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert.capabilities import Option
from llamacpp_orchestrator.source.tree import SCRIPTS

# Loads a real script and lets it parse each list of words; None where it takes them, else its complaint.
ASK = """
import contextlib, io, json, runpy, sys
path, cases = sys.argv[1], json.loads(sys.argv[2])
sys.path[0] = path.rpartition("/")[0]
parse = runpy.run_path(path, run_name="asked")["parse_args"]
answers = []
for words in cases:
    sys.argv = ["script", *words]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            parse()
            answers.append(None)
        except SystemExit:
            answers.append(said.getvalue().strip().splitlines()[-1])
print(json.dumps(answers))
"""
MODEL = {
    "--split-max-size 4G": "",
    "--split-max-size=4G --no-lazy": "",
    "--split-max-s 4G": "",
    "--verb": "",
    "--split-max-tensors -1": "",
    "--split-max-tensors=-1": "",
    "--metadata=x=y": "",
    "--model-name a --model-name b": "",
    "--outtype f32": "",
    "--no-lazyy": "did you mean --no-lazy",
    "--split-max 4": "--split-max-tensors, --split-max-size",
    "--split-max-size": "list it as the next",
    "--split-max-size --verbose": "list it as the next",
    "--metadata": "list it as the next",
    "--outtype q4_k_m": "it takes f32",
    "--outtype=q4_k_m": "it takes f32",
    "--verbose=yes": "write `--verbose` alone",
    "--zzz": "it has --",
    "-v": "it has --",
    "--nope=1": "did you mean --no",
}
ADAPTER = {"--verbose --no-lazy": "", "--split-max-size 4G": "it has --", "--base-model": "", "--dry": ""}


def verdicts(python: Path, tree: Path, kind: str, cases: list[list[str]], env: dict[str, str]) -> list[tuple[str, str | None]]:
    """Our complaint and argparse's, for each case."""
    positional = {"model": ["model"], "adapter": ["--base", "b", "lora"]}[kind]
    asked = json.dumps([[*positional, *words] for words in cases])
    argv = [str(python), "-c", ASK, (tree / SCRIPTS[kind]).as_posix(), asked]
    said = subprocess.run(argv, env={**os.environ, **env}, stdout=subprocess.PIPE, check=True, text=True)
    known = capabilities.options(tree, kind)
    ours = [" ".join(arguments.complaint(known, words) or ()) for words in cases]
    return list(zip(ours, json.loads(said.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(("tag", "kind"), [(tag, kind) for tag in ("0.3.1", "b11434") for kind in SCRIPTS])
def test_ours_is_the_verdict_of_argparse(
    tag: str, kind: str, tree: Callable[[str], Path], python: Path, compiled: dict[str, str]
) -> None:
    table = MODEL if kind == "model" else ADAPTER
    cases = [words.split() for words in table]
    for words, (ours, theirs) in zip(table, verdicts(python, tree(tag), kind, cases, compiled), strict=True):
        assert bool(ours) is bool(theirs), (words, ours, theirs)


def test_the_complaints_say_what_to_do(tree: Callable[[str], Path]) -> None:
    known = capabilities.options(tree("b11434"), "model")
    for words, hint in MODEL.items():
        found = arguments.complaint(known, words.split())
        assert (found is None) if not hint else found and hint in found[1], words


LIST = Option(names=("--list",), words=-1)
SHORT = Option(names=("-n", "--number"))


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ((), ["--nope"]),
        ((LIST,), ["--list", "a", "b"]),
        ((LIST,), ["a"]),
        ((LIST,), ["--list", "a", "--nope"]),
        ((SHORT,), ["-n5"]),
        ((SHORT,), ["--number", "a b"]),
        ((SHORT,), ["--number", "-b c"]),
        ((SHORT,), ["--", "--nope"]),
        ((SHORT,), []),
    ],
)
def test_in_doubt_nothing_is_said(known: tuple[Option, ...], words: list[str]) -> None:
    assert arguments.complaint(known, words) is None


def test_a_second_model_is_nothing_that_a_script_takes() -> None:
    assert "`other`" in " ".join(arguments.complaint((SHORT,), ["--number", "1", "other"]) or ())
    assert "-x" in " ".join(arguments.complaint((SHORT,), ["-x"]) or ())
