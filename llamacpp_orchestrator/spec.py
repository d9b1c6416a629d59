"""The job file: `job.yaml` becomes a Job, or complaints that name file, line and key."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from typing import Any

import msgspec
from msgspec import Meta

from llamacpp_orchestrator import rules
from llamacpp_orchestrator import yamltext
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.rules import folder as folder
from llamacpp_orchestrator.rules import is_folder as is_folder
from llamacpp_orchestrator.yamltext import Reading

BACKENDS = ("auto", "cuda", "vulkan", "rocm", "sycl", "openvino", "metal", "cpu", "none", "source")
UNQUANTIZED = ("f32", "bf16", "f16")
DEFAULT_TAG = "b11434"
LONGEST_FILE, SHARD_SUFFIX = 250, len("-00001-of-00001")

STARTER = f"""\
# A job of llamacpp-orchestrator. Run it with: orchestrate run job.yaml
# See what it would do, and download, first:   orchestrate plan job.yaml
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


Type = Annotated[str, Meta(extra=rules.matching(r"\w{1,40}", "a type such as bf16"))]
Types = Annotated[
    tuple[Type, ...], Meta(description="One type or a list of the tag's own types", extra={"short": lambda text: [text]})
]
Revision = Annotated[
    str,
    Meta(
        description="Branch, tag or commit on the hub",
        extra=rules.matching(r"(?!.*\.\.)\w[\w./+-]{0,199}", "a branch, tag or commit"),
    ),
]
Name = Annotated[str, Meta(description="Used in file names and as general.name", extra={"check": rules.file_name})]
Source = Annotated[
    str, Meta(description="Hub id org/name[@revision], or a folder: ./x, ../x, ~/x", extra={"check": rules.source})
]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of a job have in common."""


class Lora(Record, frozen=True, kw_only=True):
    """An adapter to convert beside its base."""

    source: Source
    revision: Revision = "main"
    name: Name = ""
    outtype: Types = ("f16",)
    args: Annotated[
        tuple[Annotated[str, Meta(extra=rules.not_ours(rules.OURS_ADAPTER))], ...],
        Meta(description="Passed to convert_lora_to_gguf.py"),
    ] = ()


class Model(Record, frozen=True, kw_only=True):
    """A model to convert, the types to quantize it to, and its adapters."""

    source: Source
    revision: Revision = "main"
    name: Name = ""
    outtype: Types = ("bf16",)
    outfile: Annotated[
        str, Meta(description="File name, relative to output; {name} and {type} are filled in", extra={"check": rules.template})
    ] = "{name}-{type}.gguf"
    quantize: Annotated[tuple[Type, ...], Meta(description="Types of llama-quantize, such as Q4_K_M")] = ()
    args: Annotated[
        tuple[Annotated[str, Meta(extra=rules.not_ours(rules.OURS))], ...], Meta(description="Passed to convert_hf_to_gguf.py")
    ] = ()
    trust_remote_code: Annotated[bool, Meta(description="Let the model's own Python code run")] = False
    loras: Annotated[tuple[Lora, ...], Meta(description="Adapters of this model")] = ()


class LlamaCpp(Record, frozen=True, kw_only=True):
    """Which llama.cpp."""

    tag: Annotated[
        str,
        Meta(
            description="A release tag (bNNNN) or a 40-hex commit",
            extra=rules.matching(
                r"b\d{1,7}|[0-9a-f]{40}|master-[0-9a-f]{7,40}", "a release tag such as b11434, or a 40-digit commit"
            ),
        ),
    ]
    repo: Annotated[str, Meta(description="URL of the git repository", extra={"check": rules.url})] = (
        "https://github.com/ggml-org/llama.cpp"
    )


class Binaries(Record, frozen=True, kw_only=True):
    """Which of the release's programs."""

    backend: Annotated[
        str, Meta(description="What the programs run on", extra={"words": BACKENDS}, extra_json_schema={"enum": list(BACKENDS)})
    ] = "auto"
    cuda: Annotated[
        str,
        Meta(
            description="With cuda: the toolkit version wanted, such as 12.4",
            extra=rules.matching(r"auto|\d+(\.\d+){0,2}", "auto or a version such as 12.4"),
        ),
    ] = "auto"


