"""The job file: `job.yaml` becomes a Job, or complaints that name file, line and key."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.job.spec import Model
from llamacpp_orchestrator.util import yaml_reader
from llamacpp_orchestrator.util.yaml_reader import Reading

WAY = "`orchestrate schema` lists what each key may hold; `orchestrate init FILE` writes an example"
APART = "set `name` or `outfile`, or drop one of the two"
LONGEST_PART, LONGEST_FILE, SHARD_SUFFIX = 255, 250, len("-00001-of-00001")

# Key of a job → the option of `orchestrate convert` that fills it.
OPTIONS = (
    (r"models\[0\]\.source", "MODEL"),
    (r"models\[0\]\.loras\[\d+\](\.\w+)?", "--lora"),
    (r"models\[0\]\.outtype(\[\d+\])?", "--outtype"),
    (r"models\[0\]\.quantize(\[\d+\])?", "--quantize"),
    (r"llama_cpp\.tag", "--tag"),
    (r"environment\.overrides\[\d+\]", "--override"),
    ("output", "--output"),
)

STARTER = f"""\
# A job of llamacpp-orchestrator. Run it with: orchestrate run job.yaml
# See what it would do, and download, first:   orchestrate plan job.yaml
version: 1

llama_cpp:
  tag: {spec.DEFAULT_TAG}                # a build of llama.cpp, a release (vX.Y.Z), `latest`, or a 40-digit commit

# binaries:
#   backend: auto              # {" | ".join(spec.BACKENDS)}

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


def parse(text: bytes, path: Path) -> Job:
    """The job that a file's text says; JobError with every complaint. Opens no other file."""
    return _parse(text, path)[0]


def load(path: Path, folders: bool = True) -> Job:
    """The job in a file, its `folders` looked up; JobError with every complaint, or why the file cannot be read."""
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():
            raise JobError(f"{path}: is a pipe or a device, not a file", "write the job into a file: its lock lies beside it")
        with path.open("rb") as file:
            text = file.read(yaml_reader.MAX_BYTES + 1)
    except FileNotFoundError as error:
        way = "`orchestrate init` writes a job file to start from; a model needs none: orchestrate convert MODEL"
        raise JobError(f"{path}: no such file", way) from error
    except OSError as error:
        if isinstance(error, IsADirectoryError) or (os.name == "nt" and path.is_dir()):
            raise JobError(f"{path}: is a folder, not a job file", f"name the file in it: {path / 'job.yaml'}") from error
        why = f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise JobError(f"{path}: {why}", "check the name, and the rights of the file and of the folders above it") from error
    job, reading = _parse(text, path)
    if folders:
        _look_up(job, path, reading)
    return job


def check_folders(job: Job, path: Path) -> None:
    """Raise JobError for every folder that a job names and that is not there."""
    _look_up(job, path, Reading(file=str(path)))


def check_together(jobs: Sequence[tuple[Job, Path]]) -> None:
    """Raise JobError when two job files of one run make one file: the second would overwrite what the first has made."""
    seen: dict[str, Path] = {}
    for job, file in jobs:
        for where, path in _made(job, file.parent):
            other = seen.setdefault(_place(path), file)
            if _place(other) != _place(file):
                hint = "set another `output`, `name` or `outfile` in one of the two"
                raise JobError(f"{file}: {where}: makes {path}, and so does {other.name}", hint)


def _parse(text: bytes, path: Path) -> tuple[Job, Reading]:
    reading = yaml_reader.read(text, str(path), WAY)
    data = reading.data
    if isinstance(data, dict) and isinstance(data.get("models"), list):
        models = [_expanded(reading, item, f"models[{index}]", path.parent) for index, item in enumerate(data["models"])]
        data = {**data, "models": models}
        if not models:
            yaml_reader.say(reading, "models", "expected at least one model")
    data = yaml_reader.fit(reading, data, Job)
    yaml_reader.done(reading)
    job = msgspec.convert(data, Job, strict=False)
    _check(job, path.parent, reading)
    yaml_reader.done(reading)
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
    if not fields.is_folder(source) and "@" in source and "://" not in source:
        source, revision = source.split("@", 1)
        if item.get("revision", revision) != revision:
            yaml_reader.say(reading, f"{where}.revision", f'the source says "{revision}" already')
        item = {**item, "source": source, "revision": revision}
    elif fields.is_folder(source) and "revision" in item and item["revision"] != "main":
        yaml_reader.say(reading, f"{where}.revision", "a folder has no revisions")
    if fields.source(source):
        return item
    name = os.path.basename(os.path.abspath(fields.folder(source, base))) if fields.is_folder(source) else source.split("/")[1]
    return {**item, "name": item.get("name", name)}


