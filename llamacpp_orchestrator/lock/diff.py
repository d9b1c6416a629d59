"""Differences between a job and its lock, and between two locks."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.lock.records import WITHOUT_RELEASE
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.records import PartialLock
from llamacpp_orchestrator.lock.records import all_wanted
from llamacpp_orchestrator.lock.records import names
from llamacpp_orchestrator.lock.records import uses_binaries
from llamacpp_orchestrator.lock.records import uses_reference
from llamacpp_orchestrator.util.yaml_reader import nearest

# What `--upgrade` may name, and which parts of the lock then move.
UPGRADES = {
    "": (),
    "all": ("source", "environment", "reference", "spare", "assets", "models"),
    "llama_cpp": ("source", "environment", "assets"),
    "environment": ("environment", "reference", "spare"),
    "models": ("models",),
}


def fitting(job: Job, lock: Lock | None, upgrade: str = "") -> PartialLock:
    """The parts of a lock that still say what the job asks, without those that an upgrade is to move.

    JobError for an upgrade of nothing known.
    """
    labels = names(job)
    moving = {wanted for wanted, name in labels.items() if upgrade in (name, wanted.source)}
    if upgrade not in UPGRADES and not moving:
        raise JobError(f"--upgrade {upgrade}: no such part of the lock; {nearest(upgrade, [*UPGRADES, *labels.values()][1:])}")
    if lock is None:
        return PartialLock()
    same_source = (lock.llama_cpp.named(), lock.llama_cpp.repo) == (job.llama_cpp.tag, job.llama_cpp.repo)
    pin, environment = lock.environment, job.environment
    same_request = pin and environment.path is None and (pin.wanted, pin.torch, pin.overrides) == _request(environment)
    kept: dict[str, Any] = {
        "source": lock.llama_cpp if same_source else None,
        "environment": pin if same_request and same_source else None,
        "reference": lock.reference if _same_reference(job, lock.reference) else None,
        "spare": pin if same_request else None,
        "assets": lock.assets if same_source and lock.assets else None,
        "models": {pin.wanted: pin for pin in lock.models if pin.wanted in labels and pin.wanted not in moving},
    }
    return PartialLock(**{part: value for part, value in kept.items() if part not in UPGRADES.get(upgrade, ())})


def _request(environment: spec.Environment) -> tuple[str, str, tuple[str, ...]]:
    return environment.python, environment.torch, environment.overrides


def _same_reference(job: Job, pin: EnvironmentPin | None) -> bool:
    python, torch, overrides = _request(job.environment)
    return bool(pin and (pin.wanted, pin.torch, pin.overrides) == (python, torch, reference.overrides(overrides)))


def moved(old: Lock, new: Lock) -> list[str]:
    """Differences between two locks, one line for each thing: old → new."""
    before, after = old.llama_cpp, new.llama_cpp
    pairs = [("tag", before.tag, after.tag), ("repo", before.repo, after.repo), ("tree", before.tree, after.tree)]
    pairs += [("commit", before.commit, after.commit), ("package", before.package, after.package)]
    lines = [f"llama_cpp: {what} {one or 'none'} → {two or 'none'}" for what, one, two in pairs if one != two]
    lines += _differences("environment", _versions(old.environment), _versions(new.environment))
    lines += _differences("reference", _versions(old.reference), _versions(new.reference))
    lines += _differences("binaries", *({item.name: item.sha256 or "no digest" for item in lock.assets} for lock in (old, new)))
    had = {pin.wanted: pin for pin in old.models}
    for pin in new.models:
        if (former := had.get(pin.wanted)) and former != pin:
            lines += [f"{pin.wanted.source}: {former.commit} → {pin.commit}"] if former.commit != pin.commit else []
            lines += _differences(
                pin.wanted.source, *({file.path: file.sha256 or file.oid for file in side.files} for side in (former, pin))
            )
    return lines


def _differences(what: str, old: dict[str, str], new: dict[str, str]) -> list[str]:
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{what}: {name} {old.get(name, 'none')} → {new.get(name, 'none')}" for name in changed]


def _versions(pin: EnvironmentPin | None) -> dict[str, str]:
    if pin is None:
        return {}
    versions: dict[str, str] = {"Python": pin.python}
    for name, version, rest in re.findall(r"^([\w.-]+)==(\S+)([^\n]*(?:\n[ \t][^\n]*)*)", pin.requirements, re.MULTILINE):
        # A package may stand there twice, for two platforms; its hashes count as much as its version.
        short = hashlib.sha256(rest.encode()).hexdigest()[:8]
        versions[name] = (f"{versions[name]} and " if name in versions else "") + f"{version} (hashes {short})"
    return versions


def stale_reasons(job: Job, lock: Lock | None) -> list[str]:
    """Reasons why a lock is not that of a job; [] when it fits."""
    if lock is None:
        return ["there is no lock"]
    fits = fitting(job, lock)
    reasons = []
    if fits.source is None:
        pin = lock.llama_cpp
        reasons.append(f"llama_cpp: locked {pin.named()} of {pin.repo}, asked {job.llama_cpp.tag} of {job.llama_cpp.repo}")
    elif fits.environment is None and job.environment.path is None:
        reasons.append("environment: python, torch or overrides have changed")
    if uses_reference(job) and fits.reference is None:
        reasons.append("reference: the environment that `verify: logits` compares with is not locked as it is asked for")
    elif any(pin.by_peft for pin in fits.models.values()) and fits.reference is None:
        reasons.append("reference: the environment of PEFT, which has to merge an adapter, is not locked as it is asked for")
    if uses_binaries(job) and job.binaries.backend not in WITHOUT_RELEASE and fits.assets is None:
        reasons.append("binaries: the release's assets are not locked")
    reasons += [f"{wanted.source}: not locked as it is asked for" for wanted in all_wanted(job) if wanted not in fits.models]
    gone = [pin.wanted.source for pin in lock.models if pin.wanted not in fits.models]
    return reasons + [f"{source}: locked, but no longer in the job" for source in gone]
