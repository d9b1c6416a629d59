"""What a job means exactly: commit, tree, assets, packages and files, as `job.lock.yaml` holds them."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from typing import Any

import msgspec
from msgspec import Meta

from llamacpp_orchestrator import locktext
from llamacpp_orchestrator import reference
from llamacpp_orchestrator import spec
from llamacpp_orchestrator import tag
from llamacpp_orchestrator.choice import Asset
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.interpreter import Pin
from llamacpp_orchestrator.modelfiles import HubFile
from llamacpp_orchestrator.modelfiles import check_names
from llamacpp_orchestrator.spec import Job
from llamacpp_orchestrator.store import write_atomically
from llamacpp_orchestrator.tag import Tag
from llamacpp_orchestrator.yamltext import nearest

HEADER = "# Written by orchestrate; commit it beside its job. `orchestrate lock JOB --upgrade` moves the pins.\n"
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Commit = Annotated[str, Meta(pattern="^([0-9a-f]{40})?$")]
Time = Annotated[str, Meta(pattern="^(\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\dZ)?$")]  # ISO 8601, UTC
Package = Annotated[str, Meta(pattern="^([\\w-]+==[\\d.]+ sha256:[0-9a-f]{64})?$")]
WITHOUT_RELEASE = ("none", "source")  # backends that need nothing of a release
# What `--upgrade` may name, and which parts of the lock then move.
UPGRADES = {
    "": (),
    "all": ("source", "environment", "reference", "spare", "assets", "models"),
    "llama_cpp": ("source", "environment", "assets"),
    "environment": ("environment", "reference", "spare"),
    "models": ("models",),
}


class SourcePin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """llama.cpp: the tag, what it points at (a commit, or the package that carries it) and the digest of the converter tree.

    `release` is what the job names where that is a release (vX.Y.Z, or `latest`), whose build `tag` then is.
    `time` is that of the commit, or of the package's upload, "" where nobody tells: the environment is resolved as of then.
    """

    tag: str
    release: str = ""
    repo: str
    tree: Sha256
    commit: Commit = ""
    package: Package = ""
    time: Time = ""

    def named(self) -> str:
        """The tag as the job names it."""
        return self.release or self.tag

    def key(self) -> str:
        """The name of its entry in the store."""
        return self.commit or f"package-{self.tag}"


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


class FilesPin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The files of one model or adapter, at one commit or with the content of one folder; `unread` are weights beside them."""

    wanted: Wanted
    commit: Commit = ""
    files: tuple[HubFile, ...]
    unread: tuple[str, ...] = ()


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that decides the bytes of a job's outputs, and what they are compared with."""

    version: int = 1
    llama_cpp: SourcePin
    environment: EnvironmentPin | None = None
    reference: EnvironmentPin | None = None
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
    weights = model.outtype != ("none",) or bool(model.mmproj)
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


def names(job: Job) -> dict[Wanted, str]:
    """A name for each set of files: the job's own, with the source behind it where two would be called the same."""
    found: dict[Wanted, str] = {}
    for model in job.models:
        for wanted, name in ((base_wanted(model), model.name), *((lora_wanted(lora), lora.name) for lora in model.loras)):
            taken = {other for known, other in found.items() if known != wanted}
            found.setdefault(wanted, f"{name} ({wanted.source})" if name in taken else name)
    return found


def uses_binaries(job: Job) -> bool:
    """Whether anything in the job runs a program of the tag."""
    return any(model.quantize or model.verify in spec.RUNNING for model in job.models)


def uses_reference(job: Job) -> bool:
    """Whether anything in the job is compared with what its source says next."""
    return any(model.verify == "logits" for model in job.models)