def _check(job: Job, base: Path, reading: Reading) -> None:
    for index, model in enumerate(job.models):
        where = f"models[{index}]"
        if "none" in model.outtype and (len(model.outtype) > 1 or model.quantize or not (model.loras or model.mmproj)):
            alone = "`none` stands alone: no other type, nothing to quantize, and adapters to convert"
            yaml_reader.say(reading, f"{where}.outtype", alone)
        elif model.verify in check_levels.RUNNING and job.binaries.backend == "none":
            yaml_reader.say(
                reading, f"{where}.verify", f"`{model.verify}` needs the tag's programs, and binaries.backend is none"
            )
        elif not model.outtype and not model.quantize:
            yaml_reader.say(reading, f"{where}.outtype", "expected at least one type, or none")
        _check_quantize(model, where, reading)
        if "none" in model.mmproj:
            yaml_reader.say(reading, f"{where}.mmproj", "expected at least one type; leave the key out instead")
        if model.ollama and "none" in model.outtype:
            yaml_reader.say(reading, f"{where}.ollama", "needs a file of the model itself, and outtype is none")
        for number, lora in enumerate(model.loras):
            if not lora.outtype or "none" in lora.outtype:
                complaint = "expected at least one type; leave the adapter out instead"
                yaml_reader.say(reading, f"{where}.loras[{number}].outtype", complaint)
    _check_names(job, base, reading)


def _check_names(job: Job, base: Path, reading: Reading) -> None:
    seen: dict[str, str] = {}
    for where, output in layout.placed(job, base):
        name, args = output.path.name, (output.lora or output.model).args
        limit = LONGEST_FILE - (SHARD_SUFFIX if any(word.startswith("--split") for word in args) else 0)
        if len(name.encode()) > limit:
            complaint = f"the file name {yaml_reader.shown(name)} has {len(name.encode())} bytes; at most {limit} can be used"
            yaml_reader.say(reading, where, complaint, "choose a shorter `name` or `outfile`")
    for where, path in _made(job, base):
        key = _place(path)
        if key in seen:
            other = reading.lines.get(seen[key].split(".")[0], 1)
            also = f"{seen[key]} (line {reading.lines.get(seen[key], other)})"
            yaml_reader.say(reading, where, f"makes the file {yaml_reader.shown(path.name)}, and so does {also}", APART)
        seen.setdefault(key, where)


def _made(job: Job, base: Path) -> list[tuple[str, Path]]:
    return [(where, output.path) for where, output in layout.placed(job, base)] + list(layout.reports(job, base))


def _place(path: Path) -> str:
    """The same for all the ways to write one path, on the disks of any system."""
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()


def _check_quantize(model: Model, where: str, reading: Reading) -> None:
    matrix = model.imatrix
    for key in spec.OF_QUANTIZE:
        if getattr(model, key) and not model.quantize:
            yaml_reader.say(reading, f"{where}.{key}", "nothing uses it: no type stands under `quantize`")
    if matrix and (matrix.file is None) == (matrix.text is None):
        yaml_reader.say(reading, f"{where}.imatrix", "expected `file` or `text`, and not both")
    elif matrix and matrix.file and (matrix.chunks or matrix.args):
        yaml_reader.say(reading, f"{where}.imatrix", "`chunks` and `args` are for one that is made from a `text`")
    if model.quality and not model.quantize:
        yaml_reader.say(reading, f"{where}.quality", "nothing is measured: no type stands under `quantize`")
    elif model.quality and not set(model.outtype) & set(spec.UNQUANTIZED):
        complaint = "compares with the unquantized file, and none is kept: add bf16 to `outtype`"
        yaml_reader.say(reading, f"{where}.quality", complaint)
    needing = [type_ for type_ in model.quantize if type_.upper() in spec.NEED_IMATRIX]
    if needing and not matrix:
        complaint = f"{', '.join(needing)} cannot be made without an importance matrix"
        hint = "set `imatrix: {text: FILE}`, or choose a type that needs none, such as Q4_K_M"
        yaml_reader.say(reading, f"{where}.quantize", complaint, hint)


