"""The job file: `job.yaml` becomes a Job, or complaints that name file, line and key."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import repositories
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job import strangers
from llamacpp_orchestrator.job import tensor_types
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.job.spec import Model
from llamacpp_orchestrator.storage import address as storage_address
from llamacpp_orchestrator.util import pointers
from llamacpp_orchestrator.util import yaml_reader
from llamacpp_orchestrator.util.yaml_reader import Reading

WAY = "`orchestrate schema` lists what each key may hold; `orchestrate init FILE` writes an example"
APART = "set `name` or `outfile`, or drop one of the two"
LONGEST_PATH, LONGEST_PART, LONGEST_FILE, SHARD_SUFFIX = 4096, 255, 250, len("-00001-of-00001")

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
    # merge: [./my-adapter]    # adapters that are merged into the model first: hub ids or folders
    # loras:                   # or adapters that become files of their own
    #   - source: ./my-adapter # a hub id or a folder
    #     outtype: f16
"""


def parse(text: bytes, path: Path) -> Job:
    """The job that a file's text says; JobError with every complaint. Opens no other file."""
    return _parse(text, path)[0]


def load(path: Path, folders: bool = True) -> Job:
    """The job in a file, its `folders` looked up; JobError with every complaint, or why the file cannot be read."""
    try:
        if strangers.is_stream(path):
            way = "write the job into a file (cat > job.yaml), and name that: its lock and its outputs lie beside it"
            raise JobError(f"{path}: is a pipe, a device or an open file by its number, not a job file", way)
        with path.open("rb") as file:
            text = file.read(yaml_reader.MAX_BYTES + 1)
    except FileNotFoundError as error:
        way = "`orchestrate init` writes a job file to start from; a model needs none: orchestrate convert MODEL"
        raise JobError(f"{path}: no such file", way) from error
    except OSError as error:
        if isinstance(error, IsADirectoryError) or (os.name == "nt" and path.is_dir()):
            raise JobError(f"{path}: is a folder, not a job file", strangers.folder(path)) from error
        why = f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise JobError(f"{path}: {why}", "check the name, and the rights of the file and of the folders above it") from error
    try:
        job, reading = _parse(text, path)
    except JobError as error:
        stranger, way = strangers.file(path, text)
        raise JobError(stranger, way) if stranger else error from error
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
    if isinstance(data, dict) and data.get("models") is not None:
        models = _listed(reading, data["models"], "models", path.parent)
        data = {**data, "models": models}
        if models == []:
            yaml_reader.say(reading, "models", "expected at least one model")
    data = yaml_reader.fit(reading, data, Job)
    yaml_reader.done(reading)
    job = msgspec.convert(data, Job, strict=False)
    models = (msgspec.structs.replace(model, publish=model.publish or job.publish) for model in job.models)
    job = msgspec.structs.replace(job, models=tuple(models))
    _check(job, path.parent, reading)
    yaml_reader.done(reading)
    return job, reading


def _listed(reading: Reading, value: Any, where: str, base: Path) -> Any:
    """The models or adapters of a job with what each leaves to its source; one that stands alone is a list of one."""
    if value and isinstance(value, dict | str):
        yaml_reader.alone(reading, where)
        value = [value]
    if not isinstance(value, list):
        return value
    return [_expanded(reading, item, f"{where}[{index}]", base) for index, item in enumerate(value)]


def _expanded(reading: Reading, item: Any, where: str, base: Path) -> Any:
    if isinstance(item, str):
        reading.escaped |= {f"{where}.source"} if where in reading.escaped else set()
        item = {"source": item}
    if not isinstance(item, dict):
        return item
    for key in ("loras", "merge"):
        if item.get(key) is not None:
            item = {**item, key: _listed(reading, item[key], f"{where}.{key}", base)}
    source = item.get("source")
    if not isinstance(source, str):
        return item
    if source and fields.source(source.split("@")[0]) and _is_there(base / source):
        complaint = f"{yaml_reader.shown(source)} is a folder beside {reading.file}, and is not written as one"
        yaml_reader.say(reading, f"{where}.source", complaint, f"write ./{source}")
        return {**item, "source": f"./{source}"}
    if f"{where}.source" in reading.escaped and not _is_there(fields.folder(source, base)):
        yaml_reader.say(reading, f"{where}.source", f'"{yaml_reader.shown(source)}" is no folder here', yaml_reader.ESCAPE[1])
        return {**item, "source": "./x"}
    if not fields.is_folder(source) and "@" in source and "://" not in source:
        source, revision = source.split("@", 1)
        if item.get("revision", revision) != revision:
            yaml_reader.say(reading, f"{where}.revision", f'the source says "{revision}" already')
        item = {**item, "source": source, "revision": revision}
    elif fields.is_folder(source) and "revision" in item and item["revision"] != "main":
        yaml_reader.say(reading, f"{where}.revision", "a folder has no revisions")
    if fields.source(source):
        return item
    place = Path(os.path.abspath(fields.folder(source, base)))
    name = fields.folder_name(place) if fields.is_folder(source) else source.split("/")[1]
    return {"name": "-".join((name, *_names(item.get("merge")))), **item}