def fitting(job: Job, lock: Lock | None, upgrade: str = "") -> dict[str, Any]:
    """The parts of a lock that still say what the job asks, without those that an upgrade is to move.

    `source`, `environment`, `reference`, `assets`, `models` (the pins of files), and `spare`: an environment that was resolved
    for another tree, and still holds where that tree has the same requirements. JobError for an upgrade of nothing known.
    """
    labels = names(job)
    moving = {wanted for wanted, name in labels.items() if upgrade in (name, wanted.source)}
    if upgrade not in UPGRADES and not moving:
        raise JobError(f"--upgrade {upgrade}: no such part of the lock; {nearest(upgrade, [*UPGRADES, *labels.values()][1:])}")
    if lock is None:
        return {"source": None, "environment": None, "reference": None, "spare": None, "assets": None, "models": {}}
    same_source = (lock.llama_cpp.named(), lock.llama_cpp.repo) == (job.llama_cpp.tag, job.llama_cpp.repo)
    found, asked = lock.environment, job.environment
    same_asked = found and asked.path is None and (found.wanted, found.torch, found.overrides) == _asked(asked)
    kept: dict[str, Any] = {
        "source": lock.llama_cpp if same_source else None,
        "environment": found if same_asked and same_source else None,
        "reference": lock.reference if _same_reference(job, lock.reference) else None,
        "spare": found if same_asked else None,
        "assets": lock.assets if same_source and lock.assets else None,
        "models": {pin.wanted: pin for pin in lock.models if pin.wanted in labels and pin.wanted not in moving},
    }
    return kept | {part: {} if part == "models" else None for part in UPGRADES.get(upgrade, ())}


def _asked(asked: spec.Environment) -> tuple[str, str, tuple[str, ...]]:
    return asked.python, asked.torch, asked.overrides


def _same_reference(job: Job, pin: EnvironmentPin | None) -> bool:
    python, torch, overrides = _asked(job.environment)
    return bool(pin and (pin.wanted, pin.torch, pin.overrides) == (python, torch, reference.overrides(overrides)))


def moved(old: Lock, new: Lock) -> list[str]:
    """What differs between two locks, one line for each thing: old → new."""
    before, after = old.llama_cpp, new.llama_cpp
    pairs = [("tag", before.tag, after.tag), ("repo", before.repo, after.repo), ("tree", before.tree, after.tree)]
    pairs += [("commit", before.commit, after.commit), ("package", before.package, after.package)]
    lines = [f"llama_cpp: {what} {one or 'none'} → {two or 'none'}" for what, one, two in pairs if one != two]
    lines += _differences("environment", _versions(old.environment), _versions(new.environment))
    lines += _differences("reference", _versions(old.reference), _versions(new.reference))
    lines += _differences("binaries", *({each.name: each.sha256 or "no digest" for each in lock.assets} for lock in (old, new)))
    had = {pin.wanted: pin for pin in old.models}
    for pin in new.models:
        if (known := had.get(pin.wanted)) and known != pin:
            lines += [f"{pin.wanted.source}: {known.commit} → {pin.commit}"] if known.commit != pin.commit else []
            lines += _differences(
                pin.wanted.source, *({file.path: file.sha256 or file.oid for file in each.files} for each in (known, pin))
            )
    return lines


def _differences(what: str, old: dict[str, str], new: dict[str, str]) -> list[str]:
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{what}: {name} {old.get(name, 'none')} → {new.get(name, 'none')}" for name in changed]


def _versions(pin: EnvironmentPin | None) -> dict[str, str]:
    if pin is None:
        return {}
    found: dict[str, str] = {"Python": pin.python}
    for name, version, rest in re.findall(r"^([\w.-]+)==(\S+)([^\n]*(?:\n[ \t][^\n]*)*)", pin.requirements, re.MULTILINE):
        # A package may stand there twice, for two platforms; its hashes count as much as its version.
        short = hashlib.sha256(rest.encode()).hexdigest()[:8]
        found[name] = (f"{found[name]} and " if name in found else "") + f"{version} (hashes {short})"
    return found


def stale_reasons(job: Job, lock: Lock | None) -> list[str]:
    """Why a lock does not say what the job asks; nothing when it fits."""
    if lock is None:
        return ["there is no lock"]
    found = fitting(job, lock)
    reasons = []
    if found["source"] is None:
        pin = lock.llama_cpp
        reasons.append(f"llama_cpp: locked {pin.named()} of {pin.repo}, asked {job.llama_cpp.tag} of {job.llama_cpp.repo}")
    elif found["environment"] is None and job.environment.path is None:
        reasons.append("environment: python, torch or overrides have changed")
    if uses_reference(job) and found["reference"] is None:
        reasons.append("reference: the environment that `verify: logits` compares with is not locked as it is asked for")
    if uses_binaries(job) and job.binaries.backend not in WITHOUT_RELEASE and found["assets"] is None:
        reasons.append("binaries: the release's assets are not locked")
    reasons += [f"{wanted.source}: not locked as it is asked for" for wanted in all_wanted(job) if wanted not in found["models"]]
    gone = [pin.wanted.source for pin in lock.models if pin.wanted not in found["models"]]
    return reasons + [f"{source}: locked, but no longer in the job" for source in gone]


