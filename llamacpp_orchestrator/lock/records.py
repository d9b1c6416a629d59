"""The records of a lock: what a job means exactly, as commit, tree, assets, packages and files; and what a job needs of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from llamacpp_orchestrator.binaries.selection import Asset
from llamacpp_orchestrator.environment.pin import Pin
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.models.selection import HubFile
from llamacpp_orchestrator.models.selection import Snapshot
from llamacpp_orchestrator.source.pin import Commit
from llamacpp_orchestrator.source.pin import Sha256
from llamacpp_orchestrator.source.pin import SourcePin

WITHOUT_RELEASE = ("none", "source")  # backends that need nothing of a release


class EnvironmentPin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An environment: what was asked of which lines of requirements (their digest), and the hashed set that it came to."""

    upstream: Sha256
    torch: str
    overrides: tuple[str, ...] = ()
    wanted: str = "auto"
    python: Annotated[str, Meta(pattern=r"^3\.\d+$")]
    requirements: str

    def pin(self) -> Pin:
        """The part that decides what is installed."""
        return Pin(python=self.python, requirements=self.requirements)


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Files that a job needs of one model or adapter."""

    source: str
    kind: str
    revision: str = "main"
    weights: bool = True
    remote_code: bool = False

    @property
    def is_folder(self) -> bool:
        """Tell whether they lie in a folder of the user's own; else in a repository of the hub."""
        return spec.is_folder(self.source)

    @property
    def is_adapter(self) -> bool:
        """Tell whether they are an adapter's, to be converted or to be merged."""
        return self.kind != "model"


class Ingredient(msgspec.Struct, frozen=True):
    """A model or adapter that an output is made of: files, and the name of the folder in which they are shown.

    With `merged` it is what these files become when adapters are merged into them; each has its weight.
    """

    wanted: Wanted
    name: str
    merged: tuple[tuple[Ingredient, float], ...] = ()

    @property
    def parts(self) -> tuple[Ingredient, ...]:
        """All that must be brought here for it: itself, or the base and the adapters that are merged into it."""
        if not self.merged:
            return (self,)
        last = re.split(r"[/\\]", self.wanted.source)[-1]  # a folder's name on no machine in particular
        return (Ingredient(self.wanted, last if last.strip(".~") else self.name), *(adapter for adapter, _ in self.merged))


class FilesPin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The files of one model or adapter, at one commit or with the content of one folder; `unread` are weights beside them.

    `by_peft`: PEFT itself may have to merge the adapter.
    """

    wanted: Wanted
    commit: Commit = ""
    files: tuple[HubFile, ...]
    unread: tuple[str, ...] = ()
    by_peft: bool = False

    @property
    def small(self) -> FilesPin:
        """The same files without weights in safetensors."""
        return msgspec.structs.replace(self, files=tuple(file for file in self.files if not file.path.endswith(".safetensors")))

    @property
    def snapshot(self) -> Snapshot:
        """The same files as the hub's cache knows them."""
        return Snapshot(source=self.wanted.source, commit=self.commit, files=self.files)


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """Pins of all that decides the bytes of a job's outputs, and of what they are compared with."""

    version: int = 1
    llama_cpp: SourcePin
    environment: EnvironmentPin | None = None
    reference: EnvironmentPin | None = None
    assets: tuple[Asset, ...] = ()
    models: tuple[FilesPin, ...]

    def files(self, wanted: Wanted) -> FilesPin:
        """The pin of one model or adapter; KeyError when the lock does not know it."""
        return self._by_wanted[wanted]

    @functools.cached_property
    def _by_wanted(self) -> dict[Wanted, FilesPin]:
        return {pin.wanted: pin for pin in reversed(self.models)}  # of two the first counts


class PartialLock(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a lock that still hold; `spare` is an environment that does if the new tree has the same requirements."""

    source: SourcePin | None = None
    environment: EnvironmentPin | None = None
    reference: EnvironmentPin | None = None
    spare: EnvironmentPin | None = None
    assets: tuple[Asset, ...] | None = None
    models: Mapping[Wanted, FilesPin] = {}


def base_wanted(model: spec.Model) -> Wanted:
    """The files of a model for its own conversion, or for that of its adapters alone."""
    weights = model.outtype != ("none",) or bool(model.mmproj)
    return _wanted(model.source, "model", model.revision, weights, model.trust_remote_code)


def lora_wanted(lora: spec.Lora) -> Wanted:
    """The files of an adapter for its conversion."""
    return _wanted(lora.source, "adapter", lora.revision, True, False)


def merge_wanted(merge: spec.Merge) -> Wanted:
    """The files of an adapter that is merged: its tokenizer and the adapter that it was started from, too, if there are any."""
    return _wanted(merge.source, "merge", merge.revision, True, False)


def model_need(model: spec.Model) -> Ingredient:
    """What a model's outputs are made of: its files, merged with its adapters where there are some to merge."""
    return Ingredient(
        base_wanted(model),
        model.name,
        tuple((Ingredient(merge_wanted(merge), merge.name), merge.weight) for merge in model.merge),
    )


def _wanted(source: str, kind: str, revision: str, weights: bool, remote_code: bool) -> Wanted:
    return Wanted(
        source=source,
        kind=kind,
        revision="" if spec.is_folder(source) else revision,
        weights=weights,
        remote_code=remote_code,
    )


def all_wanted(job: Job) -> tuple[Wanted, ...]:
    """Every set of files of a job, once, in the job's order."""
    sets: dict[Wanted, None] = {}
    for model in job.models:
        sets.update(dict.fromkeys(part.wanted for part in model_need(model).parts))
        sets.update(dict.fromkeys(map(lora_wanted, model.loras)))
    return tuple(sets)


def names(job: Job) -> dict[Wanted, str]:
    """A name for each set of files: the job's own, with the source behind it where two would be called the same."""
    names: dict[Wanted, str] = {}
    taken: set[str] = set()
    for model in job.models:
        parts = [(part.wanted, part.name) for part in model_need(model).parts]
        for wanted, name in (*parts, *((lora_wanted(lora), lora.name) for lora in model.loras)):
            if wanted not in names:
                names[wanted] = f"{name} ({wanted.source})" if name in taken else name
                taken.add(names[wanted])
    return names


def uses_binaries(job: Job) -> bool:
    """Tell whether anything in the job runs a program of the tag."""
    return any(model.quantize or model.verify in check_levels.RUNNING for model in job.models)


def uses_reference(job: Job) -> bool:
    """Tell whether anything in the job is compared with what its source says next."""
    return any(model.verify in check_levels.COMPARING for model in job.models)