def _names(merge: Any) -> list[str]:
    """The names of the adapters that are merged into a model, which a model without a name of its own bears beside its base's."""
    adapters = merge if isinstance(merge, list) else ()
    return [adapter["name"] for adapter in adapters if isinstance(adapter, dict) and isinstance(adapter.get("name"), str)]


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except (OSError, ValueError):  # no name of a folder at all
        return False


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
            yaml_reader.say(
                reading,
                f"{where}.outtype",
                "expected at least one type",
                "write none where only adapters are meant: outtype: none",
            )
        _check_quantize(model, where, reading)
        if model.merge and "none" in model.outtype and not model.mmproj:
            yaml_reader.say(reading, f"{where}.merge", "nothing is made of the merged model: outtype is none")
        if model.keep_merged and not model.merge:
            yaml_reader.say(reading, f"{where}.keep_merged", "nothing is merged: no adapter stands under `merge`")
        if "none" in model.mmproj:
            yaml_reader.say(reading, f"{where}.mmproj", "expected at least one type; leave the key out instead")
        if model.ollama and "none" in model.outtype:
            yaml_reader.say(reading, f"{where}.ollama", "needs a file of the model itself, and outtype is none")
        for number, lora in enumerate(model.loras):
            if not lora.outtype or "none" in lora.outtype:
                complaint = "expected at least one type; leave the adapter out instead"
                yaml_reader.say(reading, f"{where}.loras[{number}].outtype", complaint)
    _check_names(job, base, reading)
    repositories.check(job, base, reading)


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
    needing = [type_ for type_ in model.quantize if tensor_types.needs_matrix(type_)]
    if needing and not matrix:
        complaint = f"{', '.join(needing)} cannot be made without an importance matrix"
        hint = "set `imatrix: {text: FILE}`, or choose a type that needs none, such as Q4_K_M"
        yaml_reader.say(reading, f"{where}.quantize", complaint, hint)


def _look_up(job: Job, path: Path, reading: Reading) -> None:
    sources = [(f"models[{index}]", model) for index, model in enumerate(job.models)]
    named: list[tuple[str, str]] = [(f"{where}.source", model.source) for where, model in sources]
    for where, model in sources:
        named += [(f"{where}.loras[{number}].source", lora.source) for number, lora in enumerate(model.loras)]
        named += [(f"{where}.merge[{number}].source", adapter.source) for number, adapter in enumerate(model.merge)]
    for where, text in named:
        if not fields.is_folder(text) and (path.parent / text).is_file():
            yaml_reader.say(reading, where, f"{text} is a file here, and no hub id", _instead(Path(text)))
    named = [(where, source) for where, source in named if fields.is_folder(source)]
    for where, text in named + ([("environment.path", job.environment.path)] if job.environment.path else []):
        place = fields.folder(text, path.parent)
        if not place.is_dir():
            why = "is not a folder" if place.exists() else "does not exist"
            way = _instead(place) if place.is_file() else _correct(reading, where, path)
            yaml_reader.say(reading, where, f"{quoted(place, LONGEST_PATH)} {why}", way)
    for where, model in sources:
        matrix, quality = model.imatrix, model.quality
        files = [("imatrix", "file", matrix.file), ("imatrix", "text", matrix.text)] if matrix else []
        files += [("quality", "text", quality.text)] if quality else []
        files += (
            [("publish", "system", model.publish.system), ("publish", "template", model.publish.template)]
            if model.publish
            else []
        )
        for part, key, name in files:
            if name:
                key = f".{key}" if f"{where}.{part}.{key}" in reading.lines else ""
                _look_at_file(reading, f"{where}.{part}{key}", fields.folder(name, path.parent), path)
    if not storage_address.is_address(job.output):
        _look_at_output(job, path, reading)
    yaml_reader.done(reading)


def _look_at_output(job: Job, path: Path, reading: Reading) -> None:
    dest = fields.folder(job.output, path.parent)
    if "output" in reading.escaped and not dest.exists():
        yaml_reader.say(reading, "output", f"{quoted(dest, LONGEST_PATH)} does not exist", yaml_reader.ESCAPE[1])
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


def _look_at_file(reading: Reading, where: str, place: Path, job: Path) -> None:
    pointer, way = pointers.kind(place)
    if pointer:
        yaml_reader.say(reading, where, f"{place} is {pointer}, not the file itself", way)
    elif not place.is_file():
        yaml_reader.say(reading, where, f"{quoted(place, LONGEST_PATH)} is not a file", _correct(reading, where, job))


def _correct(reading: Reading, where: str, job: Path) -> str:
    """What to do about a path that leads nowhere."""
    return yaml_reader.ESCAPE[1] if where in reading.escaped else f"correct the path; it is relative to {job.name}"


def _instead(file: Path) -> str:
    if file.suffix == ".gguf":
        return "a GGUF file is converted already: name the model that it was made from"
    return "name the folder that it lies in, such as ./my-model"


def schema() -> dict[str, Any]:
    """The JSON Schema of a job file, short forms included, made from the types that parse it."""
    whole = msgspec.json.schema(Job)
    parts = {name: part["properties"] for name, part in whole["$defs"].items()}
    text = {"type": "string"}
    for key in [key for part in parts.values() for key in part.values() if key.get("type") == "array"]:
        rules = {name: key.pop(name) for name in ("type", "items", "minItems") if name in key}
        if "$ref" in rules["items"]:
            rules["items"] = {"anyOf": [text, rules["items"]]}
        key["anyOf"] = [rules["items"], rules]
    for part, name in (("Model", "imatrix"), ("Model", "quality"), ("Model", "publish"), ("Job", "publish")):
        parts[part][name]["anyOf"].insert(0, text)
    for part, name in (("Binaries", "cuda"), ("Environment", "python")):
        parts[part][name]["type"] = ["string", "number"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}
