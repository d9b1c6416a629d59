"""The job file: `job.yaml` becomes a Job, or complaints that name file, line and key."""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement

from llamacpp_orchestrator import yamltext
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.yamltext import Reading

BACKENDS = ("auto", "cuda", "vulkan", "rocm", "sycl", "openvino", "metal", "cpu", "none", "source")
UNQUANTIZED = ("f32", "bf16", "f16")
DEFAULT_TAG = "b11434"
HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
# What the driver itself passes to upstream's scripts, and what would make them ask the network.
OURS = ("--outfile", "--outtype", "--model-name", "--remote")
OURS_ADAPTER = ("--outfile", "--outtype", "--base", "--base-model-id")
LONGEST_NAME, LONGEST_FILE, SHARD_SUFFIX = 200, 250, len("-00001-of-00001")

STARTER = f"""\
# A job of llamacpp-orchestrator. Run it with: orchestrate run FILE
# See what it would do, and download, first:   orchestrate plan FILE
version: 1

llama_cpp:
  tag: {DEFAULT_TAG}                # a release tag of llama.cpp, or a 40-digit commit

# binaries:
#   backend: auto              # {" | ".join(BACKENDS)}

# environment:
#   torch: cpu                 # cpu | cu128 ... | upstream

output: dist                   # a folder, relative to this file

models:
  - source: HuggingFaceTB/SmolLM2-135M-Instruct   # a hub id, or a folder (./x, ../x, ~/x)
    # revision: main
    outtype: bf16              # one or a list; `none` converts only the adapters
    quantize: [Q8_0]           # types of llama-quantize
    # loras:
    #   - source: ./my-adapter # a hub id or a folder
    #     outtype: f16
"""


def _matching(pattern: str, wanted: str) -> dict[str, Any]:
    return {"check": lambda text: "" if re.fullmatch(pattern, text, re.ASCII) else f'expected {wanted}, found "{text[:60]}"'}


def _file_name(name: str) -> str:
    shown = f'"{name[:60]}"'
    if not name or name != name.strip() or name.endswith(".") or name.startswith("-"):
        return f"{shown} cannot be part of a file name: it is empty, begins with - or a space, or ends with a dot or a space"
    if bad := re.search(r'[<>:"/\\|?*\x00-\x1f\x7f]', name):
        return f"{shown} cannot be part of a file name: it holds {bad.group()!r}"
    if RESERVED.fullmatch(name):
        return f"{shown} cannot be a file name: Windows keeps it for itself"
    if len(name.encode()) > LONGEST_NAME:
        return f"{shown}... has {len(name.encode())} bytes; at most {LONGEST_NAME} leave room for the type"
    return ""


def _template(text: str) -> str:
    try:
        fields = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        return f"not a template: {error}"
    if bad := [name for name, detail, conversion in fields if name not in ("name", "type") or detail or conversion]:
        return f"unknown part {{{bad[0]}}}; known: {{name}}, {{type}}"
    if not text.endswith(".gguf"):
        return "expected a name that ends with .gguf"
    parts = text.format(name="n", type="t").split("/")
    if ".." in parts or text.startswith(("/", "~")):
        return "must stay in the output folder"
    return next(filter(None, (_file_name(part) for part in parts if part != ".")), "")


def _source(text: str) -> str:
    if is_folder(text):
        return 'a folder\'s name cannot hold "\\0"' if "\0" in text else ""
    if not HUB_ID.fullmatch(text) or ".." in text or "--" in text or text.endswith((".git", ".", "-")):
        return f'"{text[:100]}" is neither a hub id (org/name) nor a folder, which begins with ./ ../ ~/ or /'
    return ""


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        secret = parts.password or (parts.username and parts.scheme != "ssh")
    except ValueError as error:
        return f"not a URL: {error}"
    if secret:
        return "holds a credential; job and lock are files that one shares"
    if parts.scheme not in ("https", "http", "ssh", "file") or not (parts.netloc or parts.scheme == "file"):
        return f'expected a URL with https, http, ssh or file, found "{text[:100]}"'
    return "a URL holds no space" if re.search(r"[\s\x00-\x1f]", text) else ""


def _requirement(text: str) -> str:
    try:
        Requirement(text)
    except InvalidRequirement as error:
        return f'expected a requirement such as "torch==2.13.0", found "{text[:100]}" ({str(error).splitlines()[0]})'
    return ""


def _args(ours: Sequence[str]) -> dict[str, Any]:
    # argparse also takes the beginning of an option's name.
    def check(word: str) -> str:
        option = word.split("=", 1)[0]
        taken = len(option) > 2 and next((name for name in ours if name.startswith(option)), None)
        return f"{option} is not yours to give: the job sets {taken}" if taken else ""

    return {"check": check}


def _nonempty(text: str) -> str:
    return "" if text.strip() and "\0" not in text else "expected a folder"