def _look_up(job: Job, path: Path, reading: Reading) -> None:
    sources = [(f"models[{index}]", model) for index, model in enumerate(job.models)]
    named: list[tuple[str, str]] = [(f"{where}.source", model.source) for where, model in sources]
    for where, model in sources:
        named += [(f"{where}.loras[{number}].source", lora.source) for number, lora in enumerate(model.loras)]
    for where, text in named:
        if not fields.is_folder(text) and (path.parent / text).is_file():
            yaml_reader.say(reading, where, f"{text} is a file here, and no hub id", _instead(Path(text)))
    named = [(where, source) for where, source in named if fields.is_folder(source)]
    for where, text in named + ([("environment.path", job.environment.path)] if job.environment.path else []):
        found = fields.folder(text, path.parent)
        if not found.is_dir():
            why = "is not a folder" if found.exists() else "does not exist"
            way = _instead(found) if found.is_file() else f"correct the path; it is relative to {path.name}"
            yaml_reader.say(reading, where, f"{found} {why}", way)
    for where, model in sources:
        matrix, quality = model.imatrix, model.quality
        files = [("imatrix", "file", matrix.file), ("imatrix", "text", matrix.text)] if matrix else []
        for part, key, name in files + ([("quality", "text", quality.text)] if quality else []):
            if name and not (place := fields.folder(name, path.parent)).is_file():
                key = f".{key}" if f"{where}.{part}.{key}" in reading.lines else ""
                yaml_reader.say(
                    reading, f"{where}.{part}{key}", f"{place} is not a file", f"correct the path; it is relative to {path.name}"
                )
    dest = fields.folder(job.output, path.parent)
    nearest = next(each for each in (dest, *dest.parents) if os.path.lexists(each))
    if not nearest.is_dir():
        yaml_reader.say(reading, "output", f"{nearest} is not a folder", "name another folder, or move that file away")
    if long := next((part for part in dest.parts if len(os.fsencode(part)) > LONGEST_PART), ""):
        yaml_reader.say(
            reading,
            "output",
            f'"{yaml_reader.shown(long)}" is longer than a name can be ({LONGEST_PART} bytes)',
            "choose a shorter one",
        )
    yaml_reader.done(reading)


def _instead(file: Path) -> str:
    if file.suffix == ".gguf":
        return "a GGUF file is converted already: name the model that it was made from"
    return "name the folder that it lies in, such as ./my-model"


def schema() -> dict[str, Any]:
    """The JSON Schema of a job file, short forms included, made from the types that parse it."""
    found = msgspec.json.schema(Job)
    parts = {name: part["properties"] for name, part in found["$defs"].items()}
    text = {"type": "string"}
    for part, key in (("Model", "outtype"), ("Model", "mmproj"), ("Lora", "outtype")):
        del parts[part][key]["type"]
        parts[part][key] |= {"anyOf": [text, {"type": "array", "items": parts[part][key].pop("items")}]}
    for key in ("imatrix", "quality"):
        parts["Model"][key]["anyOf"].insert(0, text)
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

    asked: dict[str, Any] = {"source": fields.from_command_line(model, folder)}
    asked |= {"outtype": list(outtypes)} if outtypes else {}
    asked |= {"quantize": list(quantize)} if quantize else {}
    asked |= {"loras": [fields.from_command_line(lora, folder) for lora in loras]} if loras else {}
    data: dict[str, Any] = {"version": 1, "llama_cpp": {"tag": tag or spec.DEFAULT_TAG}}
    data |= {"environment": {"overrides": list(overrides)}} if overrides else {}
    data |= {"output": fields.relative(output, folder), "models": [asked]}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=4096)


def tell_by_option(error: JobError, file: Path) -> None:
    """Put what is wrong with a job that is in no file into the words of the options that it was made of."""
    place = f"{re.escape(str(file))}|{re.escape(file.name)}"
    message = re.sub(rf"^({place})(:\d+)*: ", "", error.message, flags=re.MULTILINE)
    for key, option in OPTIONS:
        message = re.sub(rf"^{key}(?=: )", option, message, flags=re.MULTILINE)
    hint = "`orchestrate convert --help` tells what each may be" if error.hint == WAY else error.hint
    error.message, error.hint = message, hint.replace(f"relative to {file.name}", "relative to the current folder")
