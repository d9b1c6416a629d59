"""A job out of the options of `orchestrate convert`, and what is wrong with it in the words of these options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.loader import APART
from llamacpp_orchestrator.job.loader import WAY

# Key of a job → the option that fills it.
OPTIONS = (
    (r"models\[0\]\.source", "MODEL"),
    (r"models\[0\]\.loras\[\d+\](\.\w+)?", "--lora"),
    (r"models\[0\]\.merge(\[\d+\](\.\w+)?)?", "--merge"),
    (r"models\[0\]\.outtype(\[\d+\])?", "--outtype"),
    (r"models\[0\]\.quantize(\[\d+\])?", "--quantize"),
    (r"llama_cpp\.tag", "--tag"),
    (r"environment\.overrides\[\d+\]", "--override"),
    ("output", "--output"),
)
# The same where a text speaks of them.
WORDS = {
    "source": "MODEL", "models": "MODEL", "loras": "--lora", "merge": "--merge", "outtype": "--outtype", "quantize": "--quantize",
    "output": "--output", "llama_cpp.tag": "--tag", "tag": "--tag", "overrides": "--override",
}  # fmt: skip
# What no option fills.
KEY = re.compile(
    r"`(?:name|weight|keep_merged|outfile|revision|args|imatrix|quality|quantize_args|mmproj|ollama|verify|trust_remote_code"
    r"|environment[\w.]*|binaries[\w.]*|backend|python|torch)(?:: [^`]*)?`"
)
OF_A_JOB = "what has no option stands in a job file: --write-job FILE makes one to begin with"
TWICE = "leave one of the two options out; without --outtype the type is bf16"


class Typed(msgspec.Struct, frozen=True, kw_only=True):
    """What the options of `orchestrate convert` say."""

    model: str
    loras: Sequence[str] = ()
    merge: Sequence[str] = ()
    outtypes: Sequence[str] = ()
    quantize: Sequence[str] = ()
    tag: str = ""
    output: str = "dist"
    overrides: Sequence[str] = ()


OF_A_FLAG = tuple(name for name in Typed.__struct_fields__ if name != "model")


def job_text(typed: Typed, folder: Path) -> str:
    """The text of a job in `folder` that does what the options say."""
    import yaml

    model: dict[str, Any] = {"source": fields.from_command_line(typed.model, folder)}
    model |= {"merge": [fields.from_command_line(adapter, folder) for adapter in typed.merge]} if typed.merge else {}
    model |= {"outtype": list(typed.outtypes)} if typed.outtypes else {}
    model |= {"quantize": list(typed.quantize)} if typed.quantize else {}
    model |= {"loras": [fields.from_command_line(lora, folder) for lora in typed.loras]} if typed.loras else {}
    data: dict[str, Any] = {"version": 1, "llama_cpp": {"tag": typed.tag or spec.DEFAULT_TAG}}
    data |= {"environment": {"overrides": list(typed.overrides)}} if typed.overrides else {}
    data |= {"output": fields.relative(typed.output, folder), "models": [model]}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=4096)


def tell_by_option(error: OrchestrateError, file: Path) -> None:
    """Put what is wrong with a job that is in no file into the words of the options that it was made of."""
    place = f"{re.escape(str(file))}|{re.escape(file.name)}"
    message = re.sub(rf"^({place})(:\d+)*: ", "", error.message, flags=re.MULTILINE)
    for key, option in OPTIONS:
        message = re.sub(rf"^{key}(?=: )|(?<= ){key} \(line \d+\)", option, message, flags=re.MULTILINE)
    hint = "`orchestrate convert --help` tells what each may be" if error.hint == WAY else error.hint
    hint = TWICE if hint == APART else hint.replace(f"relative to {file.name}", "relative to the current folder")
    error.message, error.hint = _by_option(message), _by_option(hint)
    if KEY.search(error.message + error.hint) and OF_A_JOB not in error.hint:
        error.hint += f"; {OF_A_JOB}" if error.hint else OF_A_JOB


def _by_option(text: str) -> str:
    """A text in which a key of a job, or a key with its value, is told as the option that stands for it."""
    for key, option in WORDS.items():
        text = re.sub(rf"`{re.escape(key)}: \[?([^`\[\]{{}}]+)\]?`", rf"`{option} \1`", text)
        text = text.replace(f"`{key}`", f"`{option}`")
    return text
