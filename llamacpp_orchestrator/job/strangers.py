"""What is named where a job file is meant: a lock, a model, an output or another file, and what to run for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llamacpp_orchestrator.util import pointers

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".model", ".distcp")
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
RECEIPT, LOCK, QUALITY = ".receipt.json", re.compile(r"(.*)\.lock(\.ya?ml)"), "-quality.json"
JOB = re.compile(rb"^models\s*:", re.MULTILINE)
LARGEST = 64 * 1024  # bytes of a job
OPEN_FILES = ("/dev", "/dev/fd", "/proc/")  # where a system names what a program has open
MOST_LINKS = 40  # as Linux has it


def is_stream(path: Path) -> bool:
    """Tell whether a path is a pipe, a device, or what is open by its number (`-`, /dev/stdin): nothing can lie beside it."""
    if not path.is_file():
        return not path.is_dir() and (str(path) == "-" or path.exists())
    for _ in range(MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in OPEN_FILES or folder.startswith(OPEN_FILES[-1]):
            return True
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return False


def file(path: Path, text: bytes) -> tuple[str, str]:
    """What a file is that is no job, by its name and how it begins, and what to run instead; ("", "") in doubt."""
    name = path.name
    pointer, way = pointers.kind(path)
    if pointer:
        return f"{path} is {pointer}, not the job itself", way
    if text.startswith(b"GGUF") or path.suffix.lower() == ".gguf":
        hint = f"check it: orchestrate verify {path}; for other types name what it was made from: orchestrate convert MODEL"
        return f"{path} is a GGUF file, which is converted already, not a job file", hint
    if match := LOCK.fullmatch(name):
        return f"{path} is a lock, not a job file", f"name the job that it belongs to: orchestrate run {_job_of(path, match[1])}"
    if name.endswith(RECEIPT):
        output = path.with_name(name.removesuffix(RECEIPT))
        hint = f"make that file again and compare: orchestrate reproduce {path}; check it: orchestrate verify {output}"
        return f"{path} is the receipt of {output.name}, not a job file", hint
    if name.endswith(QUALITY):
        return f"{path} is a report on quality, not a job file", "name the job that measured it: orchestrate run JOB"
    if name.startswith("Modelfile") or name.endswith(".Modelfile"):
        return f"{path} is a Modelfile of Ollama, not a job file", f"orchestrate is done there: ollama create NAME -f {path}"
    if text.startswith(ARCHIVES) or name.endswith((".tar", ".rar")):
        hint = "a bundle goes with its job: orchestrate run JOB --bundle FILE; unpack any other, and convert the folder in it"
        return f"{path} is an archive, not a job file", hint
    if name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        return f"{path} is a part of an adapter, not a job file", adapter(path.absolute().parent)
    command = model(path.absolute().parent) if path.suffix in (*WEIGHTS, ".json", ".jinja") else ""
    if path.suffix in WEIGHTS or command:
        hint = command or "name the folder of its model: orchestrate convert FOLDER"
        return f"{path} is a part of a model, not a job file", hint
    return "", ""


def folder(path: Path) -> str:
    """What to run for a folder that is named where a job file is meant."""
    files = jobs(path)
    if files:
        more = f" (or {', '.join(file.name for file in files[1:4])})" if files[1:] else ""
        return f"name the file in it: {files[0]}{more}"
    return model(path) or f"name the file in it: {path / 'job.yaml'}"


def model(path: Path) -> str:
    """What to run for the folder of a model or adapter; "" for any other folder."""
    if (path / "adapter_config.json").is_file():
        return adapter(path)
    return f"a model needs no job file: orchestrate convert {path}" if (path / "config.json").is_file() else ""


def adapter(path: Path) -> str:
    """What to run for the folder of an adapter."""
    return f"an adapter is converted with its base: orchestrate convert BASE --outtype none --lora {path}"


def jobs(path: Path) -> list[Path]:
    """The files of a folder that look like jobs."""
    return [file for file in sorted(path.glob("*.y*ml")) if is_job(file)]


def is_job(path: Path) -> bool:
    """Tell whether a file looks like a job, for where none is named: YAML with `models` at its top level, and no lock."""
    if path.suffix not in (".yaml", ".yml") or LOCK.fullmatch(path.name):
        return False
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return bool(JOB.search(file.read(LARGEST)))
    except OSError:
        return False


def _job_of(path: Path, stem: str) -> Path:
    named = [path.with_name(stem + ending) for ending in (".yaml", ".yml")]
    return next((file for file in named if file.is_file()), named[0])
