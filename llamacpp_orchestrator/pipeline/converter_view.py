"""The folder that upstream's scripts are shown of a model: its view, or a copy of that in the form which the tag reads."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import translation
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import encoders
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.models import view as models_view
from llamacpp_orchestrator.models.selection import HubFile
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system import limits as system_limits
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.translation import Translation
from llamacpp_orchestrator.translation.reader import reader
from llamacpp_orchestrator.translation.rules import RULES


def of(pinned: PinnedJob, view: Path) -> Translation:
    """The translation of a model for the tag of the lock; the small files in its view are enough."""
    files = tuple(
        (path.name, path.stat().st_mtime_ns) for path in sorted(view.glob("*")) if path.suffix in (".json", ".jinja", ".md")
    )
    return _translated(view, files, pinned.tree, _transformers(pinned))


def _transformers(pinned: PinnedJob) -> str:
    """The version of transformers that the scripts run with; "" where the environment does not tell."""
    if pinned.lock.environment is not None:
        return _locked(pinned.lock.environment.requirements)
    venv = pinned.context.folder(str(pinned.context.job.environment.path))
    packages = (*venv.glob("lib/python3*/site-packages"), venv / "Lib" / "site-packages")
    names = [path.name for folder in packages for path in folder.glob("transformers-*.dist-info")]
    return names[0].split("-")[1].removesuffix(".dist") if names else ""


@functools.lru_cache(maxsize=4)  # asked for each output of a job
def _locked(requirements: str) -> str:
    match = re.search(r"^transformers==([\d.]+)", requirements, re.MULTILINE)
    return match[1] if match else ""


@functools.lru_cache(maxsize=16)  # a base is asked for with each of its adapters; `files` tells when a view has grown
def _translated(view: Path, files: tuple[tuple[str, int], ...], tree: Path, transformers: str) -> Translation:
    names = preflight.claimed(preflight.read_json(view / "config.json"))

    @functools.cache
    def read(name: str) -> Any:
        path = view / name
        try:
            if ".." in path.parts or not path.is_file():
                return None
            if path.suffix not in (".json", ".jinja", ".txt", ".md"):
                return path.read_bytes()
            text = path.read_text(encoding="utf-8")
            return json.loads(text) if path.suffix == ".json" else text
        except (OSError, ValueError, RecursionError):
            return None  # what is damaged is upstream's to complain about

    return translation.translate(read, reader(tree, transformers, *names[:1]), RULES)


def folder(pinned: PinnedJob, view: Path) -> Path:
    """The folder that the tag's scripts are given for a view: the view, or a copy that is made where it is not there.

    A copy has the view's name, and links to its files but for those in another form.
    """
    translated = of(pinned, view).files
    if not translated:
        return view
    copy = _place(pinned.context, view, translated)

    def make(entry: Path) -> None:
        names = [path.relative_to(view).as_posix() for path in sorted(view.rglob("*")) if path.is_file()]
        linked = [HubFile(path=name, size=0) for name in names if name not in translated]
        models_view.make_view(linked, view, copy)
        for name, content in translated.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(content)

    def unhealthy(entry: Path) -> str:
        gone = [path.name for path in view.iterdir() if not (copy / path.name).exists()]
        altered = [name for name, content in translated.items() if _content(copy / name) != content]
        return f"{(gone or altered)[0]} of the copy is not as it was made" if gone or altered else ""

    pinned.store.ensure("views", copy.parent.name, make, unhealthy, about=f"{view.name}, translated for {pinned.tag}")
    return copy


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _place(context: Context, view: Path, translated: dict[str, bytes]) -> Path:
    digests = [(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(translated.items())]
    key = msgspec.json.encode([str(view.relative_to(context.store.root)), digests])
    return context.store.entry("views", hashlib.sha256(key).hexdigest()[:32]) / view.name


def notes(pinned: PinnedJob, build: Build) -> tuple[str, ...]:
    """Notes on the copies that an output is converted from."""
    return tuple(dict.fromkeys(note for view in build.views for note in of(pinned, view).notes))


def command(pinned: PinnedJob, build: Build, call: Command) -> Command:
    """A call of upstream's script with the folders that it is to read; makes those that must be others."""
    folders = {str(view): str(folder(pinned, view)) for view in build.views}
    argv = (*(folders.get(word, word) for word in call.argv), *options(pinned, build))
    return msgspec.structs.replace(call, argv=argv)


def options(pinned: PinnedJob, build: Build) -> tuple[str, ...]:
    """Options that this tag's script needs besides for a model, or it would drop a part of it."""
    if build.output.kind != "model":
        return ()
    (view,), tree = build.views, pinned.tree
    names = safetensors.read_json(view / "config.json").get("architectures")
    classes = capabilities.converter(tree, str(names[0])) if isinstance(names, list) and names else ()
    return tuple(word for word in encoders.options(view, tree, classes) if word not in build.command.argv)


def fenced(pinned: PinnedJob, build: Build, command: Command, place: Path) -> Command:
    """A call of upstream's script in its fence, which may write into one place."""
    command = msgspec.structs.replace(command, env=pinned.script_env)
    places = (place, pinned.home(build.output.model.trust_remote_code))
    return sandbox.around(command, system_limits.limits(pinned.context.settings), write=places)