Type = Annotated[str, Meta(extra=_matching(r"\w{1,40}", "a type such as bf16"))]
Types = Annotated[tuple[Type, ...], Meta(description="One type or a list of the tag's own types", extra={"short": lambda text: [text]})]
Revision = Annotated[
    str,
    Meta(
        description="Branch, tag or commit on the hub",
        extra=_matching(r"(?!.*\.\.)\w[\w./+-]{0,199}", "a branch, tag or commit"),
    ),
]
Name = Annotated[str, Meta(description="Used in file names and as general.name", extra={"check": _file_name})]
Source = Annotated[str, Meta(description="Hub id org/name[@revision], or a folder: ./x, ../x, ~/x", extra={"check": _source})]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of a job have in common."""


class Lora(Record, frozen=True, kw_only=True):
    """An adapter to convert beside its base."""

    source: Source
    revision: Revision = "main"
    name: Name = ""
    outtype: Types = ("f16",)
    args: Annotated[
        tuple[Annotated[str, Meta(extra=_args(OURS_ADAPTER))], ...], Meta(description="Passed to convert_lora_to_gguf.py")
    ] = ()


def _shortly(text: str) -> dict[str, str]:
    return {"source": text}


class Model(Record, frozen=True, kw_only=True):
    """A model to convert, the types to quantize it to, and its adapters."""

    source: Source
    revision: Revision = "main"
    name: Name = ""
    outtype: Types = ("bf16",)
    outfile: Annotated[
        str, Meta(description="File name, relative to output; {name} and {type} are filled in", extra={"check": _template})
    ] = "{name}-{type}.gguf"
    quantize: Annotated[tuple[Type, ...], Meta(description="Types of llama-quantize, such as Q4_K_M")] = ()
    args: Annotated[tuple[Annotated[str, Meta(extra=_args(OURS))], ...], Meta(description="Passed to convert_hf_to_gguf.py")] = ()
    trust_remote_code: Annotated[bool, Meta(description="Let the model's own Python code run")] = False
    loras: Annotated[tuple[Annotated[Lora, Meta(extra={"short": _shortly})], ...], Meta(description="Adapters of this model")] = ()


class LlamaCpp(Record, frozen=True, kw_only=True):
    """Which llama.cpp."""

    tag: Annotated[
        str,
        Meta(
            description="A release tag (bNNNN) or a 40-hex commit",
            extra=_matching(r"b\d{1,7}|[0-9a-f]{40}|master-[0-9a-f]{7,40}", "a release tag such as b11434, or a 40-digit commit"),
        ),
    ]
    repo: Annotated[str, Meta(description="URL of the git repository", extra={"check": _url})] = (
        "https://github.com/ggml-org/llama.cpp"
    )


class Binaries(Record, frozen=True, kw_only=True):
    """Which of the release's programs."""

    backend: Annotated[str, Meta(extra={"words": BACKENDS}, extra_json_schema={"enum": list(BACKENDS)})] = "auto"
    cuda: Annotated[
        str,
        Meta(
            description="With cuda: the toolkit version wanted, such as 12.4",
            extra=_matching(r"auto|\d+(\.\d+){0,2}", "auto or a version such as 12.4"),
        ),
    ] = "auto"


class Environment(Record, frozen=True, kw_only=True):
    """The Python that the scripts run in."""

    python: Annotated[
        str,
        Meta(description="auto, or a version such as 3.11", extra=_matching(r"auto|3\.\d{1,2}", "auto or a version such as 3.11")),
    ] = "auto"
    torch: Annotated[
        str,
        Meta(
            description="Which build of PyTorch: cpu, cu128, rocm6.4, upstream",
            extra=_matching(r"cpu|cu\d{2,3}|rocm\d+\.\d+(\.\d+)?|upstream", "cpu, cu128, rocm6.4 or upstream"),
        ),
    ] = "cpu"
    overrides: Annotated[
        tuple[Annotated[str, Meta(extra={"check": _requirement})], ...],
        Meta(description="PEP 508 lines that replace upstream's pins"),
    ] = ()
    path: Annotated[str | None, Meta(description="An environment of one's own, used as it is", extra={"check": _nonempty})] = None


class Job(Record, frozen=True, kw_only=True):
    """All that a job file says."""

    version: Annotated[int, Meta(extra=_matching("1", "1"), extra_json_schema={"const": 1})]
    llama_cpp: LlamaCpp
    models: Annotated[tuple[Annotated[Model, Meta(extra={"short": _shortly})], ...], Meta(min_length=1)]
    binaries: Binaries = Binaries()
    environment: Environment = Environment()
    output: Annotated[
        str, Meta(description="Folder of the results, relative to the job file", extra={"check": _nonempty})
    ] = "dist"


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a job makes; `kind` is model, adapter or quantized."""

    path: Path
    kind: str
    type: str
    model: Model
    lora: Lora | None = None
