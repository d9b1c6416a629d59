"""Checks of the texts in a job file; each answers with a complaint, or "" for none."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.parse import urlsplit

from msgspec import Meta

from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.util.yaml_reader import shown

HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
# A page or name of a model: the hub's hosts, and those whose names are no hub ids.
HUB = re.compile(r"(?:(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/|hf://)(?=[^/]+/)", re.IGNORECASE)
STRANGE = re.compile(r"(?:https?://)?(?:www\.|registry\.)?(github|gitlab|modelscope|ollama|kaggle|civitai)\.(?:com|cn|ai)/", re.I)
PAGES = ("tree", "blob", "resolve", "raw", "commit")
TYPED = re.compile(r"(?P<id>[^:]+):(?P<type>[\w.-]+)", re.ASCII)  # how Ollama and llama.cpp's -hf name one file of a repository
SNAPSHOT = re.compile(r"(?:^|/)models--[\w.-]+?--(?P<name>[\w.-]+)/snapshots/[0-9a-f]{40}$")  # of the hub's cache
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
# What the driver itself passes to upstream's scripts, and what would make them ask the network.
OURS = ("--outfile", "--outtype", "--model-name", "--remote")
OURS_ADAPTER = ("--outfile", "--outtype", "--base", "--base-model-id")
OURS_PERPLEXITY = (
    "-m", "--model", "-f", "--file", "-bf", "--binary-file", "-p", "--prompt", "--chunks", "--kl-divergence",
    "--kl-divergence-base", "--save-all-logits", "--hellaswag", "--winogrande", "--multiple-choice", "--ppl-stride",
    "--ppl-output-type", "-h", "--help",
)  # fmt: skip
LONGEST_NAME = 200
PLAIN_NUMBER = "write it in digits alone: 10, not 1e1, 1_0 or 010"
PLAIN_WEIGHT = "write it as a decimal number: 0.5, not 5e-1 or 1/2"
PLAIN_NAME = "use letters, digits, - _ and . alone, such as my-model"
PLAIN_REVISION = "write one, as text without blanks: main, v1.0, or a commit's 40 digits"
PLAIN_BRANCH = "write the name of a branch, such as main"
PLAIN_REPOSITORY = "write it as on the hub: your-name/My-Model-GGUF"
PLAIN_URL = "write it such as https://github.com/ggml-org/llama.cpp"
PLAIN_TAG = "each release of llama.cpp has a tag: https://github.com/ggml-org/llama.cpp/releases"
PLAIN_TEMPLATE = "write it such as {name}-{type}.gguf, or sub/{name}-{type}.gguf"
# Options of llama-quantize that the job has keys for, that would make no file, or whose file nothing pins.
NOT_FOR_QUANTIZE = {
    "--imatrix": "write it under `imatrix`",
    "--keep-split": "a split model is quantized to a split one already",
    "--dry-run": "`orchestrate plan` shows what would be done",
    "--tensor-type-file": "write each of its lines as --tensor-type",
}


def matching(pattern: str, expected: str, way: str = "") -> dict[str, Any]:
    """A check for texts that match a pattern as a whole, and what to do about others."""

    def check(text: str) -> str:
        return "" if re.fullmatch(pattern, text, re.ASCII) else f'expected {expected}, found "{shown(text)}"'

    return {"check": check, "way": way}


def one_of(words: Sequence[str], description: str) -> Meta:
    """A text that is one of some words, here and in the schema for editors."""
    return Meta(description=description, extra={"words": tuple(words)}, extra_json_schema={"enum": list(words)})


def file_name(name: str) -> str:
    """A part of a file name, on Windows too."""
    named = f'"{shown(name)}"'
    if not name or name != name.strip() or name.endswith(".") or name.startswith("-"):
        return f"{named} cannot be part of a file name: it is empty, begins with - or a space, or ends with a dot or a space"
    if bad := re.search(r'[<>:"/\\|?*\x00-\x1f\x7f]', name):
        return f"{named} cannot be part of a file name: it holds {bad.group()!r}"
    if RESERVED.fullmatch(name):
        return f"{named} cannot be a file name: Windows keeps it for itself"
    if len(name.encode()) > LONGEST_NAME:
        return f"{named} has {len(name.encode())} bytes; at most {LONGEST_NAME} leave room for the type"
    return ""


def template(text: str) -> str:
    """An `outfile`: a relative path of {name}, {type} and plain text."""
    try:
        fields = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        return f'"{shown(text)}" is not a template: {error}'
    if bad := [name for name, detail, conversion in fields if name not in ("name", "type") or detail or conversion]:
        return f"unknown part {{{shown(str(bad[0]))}}}; known: {{name}}, {{type}}"
    if not text.endswith(".gguf"):
        return f'expected a name that ends with .gguf, found "{shown(text)}"'
    parts = text.format(name="n", type="t").split("/")
    if ".." in parts or text.startswith(("/", "~")):
        return f'"{shown(text)}" must stay in the output folder: no `..`, no ~ and no / at its beginning'
    return next(filter(None, (file_name(part) for part in parts if part != ".")), "")


def source(text: str) -> str:
    """A hub id or a folder."""
    if is_folder(text):
        return 'a folder\'s name cannot hold "\\0"' if "\0" in text else ""
    text = anonymous(text) if "://" in text else text
    if elsewhere := _elsewhere(text):
        return f'"{shown(text)}" is {elsewhere}'
    if not HUB_ID.fullmatch(text) or ".." in text or "--" in text or text.endswith((".git", ".", "-")):
        return f'"{shown(text)}" is neither a hub id (org/name) nor a folder, which begins with ./ ../ ~/ or /'
    return ""


def repository(text: str) -> str:
    """A repository of the hub to send to: its id, in which {name} is the model's."""
    if is_folder(text):
        return f'expected a repository of the hub, found the folder "{shown(text)}"'
    return source(text.replace("{name}", "name"))


