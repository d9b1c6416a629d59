"""The content of an output's receipt, in words that hold on every machine and tell nothing of this one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

import llamacpp_orchestrator
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.receipt import FileRecord
from llamacpp_orchestrator.pipeline.receipt import Input
from llamacpp_orchestrator.pipeline.receipt import Receipt


def receipt(
    pinned: PinnedJob, build: Build, files: tuple[FileRecord, ...], notes: tuple[str, ...], levels: tuple[str, ...]
) -> Receipt:
    """The receipt of an output that has passed some levels of checks, with its files as they lie there now."""
    places = _places(pinned.context)
    words = (Path(word).name if Path(word).is_absolute() else _without(places, word) for word in build.portable_argv)
    return Receipt(
        path=build.output.path.name,
        kind=build.output.kind,
        type=build.output.type,
        recipe=build.recipe,
        command=(*words, *converter_view.options(pinned, build)),
        inputs=inputs(pinned, build),
        versions=pipeline_receipt.Versions(
            tool=llamacpp_orchestrator.__version__,
            tag=pinned.tag,
            commit=pinned.lock.llama_cpp.commit,
            tree=pinned.lock.llama_cpp.tree,
            environment=pinned.lock.environment.pin().digest() if pinned.lock.environment else "unpinned",
            lock=lock_file.digest(pinned.lock),
        ),
        files=files,
        levels=levels,
        job="" if pinned.context.address else _way(pinned.context.file, build.output.path.parent),
        notes=tuple(_without(places, note) for note in notes),
    )


def inputs(pinned: PinnedJob, build: Build) -> tuple[Input, ...]:
    """The inputs of an output, each with the sha256 of its bytes, and with the source and commit that it came from."""
    known = dict[tuple[str, str], Input]()  # by name and digest: two adapters to merge may be called alike
    for part in (part for need in build.needs for part in need.parts):
        pin = pinned.files(part.wanted)
        view, source, name = pinned.view(part), part.wanted.source, part.name
        named = fields.folder_name(spec.folder(source, pinned.context.file.parent)) if spec.is_folder(source) else source
        for file in pin.files:
            full, path = f"{name}/{file.path}", view / file.path
            sha256 = file.sha256 or (pinned.store.sha256(path) if path.is_file() else "")
            digest = file.sha256 or f"git:{file.oid}"
            known[full, digest] = Input(name=full, digest=digest, sha256=sha256, source=named, commit=pin.commit)
    if build.matrix:
        sha256 = pinned.store.sha256(build.matrix.file(pinned.store))
        matrix = Input(name=build.matrix.name, digest=build.matrix.digest, sha256=sha256)
        known[matrix.name, matrix.digest] = matrix
    originals: list[Input] = []
    for item in build.inputs:
        made_of = pipeline_receipt.read(build.of.path) if build.of and item.name == build.origin else None
        if made_of:
            originals += [Input(name=file.name, digest=item.digest, sha256=file.sha256) for file in made_of.files]
        else:
            originals.append(known.get((item.name, item.digest), msgspec.structs.replace(item, sha256=item.digest)))
    return tuple(originals)


def _way(job: Path, folder: Path) -> str:
    """The way from an output to its job; "" where it would lead down through the user's own folder, or to another drive."""
    try:
        way = Path(os.path.relpath(job, folder)).as_posix()
    except ValueError:
        return ""
    place, home = Path(os.path.abspath(folder)), _home()
    return "" if home and job.is_relative_to(home) and not place.is_relative_to(home) else way


def _home() -> Path | None:
    with contextlib.suppress(RuntimeError):
        return Path.home()
    return None


def placeless(context: Context, text: str) -> str:
    """A text without the folders of this machine that we know of."""
    return _without(_places(context), text)


def _without(places: tuple[tuple[str, str], ...], text: str) -> str:
    for place, name in places:
        text = text.replace(place, name)
    return text


def _places(context: Context) -> tuple[tuple[str, str], ...]:
    places = {str(context.store.root): "{cache}", str(context.file.parent): "{job}", str(_home() or ""): "~"}
    return tuple((place, places[place]) for place in sorted(places, key=len, reverse=True) if len(place) > 1)
