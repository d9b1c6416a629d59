"""What a job means exactly: commit, tree, assets, packages and files, as `job.lock.yaml` holds them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import environment
from llamacpp_orchestrator import spec
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.hub import HubFile
from llamacpp_orchestrator.releases import Asset
from llamacpp_orchestrator.spec import Job
from llamacpp_orchestrator.store import write_atomically

HEADER = "# Written by orchestrate; commit it beside its job. `orchestrate lock JOB --upgrade` moves the pins.\n"


class SourcePin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """llama.cpp: the tag, what it points at (a commit, or the package that carries it) and the digest of the converter tree."""

    tag: str
    repo: str
    tree: str
    commit: str = ""
    package: str = ""

    def key(self) -> str:
        """The name of its entry in the store."""
        return self.commit or f"package-{self.tag}"


class EnvironmentPin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The environment: what was asked, and the interpreter and hashed requirement set that it came to."""

    torch: str
    overrides: tuple[str, ...] = ()
    wanted: str = "auto"
    python: str
    requirements: str

    def pin(self) -> environment.Pin:
        """The part that decides what is installed."""
        return environment.Pin(python=self.python, requirements=self.requirements)


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Files that a job needs of one model or adapter."""

    source: str
    kind: str
    revision: str = "main"
    weights: bool = True
    remote_code: bool = False


class FilesPin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The files of one model or adapter, at one commit or with the content of one folder."""

    wanted: Wanted
    commit: str = ""
    files: tuple[HubFile, ...]


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that decides the bytes of a job's outputs."""

    version: int = 1
    llama_cpp: SourcePin
    environment: EnvironmentPin | None = None
    assets: tuple[Asset, ...] = ()
    models: tuple[FilesPin, ...]

    def files(self, wanted: Wanted) -> FilesPin:
        """The pin of one model or adapter; KeyError when the lock does not know it."""
        found = next((pin for pin in self.models if pin.wanted == wanted), None)
        if found is None:
            raise KeyError(wanted.source)
        return found


def path_for(job_file: Path) -> Path:
    """Where the lock of a job lies: beside it, `job.lock.yaml`."""
    return job_file.with_name(f"{job_file.stem}.lock.yaml")


def base_wanted(model: spec.Model) -> Wanted:
    """What a model's own conversion needs, or what its adapters need of it when it is not converted itself."""
    weights = model.outtype != ("none",)
    return _wanted(model.source, "model", model.revision, weights, model.trust_remote_code)


def lora_wanted(lora: spec.Lora) -> Wanted:
    """What the conversion of an adapter needs of the adapter."""
    return _wanted(lora.source, "adapter", lora.revision, True, False)


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
    found: dict[Wanted, None] = {}
    for model in job.models:
        found[base_wanted(model)] = None
        found.update(dict.fromkeys(map(lora_wanted, model.loras)))
    return tuple(found)


def uses_binaries(job: Job) -> bool:
    """Whether anything in the job runs a released program."""
    return any(model.quantize for model in job.models)


def fitting(job: Job, lock: Lock | None) -> dict[str, Any]:
    """The parts of a lock that still say what the job asks: source, environment, assets, and the pins of files."""
    if lock is None:
        return {"source": None, "environment": None, "assets": None, "models": {}}
    same_source = (lock.llama_cpp.tag, lock.llama_cpp.repo) == (job.llama_cpp.tag, job.llama_cpp.repo)
    found, asked = lock.environment, job.environment
    same_environment = found and same_source and (found.wanted, found.torch, found.overrides) == _asked(asked)
    return {
        "source": lock.llama_cpp if same_source else None,
        "environment": found if same_environment and asked.path is None else None,
        "assets": lock.assets if same_source and lock.assets else None,
        "models": {pin.wanted: pin for pin in lock.models if pin.wanted in all_wanted(job)},
    }


def _asked(asked: spec.Environment) -> tuple[str, str, tuple[str, ...]]:
    return asked.python, asked.torch, asked.overrides


def stale_reasons(job: Job, lock: Lock | None) -> list[str]:
    """Why a lock does not say what the job asks; nothing when it fits."""
    if lock is None:
        return ["there is no lock"]
    found = fitting(job, lock)
    reasons = []
    if found["source"] is None:
        reasons.append(
            f"llama_cpp: locked {lock.llama_cpp.tag} of {lock.llama_cpp.repo}, asked {job.llama_cpp.tag} of {job.llama_cpp.repo}"
        )
    elif found["environment"] is None and job.environment.path is None:
        reasons.append("environment: python, torch or overrides have changed")
    if uses_binaries(job) and job.binaries.backend != "none" and found["assets"] is None:
        reasons.append("binaries: the release's assets are not locked")
    reasons += [f"{wanted.source}: not locked as it is asked for" for wanted in all_wanted(job) if wanted not in found["models"]]
    gone = [pin.wanted.source for pin in lock.models if pin.wanted not in found["models"]]
    return reasons + [f"{source}: locked, but no longer in the job" for source in gone]


def read(path: Path) -> Lock | None:
    """The lock at a path, None when there is none; LockError for one that cannot be read back."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"{path.name} cannot be read: {error}", "restore it, or remove it and lock again") from error
    import yaml

    try:
        lock = msgspec.convert(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), Lock)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError, ValueError) as error:
        raise LockError(
            f"{path.name} is damaged: {error}", "restore it, or remove it and run `orchestrate lock` again"
        ) from error
    if lock.version != 1:
        raise LockError(f"{path.name} has format {lock.version}; this version reads 1", "update llamacpp-orchestrator")
    return lock


def text_of(lock: Lock) -> str:
    """The lock as text; equal locks give equal bytes."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def block(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    def mapping(dumper: Any, value: dict[str, Any]) -> Any:
        # One line for each file and asset: long lists stay readable, and a diff shows what moved.
        one_line = "sha256" in value or "oid" in value or "kind" in value
        return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=one_line)

    Dumper.add_representer(str, block)
    Dumper.add_representer(dict, mapping)
    plain = {"version": 1, **msgspec.to_builtins(lock)}
    return HEADER + str(yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=4096))


def write(path: Path, lock: Lock) -> None:
    """Write the lock, unless those are its bytes already."""
    text = text_of(lock)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def digest(lock: Lock) -> str:
    """The sha256 of the lock's text, as receipts name it."""
    return hashlib.sha256(text_of(lock).encode()).hexdigest()