def _elsewhere(text: str) -> str:
    """What a source is that is written as in a browser or for Ollama, and what to write; "" for any other."""
    if site := STRANGE.match(text):
        return f"a page of {site[1]}, and only models of the hub are fetched; download it, and name the folder: ./my-model"
    hosted = HUB.match(text)
    address = text[hosted.end() :] if hosted else text.partition("://")[2].partition("/")[2] if "://" in text else text
    words = re.split("[?#]", address, maxsplit=1)[0].strip("/").split("/")
    kind, words = (words[0], words[1:]) if words[0] in ("datasets", "spaces", "models") and words[2:] else ("models", words)
    if kind != "models":
        return f"one of the hub's {kind}, not a model"
    typed = TYPED.fullmatch("/".join(words))
    named = typed["id"] if typed else "/".join(words[:2])
    if typed and "/" not in named and not hosted:
        return "a name of Ollama's library; name the model on the hub that it was made from: org/name"
    if not HUB_ID.fullmatch(named):
        return ""
    if typed:
        key = "outtype" if typed["type"].lower() in ("f32", "f16", "bf16") else "quantize"
        type_ = typed["type"].lower() if key == "outtype" else typed["type"]
        also = "" if type_ == "latest" else f", and the type by itself: `{key}: {type_}`"
        return f"the way of Ollama and llama-server; write {named}{also}"
    revision = unquote(words[3]) if words[2:3] and words[2] in PAGES and words[3:] else ""
    if not (hosted or "://" in text or revision):
        return ""
    return f"an address; write {named}" + (f"@{revision}" if revision not in ("", "main") else "")


