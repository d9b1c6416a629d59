"""The calls that make every output, as values: upstream's two scripts and the tag's `llama-quantize`."""

from __future__ import annotations

from pathlib import Path

from llamacpp_orchestrator.job.spec import Model
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import tool_env

METADATA = "--metadata"


def model_command(python: str, tree: Path, view: Path, outfile: Path, outtype: str, name: str, args: tuple[str, ...]) -> Command:
    """The call that converts a base; the job's own arguments come last, so that they have the last word.

    Without a name the script takes it from its `--metadata` file, over which the option would win (gguf-py/gguf/metadata.py).
    """
    named = ("--model-name", name) if name else ()
    options = ("--outfile", _literal(outfile), "--outtype", outtype, *named, *args)
    return Command((python, str(tree / SCRIPTS["model"]), str(view), *options), cwd=str(outfile.parent))


def _literal(outfile: Path) -> str:
    """A path as the scripts take it as it is: braces in its name are parts to be filled in (gguf-py/gguf/utility.py)."""
    return str(outfile.with_name(outfile.name.replace("{", "{{").replace("}", "}}")))


def vocabulary_command(command: Command, view: Path, outfile: Path) -> Command:
    """A model's call on its small files alone: all but its tensors is read, and the vocabulary written.

    Of the type it is only seen whether the script takes it: b3878 looks into the weights for `auto`.
    """
    python, script, _, *options = command.argv
    places = {options.index("--outfile") + 1: str(outfile)}
    if options[(at := options.index("--outtype") + 1)] == "auto":
        places[at] = "f16"
    words = [places.get(at, word) for at, word in enumerate(options)]
    return Command((python, script, str(view), "--vocab-only", *words), cwd=str(outfile.parent), env=command.env)


def metadata(args: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Arguments of a model without `--metadata FILE`, as argparse lets one write that, and the file; "" where there is none."""
    kept: list[str] = []
    file = ""
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if len(option) > len("--me") and METADATA.startswith(option):
            file = value if equals else next(words, "")
        else:
            kept.append(word)
    return tuple(kept), file


def adapter_command(
    python: str, tree: Path, base: Path, view: Path, outfile: Path, outtype: str, args: tuple[str, ...]
) -> Command:
    """The call that converts an adapter; always with `--base`, or the script would ask the hub."""
    options = ("--base", str(base), "--outfile", _literal(outfile), "--outtype", outtype, *args)
    return Command((python, str(tree / SCRIPTS["adapter"]), str(view), *options), cwd=str(outfile.parent))


def quantize_command(
    tool: Path, source: Path, outfile: Path, type_: str, model: Model, split: bool = False, matrix: str = ""
) -> Command:
    """The call that makes one type of one file; always with all three arguments, or the tool picks a name by itself."""
    options = (*(("--keep-split",) if split else ()), *(("--imatrix", matrix) if matrix else ()), *model.quantize_args)
    threads = (str(model.quantize_threads),) if model.quantize_threads else ()
    argv = (str(tool), *options, str(source), str(outfile), type_, *threads)
    return Command(argv, cwd=str(outfile.parent), env=tool_env(tool), idle=len(threads))