class Environment(Record, frozen=True, kw_only=True):
    """The Python that the scripts run in."""

    python: Annotated[
        str,
        Meta(
            description="auto, or a version such as 3.11",
            extra=rules.matching(r"auto|3\.\d{1,2}", "auto or a version such as 3.11"),
        ),
    ] = "auto"
    torch: Annotated[
        str,
        Meta(
            description="Which build of PyTorch: cpu, cu128, rocm6.4, upstream",
            extra=rules.matching(r"cpu|cu\d{2,3}|rocm\d+\.\d+(\.\d+)?|upstream", "cpu, cu128, rocm6.4 or upstream"),
        ),
    ] = "cpu"
    overrides: Annotated[
        tuple[Annotated[str, Meta(extra={"check": rules.requirement})], ...],
        Meta(description="PEP 508 lines that replace upstream's pins"),
    ] = ()
    path: Annotated[
        str | None, Meta(description="An environment of one's own, used as it is", extra={"check": rules.nonempty})
    ] = None


class Job(Record, frozen=True, kw_only=True):
    """All that a job file says."""

    version: Annotated[int, Meta(description="Of this format", extra=rules.matching("1", "1"), extra_json_schema={"const": 1})]
    llama_cpp: Annotated[LlamaCpp, Meta(description="Which llama.cpp converts")]
    models: Annotated[tuple[Model, ...], Meta(description="What is converted", min_length=1)]
    binaries: Annotated[Binaries, Meta(description="Which programs of the release")] = Binaries()
    environment: Annotated[Environment, Meta(description="The Python that the scripts run in")] = Environment()
    output: Annotated[
        str, Meta(description="Folder of the results, relative to the job file", extra={"check": rules.nonempty})
    ] = "dist"


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a job makes; `kind` is model, adapter or quantized."""

    path: Path
    kind: str
    type: str
    model: Model
    lora: Lora | None = None


def outputs(job: Job, base: Path) -> tuple[Output, ...]:
    """Every file that a job makes, in its order: a model's own types, the quantized ones, its adapters."""
    return tuple(output for _, output in _placed(job, base))


def _placed(job: Job, base: Path) -> Iterator[tuple[str, Output]]:
    root = folder(job.output, base)
    for index, model in enumerate(job.models):
        where = f"models[{index}]"
        types = [("outtype", "model", kind) for kind in model.outtype if kind != "none"]
        for key, kind, type_ in types + [("quantize", "quantized", type_) for type_ in model.quantize]:
            path = Path(os.path.normpath(root / model.outfile.format(name=model.name, type=type_)))
            yield f"{where}.{key}", Output(path=path, kind=kind, type=type_, model=model)
        for number, lora in enumerate(model.loras):
            for type_ in lora.outtype:
                path = Path(os.path.normpath(root / f"{model.name}-{lora.name}-lora-{type_}.gguf"))
                yield f"{where}.loras[{number}]", Output(path=path, kind="adapter", type=type_, model=model, lora=lora)


def parse(text: bytes, path: Path) -> Job:
    """The job that a file's text says; JobError with every complaint. Opens no other file."""
    return _parse(text, path)[0]