def url(text: str) -> str:
    """The URL of a git repository."""
    named = shown(anonymous(text))
    try:
        parts = urlsplit(text)
        secret = parts.password or (parts.username and parts.scheme != "ssh")
        wrong = parts.port == 0
    except ValueError:  # what it says may name the login
        secret, wrong, parts = "@" in text, True, urlsplit("")
    if secret or ("://" not in text and named != shown(text)):
        return "holds a credential; job and lock are files that one shares"
    if wrong:
        return f'not a URL: "{named}"'
    if parts.scheme not in ("https", "http", "ssh", "file") or not (parts.netloc or parts.scheme == "file"):
        return f'expected a URL with https, http, ssh or file, found "{named}"'
    if (parts.hostname or "").startswith("-"):
        return f'no host begins with -, found "{named}"'
    return "a URL holds no space" if re.search(r"[\s\x00-\x1f]", text) else ""


def requirement(text: str) -> str:
    """A PEP 508 line."""
    if re.fullmatch(r"\w+==\d+(\.\d+)*", text, re.ASCII):
        return ""
    from packaging.requirements import InvalidRequirement  # ten times as long to load as such a line is to read
    from packaging.requirements import Requirement

    try:
        Requirement(text)
    except InvalidRequirement as error:
        return f'expected a requirement such as "torch==2.13.0", found "{shown(text)}" ({str(error).splitlines()[0]})'
    return ""


def not_ours(ours: Sequence[str]) -> dict[str, Any]:
    """A check for arguments that leave the driver's own options alone; argparse also takes the beginning of a name."""

    def check(word: str) -> str:
        option = word.split("=", 1)[0]
        taken = len(option) > 2 and next((name for name in ours if name.startswith(option)), None)
        return f"{shown(option)} is not yours to give: the job sets {taken}" if taken else ""

    return {"check": check}


def quantize_word(word: str) -> str:
    """An argument of llama-quantize, which knows its options by their whole names."""
    return f"{word} is not taken here: {NOT_FOR_QUANTIZE[word]}" if word in NOT_FOR_QUANTIZE else ""


def perplexity_word(word: str) -> str:
    """An argument of llama-perplexity that leaves alone what is measured, and against what."""
    return f"{word} is not yours to give: `quality` says what is measured" if word in OURS_PERPLEXITY else ""


def some_file(text: str) -> str:
    """A path to a file."""
    return "" if text.strip() and "\0" not in text else "expected a file"


def nonempty(text: str) -> str:
    """A path of any kind."""
    return "" if text.strip() and "\0" not in text else "expected a folder"


def output(text: str) -> str:
    """Where outputs go: a folder, or an address such as s3://bucket/prefix."""
    return storage_address.complaint(text) if storage_address.is_address(text) else nonempty(text)


def is_folder(source: str) -> bool:
    """Tell whether a source names a folder and not a repository of the hub."""
    return source in (".", "..") or bool(re.match(r"\.{0,2}[/\\]|~|[A-Za-z]:", source)) or "\\" in source


def folder(source: str, base: Path) -> Path:
    """The absolute folder that a text of the job names; relative ones are relative to `base`, `~` is the user's home."""
    text = source if os.sep == "\\" else source.replace("\\", "/")
    return Path(os.path.abspath(base), os.path.expanduser(text))


def folder_name(path: Path) -> str:
    """What a model is called after its folder: a snapshot in the hub's cache after its repository, not after its commit."""
    snapshot = SNAPSHOT.search(path.as_posix())
    return snapshot["name"] if snapshot else path.name


def from_command_line(source: str, base: Path) -> str:
    """A source given on a command line, as a job in the folder `base` says it; a bare word may be a folder there."""
    if is_folder(source) or (source and not HUB_ID.fullmatch(source.split("@")[0]) and Path(source).is_dir()):
        path = relative(source, base)
        return path if is_folder(path) else f"./{path}"
    return source


def relative(text: str, base: Path) -> str:
    """A path given on a command line, as a job in the folder `base` says it."""
    if text.startswith("~") or os.path.isabs(text) or storage_address.is_address(text):
        return text
    try:
        return os.path.relpath(text, base).replace(os.sep, "/")
    except ValueError:  # another drive of Windows
        return os.path.abspath(text)