def read(path: Path) -> Lock | None:
    """The lock at a path, None when there is none; LockError for one that cannot be read back."""
    if path.exists() and not path.is_file():
        raise LockError(f"{path.name} is a folder, a pipe or a device, not a lock", "move it away and run `orchestrate lock`")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"{path.name} cannot be read: {error}", "restore it, or remove it and lock again") from error
    return locktext.load(text, path.name, _built)


def _built(data: Any) -> Lock:
    lock = msgspec.convert(data, Lock)
    for place, complaint in _complaints(lock):
        raise ValueError(f"{complaint} - at `{place}`")
    return lock


def _complaints(lock: Lock) -> Iterator[tuple[str, str]]:
    if lock.version != 1:
        yield "$.version", f"it has format {lock.version}, this version of orchestrate reads 1"
    if Tag(lock.llama_cpp.tag).is_release or not Tag(lock.llama_cpp.release or tag.LATEST).is_release:
        yield "$.llama_cpp.tag", "a lock names the build (bNNNN), and as release vX.Y.Z or latest"
    if bool(lock.llama_cpp.commit) == bool(lock.llama_cpp.package):
        yield "$.llama_cpp", "either a commit or a package is needed"
    for part, pin in (("environment", lock.environment), ("reference", lock.reference)):
        for line in pin.requirements.splitlines() if pin else ():
            if not re.match(r"[\w.-]+(\[[\w,.-]+\])?==[^@]+$|\s+--hash=sha256:[0-9a-f]{64}( \\)?$|\s*(#.*)?$", line):
                yield f"$.{part}.requirements", f"`{line.strip()[:80]}` is neither a pinned package nor a hash"
    for number, model in enumerate(lock.models):
        try:
            check_names((file.path for file in model.files), model.wanted.source)
        except OrchestrateError as error:
            yield f"$.models[{number}].files", error.message
        for index, file in enumerate(model.files):
            if not re.fullmatch("[0-9a-f]{64}", file.sha256) and not re.fullmatch("[0-9a-f]{40}", file.oid):
                yield f"$.models[{number}].files[{index}]", f"{file.path} has neither a sha256 nor a blob id"
        if model.wanted in [other.wanted for other in lock.models[:number]]:
            yield f"$.models[{number}]", f"{model.wanted.source} is locked twice"
    for index, asset in enumerate(lock.assets):
        if not re.fullmatch(r"[\w.+-]+", asset.name) or not re.match(r"(https?|file)://\S+$", asset.url):
            yield f"$.assets[{index}]", f"{asset.name} is no asset of a release"
        if asset.size < 0 or not re.fullmatch("[0-9a-f]{64}", asset.sha256 or "0" * 64):
            yield f"$.assets[{index}]", f"the size or sha256 of {asset.name} cannot be"


@functools.lru_cache(maxsize=4)  # every receipt names its digest
def text_of(lock: Lock) -> str:
    """The lock as text; equal locks give equal bytes."""
    return HEADER + locktext.dump({"version": 1, **msgspec.to_builtins(lock)})


def write(path: Path, lock: Lock) -> None:
    """Write the lock, unless those are its bytes already."""
    text = text_of(lock)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def hashes(lock: Lock) -> frozenset[str]:
    """The sha256 of every file that may be installed into an environment, in hex."""
    return frozenset(each for pin in environments(lock) for each in re.findall(r"sha256:([0-9a-f]{64})", pin.requirements))


def environments(lock: Lock) -> tuple[EnvironmentPin, ...]:
    """The environments that a lock holds."""
    return tuple(filter(None, (lock.environment, lock.reference)))


def digest(lock: Lock) -> str:
    """The sha256 of the lock's text, as receipts name it."""
    return hashlib.sha256(text_of(lock).encode()).hexdigest()
