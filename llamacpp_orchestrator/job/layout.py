"""Every output that a job makes, where it lies and what it is called; and the same of its reports on quality."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.job.fields import folder
from llamacpp_orchestrator.job.spec import BETWEEN
from llamacpp_orchestrator.job.spec import UNQUANTIZED
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.job.spec import Lora
from llamacpp_orchestrator.job.spec import Model

MERGED = "model.safetensors"


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a job makes: a model, quantized, mmproj or adapter; a `temporary` one is there only to be quantized.

    What is `merged` is a folder of files, which go by the name of the weights even where these are in several.
    """

    path: Path
    kind: str
    type: str
    model: Model
    lora: Lora | None = None
    temporary: bool = False


def outputs(job: Job, base: Path) -> tuple[Output, ...]:
    """Every file that a job makes and keeps, in its order: a model's own types, the quantized ones, projectors, adapters."""
    return tuple(output for _, output in placed(job, base) if not output.temporary)


def placed(job: Job, base: Path) -> Iterator[tuple[str, Output]]:
    """Every output with the key of the job that asks for it, temporary ones at the place where they would be kept."""
    root = folder(job.output, base)
    for index, model in enumerate(job.models):
        where = f"models[{index}]"
        types = [("outtype", "model", kind) for kind in model.outtype if kind != "none"]
        if model.quantize and not set(model.outtype) & set(UNQUANTIZED):
            between = Output(path=_between(root, model), kind="model", type=BETWEEN, model=model, temporary=True)
            yield f"{where}.quantize", between
        for key, kind, type_ in types + [("quantize", "quantized", type_) for type_ in model.quantize]:
            yield f"{where}.{key}", Output(path=_path(root, model, type_), kind=kind, type=type_, model=model)
        for type_ in model.mmproj:
            path = Path(os.path.normpath(root / f"mmproj-{model.name}-{type_}.gguf"))
            yield f"{where}.mmproj", Output(path=path, kind="mmproj", type=type_, model=model)
        if model.keep_merged:
            path = Path(os.path.normpath(root / model.name / MERGED))
            yield f"{where}.keep_merged", Output(path=path, kind="merged", type="safetensors", model=model)
        for number, lora in enumerate(model.loras):
            for type_ in lora.outtype:
                path = Path(os.path.normpath(root / f"{model.name}-{lora.name}-lora-{type_}.gguf"))
                yield f"{where}.loras[{number}]", Output(path=path, kind="adapter", type=type_, model=model, lora=lora)


def reports(job: Job, base: Path) -> Iterator[tuple[str, Path]]:
    """Every report on quality with the key of the job that asks for it; it lies beside the unquantized file."""
    for index, model in enumerate(job.models):
        kept = next((type_ for type_ in model.outtype if type_ in UNQUANTIZED), None)
        if model.quality and kept:
            yield f"models[{index}].quality", report_path(_path(folder(job.output, base), model, kept), model)


def report_path(unquantized: Path, model: Model) -> Path:
    """The path of the report on the quality of a model's files."""
    return unquantized.with_name(f"{model.name}-quality.json")


def _path(root: Path, model: Model, type_: str) -> Path:
    return Path(os.path.normpath(root / model.outfile.format(name=model.name, type=type_)))


def _between(root: Path, model: Model) -> Path:
    path = _path(root, model, BETWEEN)
    taken = {str(_path(root, model, type_)).casefold() for type_ in (*model.outtype, *model.quantize)}
    return path.with_name(f"{path.stem}-{BETWEEN}.gguf") if str(path).casefold() in taken else path