def load(path: Path) -> Job:
    """The job in a file, its folders looked up; JobError with every complaint, or why the file cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(yamltext.MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise JobError(f"{path}: no such file", "`orchestrate init` writes a job file to start from") from error
    except OSError as error:
        why = "is a folder, not a job file" if path.is_dir() else f"cannot be read: {error.strerror}"
        raise JobError(f"{path}: {why}", "name the job file, for example job.yaml") from error
    job, reading = _parse(text, path)
    _look_up(job, path, reading)
    return job


def check_folders(job: Job, path: Path) -> None:
    """Raise JobError for every folder that a job names and that is not there."""
    _look_up(job, path, Reading(file=str(path)))


def _parse(text: bytes, path: Path) -> tuple[Job, Reading]:
    reading = yamltext.read(text, str(path))
    data = reading.data
    if isinstance(data, dict) and isinstance(data.get("models"), list):
        models = [_expanded(reading, item, f"models[{index}]", path.parent) for index, item in enumerate(data["models"])]
        data = {**data, "models": models}
        if not models:
            yamltext.say(reading, "models", "expected at least one model")
    data = yamltext.fit(reading, data, Job)
    yamltext.done(reading)
    job = msgspec.convert(data, Job, strict=False)
    _check(job, path.parent, reading)
    yamltext.done(reading)
    return job, reading


def _expanded(reading: Reading, item: Any, where: str, base: Path) -> Any:
    item = {"source": item} if isinstance(item, str) else item
    if not isinstance(item, dict):
        return item
    if isinstance(loras := item.get("loras"), list):
        item = {**item, "loras": [_expanded(reading, lora, f"{where}.loras[{n}]", base) for n, lora in enumerate(loras)]}
    source = item.get("source")
    if not isinstance(source, str):
        return item
    if not is_folder(source) and "@" in source:
        source, revision = source.split("@", 1)
        if item.get("revision", revision) != revision:
            yamltext.say(reading, f"{where}.revision", f'the source says "{revision}" already')
        item = {**item, "source": source, "revision": revision}
    elif is_folder(source) and "revision" in item and item["revision"] != "main":
        yamltext.say(reading, f"{where}.revision", "a folder has no revisions")
    if rules.source(source):
        return item
    name = os.path.basename(os.path.abspath(folder(source, base))) if is_folder(source) else source.split("/")[1]
    return {**item, "name": item.get("name", name)}


def _check(job: Job, base: Path, reading: Reading) -> None:
    for index, model in enumerate(job.models):
        where = f"models[{index}]"
        if "none" in model.outtype and (len(model.outtype) > 1 or model.quantize or not model.loras):
            alone = "`none` stands alone: no other type, nothing to quantize, and adapters to convert"
            yamltext.say(reading, f"{where}.outtype", alone)
        elif not model.outtype:
            yamltext.say(reading, f"{where}.outtype", "expected at least one type, or none")
        elif model.quantize and not set(model.outtype) & set(UNQUANTIZED):
            yamltext.say(reading, f"{where}.quantize", f"needs one of {', '.join(UNQUANTIZED)} in outtype to start from")
        for number, lora in enumerate(model.loras):
            if not lora.outtype or "none" in lora.outtype:
                complaint = "expected at least one type; leave the adapter out instead"
                yamltext.say(reading, f"{where}.loras[{number}].outtype", complaint)
    seen: dict[str, str] = {}
    for where, output in _placed(job, base):
        name, args = output.path.name, (output.lora or output.model).args
        limit = LONGEST_FILE - (SHARD_SUFFIX if any(word.startswith("--split") for word in args) else 0)
        if len(name.encode()) > limit:
            complaint = f"the file name {name[:40]}... has {len(name.encode())} bytes; at most {limit} can be used"
            yamltext.say(reading, where, complaint)
        key = unicodedata.normalize("NFC", os.path.realpath(output.path)).casefold()
        if key in seen:
            other = reading.lines.get(seen[key].split(".")[0], 1)
            also = f"{seen[key]} (line {reading.lines.get(seen[key], other)})"
            yamltext.say(reading, where, f"makes the file {name}, and so does {also}; set `name` or `outfile`, or drop one")
        seen.setdefault(key, where)


def _look_up(job: Job, path: Path, reading: Reading) -> None:
    sources = [(f"models[{index}]", model) for index, model in enumerate(job.models)]
    named: list[tuple[str, str]] = [(f"{where}.source", model.source) for where, model in sources]
    for where, model in sources:
        named += [(f"{where}.loras[{number}].source", lora.source) for number, lora in enumerate(model.loras)]
    named = [(where, source) for where, source in named if is_folder(source)]
    for where, text in named + ([("environment.path", job.environment.path)] if job.environment.path else []):
        found = folder(text, path.parent)
        if not found.is_dir():
            yamltext.say(reading, where, f"{found} {'is not a folder' if found.exists() else 'does not exist'}")
    if (dest := folder(job.output, path.parent)).exists() and not dest.is_dir():
        yamltext.say(reading, "output", f"{dest} is not a folder")
    yamltext.done(reading)


def schema() -> dict[str, Any]:
    """The JSON Schema of a job file, short forms included, made from the types that parse it."""
    found = msgspec.json.schema(Job)
    parts = {name: part["properties"] for name, part in found["$defs"].items()}
    text = {"type": "string"}
    for part, key in (("Model", "outtype"), ("Lora", "outtype")):
        del parts[part][key]["type"]
        parts[part][key] |= {"anyOf": [text, {"type": "array", "items": parts[part][key].pop("items")}]}
    for part, key in (("Job", "models"), ("Model", "loras")):
        parts[part][key]["items"] = {"anyOf": [text, parts[part][key]["items"]]}
    for part, key in (("Binaries", "cuda"), ("Environment", "python")):
        parts[part][key]["type"] = ["string", "number"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def job_text(
    *,
    model: str,
    loras: Sequence[str],
    outtypes: Sequence[str],
    quantize: Sequence[str],
    tag: str,
    output: str,
    folder: Path,
    overrides: Sequence[str] = (),
) -> str:
    """The text of a job in `folder` that does what the options of `orchestrate convert` say."""
    import yaml

    asked: dict[str, Any] = {"source": rules.from_command_line(model, folder)}
    asked |= {"outtype": list(outtypes)} if outtypes else {}
    asked |= {"quantize": list(quantize)} if quantize else {}
    asked |= {"loras": [rules.from_command_line(lora, folder) for lora in loras]} if loras else {}
    data: dict[str, Any] = {"version": 1, "llama_cpp": {"tag": tag or DEFAULT_TAG}}
    data |= {"environment": {"overrides": list(overrides)}} if overrides else {}
    data |= {"output": rules.relative(output, folder), "models": [asked]}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=4096)
