"""llama-perplexity: its command line, its words and its results."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.meanings import Meaning
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.system.command import Command

TOOL, LOGITS = "{llama-perplexity}", "base.logits"
CONTEXT = 512
HEADER = struct.Struct("<8s3i")
NUMBER = r"\s*(-?\d+(?:\.\d+)?)"
# What is read of the tool's table → the words before it; the same since 2024 (kl_divergence in perplexity.cpp).
WORDS = {
    "ppl": r"Mean PPL\(Q\)\s*:",
    "base_ppl": r"Mean PPL\(base\)\s*:",
    "kld": r"Mean\s+KLD:",
    "kld_median": r"Median\s+KLD:",
    "kld_max": r"Maximum KLD:",
    "same_top": r"Same top p:",
}
UNCERTAIN = ("ppl", "base_ppl", "kld", "same_top")
# What the tool says of them, if its words are not lost.
TOO_SHORT, NO_ROOM = f"you need at least {2 * CONTEXT} tokens", f"failed to open {LOGITS}"


def command(tool: Path, model: Path, asked: spec.Quality, text: Path | None = None) -> Command:
    """The call that keeps the answers of the unquantized model to a text, or, without one, compares another model's with them."""
    task = ("-f", str(text)) if text else ("--kl-divergence",)
    chunks = ("--chunks", str(asked.chunks)) if text and asked.chunks else ()
    argv = (str(tool), "-m", str(model), *task, "--kl-divergence-base", LOGITS, "-c", str(CONTEXT), "-ngl", "0", *chunks)
    return Command((*argv, *asked.args), env=imatrix.tool_env(tool, asked.args))


def parse(said: str) -> dict[str, float]:
    """The numbers of the tool's table of one model against another; those that it does not tell are absent."""
    found = {}
    for key, words in WORDS.items():
        if match := re.search(rf"{words}{NUMBER}(?:\s*%)?(?:\s+\S+{NUMBER})?", said):
            found[key] = float(match[1])
            found |= {f"{key}_error": float(match[2])} if match[2] and key in UNCERTAIN else {}
    return found


def progress_of(line: str, total: str) -> str:
    """What a line of the table says about how far it is: "3/12", or nothing."""
    found = re.match(r"\s*(\d+)(?:\s+-?\d+\.\d+\s+\S+\s+-?\d+\.\d+){3}", line)
    return f"{found[1]}/{total}" if found and total else ""


def explain(error: CommandFailed) -> tuple[str, str]:
    """What the tool's end likely means, and what to do."""
    cause, remedy = diagnose.machine(error.code, f"{error.message}\n{error.tail}")
    if remedy:
        return f"{cause}: " if cause else "", remedy
    if "longer than" in error.message:
        return "", "give it more time (`minutes`) or less to do (`chunks`) under `quality`"
    for row in known():
        if lines := [line for line in error.tail.splitlines() if re.search(row.pattern, line)]:
            return f"{row.means} ({lines[-1].split(': ', 1)[-1].strip()}): ", row.way
    return "", "the log holds the tool's whole output"


def known() -> tuple[Meaning, ...]:
    """The tool's own words; with most of them it ends with exit code 0."""
    return (*table("convert", "llama_imatrix"), *table("verify", "llama_perplexity"))


def logits_bytes(chunks: int, vocabulary: int, context: int = CONTEXT) -> int:
    """The size of the file of answers: two bytes for each word of the vocabulary after each token of the second half."""
    row = 2 * ((vocabulary + 1) // 2) + 4
    return HEADER.size + chunks * (context * 4 + (context - 1 - context // 2) * row * 2)


def flaw(logits: Path) -> tuple[str, str]:
    """Why a file of answers is of no use, and what to do; the tool may have ended well, and its words may be lost."""
    try:
        with logits.open("rb") as file:
            head, size = file.read(HEADER.size), logits.stat().st_size
    except OSError:
        return matched(NO_ROOM, known())
    if size < HEADER.size:  # the tool begins to write, then counts the tokens, and only then goes on
        return matched(TOO_SHORT, known())
    _, context, vocabulary, chunks = HEADER.unpack(head)
    return matched(NO_ROOM, known()) if size < logits_bytes(chunks, vocabulary, context) else ("", "")
