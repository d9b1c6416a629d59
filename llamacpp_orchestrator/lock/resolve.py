"""From a job to its lock: asks the network only about what is not pinned yet, and downloads no weights."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.binaries import nightly
from llamacpp_orchestrator.binaries import release as binaries_release
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.environment import requirements
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.lock.tree import ROUTES
from llamacpp_orchestrator.lock.tree import TIME_MARK
from llamacpp_orchestrator.lock.tree import TREE_MARK
from llamacpp_orchestrator.lock.tree import get_tree
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import remote_code
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.source.pin import SourcePin
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.scheduler import Action
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.util.tag import Tag

Look = Callable[[Path, tuple[hub.HubFile, ...]], None]

this_host = functools.lru_cache(maxsize=1)(host.detect)


class Found(msgspec.Struct, kw_only=True):
    """What the steps of a resolution have found so far; complete when all of them have ended well."""

    source: SourcePin | None
    environment: EnvironmentPin | None
    reference: EnvironmentPin | None
    spare: EnvironmentPin | None
    assets: tuple[binaries_release.Asset, ...] | None
    models: dict[Wanted, FilesPin]

    def lock(self, job: Job) -> Lock:
        """The finished lock."""
        assert self.source is not None
        models = tuple(self.models[wanted] for wanted in records.all_wanted(job))
        return Lock(
            llama_cpp=self.source,
            environment=self.environment,
            reference=self.reference,
            assets=self.assets or (),
            models=models,
        )


def steps(work: Work, found: Found, binaries: bool = False, first_use: bool = False) -> list[Step]:
    """What must be asked to complete `found`; each step writes its own field.

    With `first_use` an archive that this machine needs and whose digest was never published is downloaded and pinned.
    """
    job = work.job
    made: list[Step] = []
    stale_environment = found.environment is None and job.environment.path is None
    if found.source is None or stale_environment:
        made.append(Step(name="source", action=_source(work, found)))
    if stale_environment:
        made.append(Step(name="environment", action=_environment(work, found), needs=("source",)))
    if records.uses_reference(job) and found.reference is None:
        needs = ("environment",) if stale_environment else ()
        made.append(Step(name="reference", action=_reference(work, found), needs=needs))
    release = found.source is None and Tag(job.llama_cpp.tag).is_release
    if (binaries or records.uses_binaries(job)) and job.binaries.backend not in records.WITHOUT_RELEASE:
        pinning = first_use and not work.settings.offline
        if found.assets is None or (pinning and _lacking(work, found)):
            action = _assets(work, found, pinning)
            made.append(Step(name="binaries", action=action, needs=("source",) if release else ()))
    names = records.names(job)
    for wanted in records.all_wanted(job):
        if wanted not in found.models:
            made.append(Step(name=f"fetch {names[wanted]}", action=_files(work, found, wanted)))
    return made


def _source(work: Work, found: Found) -> Action:
    def action(tell: Tell) -> str:
        pin = found.source or _resolved(work, tell)
        before = work.store.has("source", pin.key())
        path = get_tree(work, pin, tell)
        tree = (path / TREE_MARK).read_text(encoding="utf-8")
        found.source = msgspec.structs.replace(pin, tree=tree, time=pin.time or text_of(path / TIME_MARK))
        return "current" if before else "done"

    return action


def _resolved(work: Work, tell: Tell) -> SourcePin:
    asked = work.job.llama_cpp
    work.online(f"what the tag {asked.tag} points at")

    def ask(route: str) -> SourcePin:
        tag, release = asked.tag, ""
        if Tag(asked.tag).is_release:
            tag, release = nightly.build_of(asked.tag, asked.repo, route, work.settings, tell), asked.tag
            tell(f"note: {release} is {tag}")
        resolved = ROUTES[route].resolve(asked.repo, tag, work.settings, tell)
        exact = {"commit": resolved} if route == "git" else {"package": resolved}
        return SourcePin(tag=tag, release=release, repo=asked.repo, tree="", **exact)

    return first_answer(work.settings.llama_cpp_from, ask, tell)


def _environment(work: Work, found: Found) -> Action:
    def action(tell: Tell) -> str:
        assert found.source is not None
        asked = work.job.environment
        tree = work.store.entry("source", found.source.key())
        lines = requirements.upstream_requirements(tree, found.source.tag)
        upstream = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        if found.spare and found.spare.upstream == upstream:
            found.environment = found.spare
            return "current"
        work.online("a resolution of the environment")
        with tempfile.TemporaryDirectory() as scratch:
            how = (asked.python, asked.torch, asked.overrides)
            pin = venv.resolve(lines, *how, work.settings, Path(scratch), tell, found.source.time)
        found.environment = EnvironmentPin(
            upstream=upstream,
            torch=asked.torch,
            overrides=asked.overrides,
            wanted=asked.python,
            python=pin.python,
            requirements=pin.requirements,
        )
        return "done"

    return action


def _reference(work: Work, found: Found) -> Action:
    def action(tell: Tell) -> str:
        asked, beside = work.job.environment, found.environment.pin() if found.environment else None
        overrides = reference.overrides(asked.overrides)
        work.online(f"a resolution of {reference.TITLE}")
        with tempfile.TemporaryDirectory() as scratch:
            pin = venv.resolve_reference(asked.python, asked.torch, overrides, beside, work.settings, Path(scratch), tell)
        found.reference = EnvironmentPin(
            upstream=reference.upstream(),
            torch=asked.torch,
            overrides=overrides,
            wanted=asked.python,
            python=pin.python,
            requirements=pin.requirements,
        )
        return "done"

    return action


def choose(work: Work, tag: str, assets: tuple[binaries_release.Asset, ...]) -> binaries_release.Choice:
    """The archive of a build's release for this machine; OrchestrateError when none fits, with what would."""
    asked = work.job.binaries
    if asked.backend == "none":
        message = f"{work.file.name}: `quantize` and `verify: load` need the release binaries, and binaries.backend is none"
        raise JobError(message, "set `backend: cpu`")
    usable = tuple(asset for asset in assets if work.archives is None or asset.name in work.archives)
    return binaries_release.choose(tag, usable, this_host(), asked.backend, asked.cuda)


def _unpinned(work: Work, tag: str, assets: tuple[binaries_release.Asset, ...]) -> list[binaries_release.Asset]:
    with contextlib.suppress(OrchestrateError):
        choice = choose(work, tag, assets)
        return [asset for asset in (choice.archive, choice.runtime) if asset and not asset.sha256]
    return []


def _fits(work: Work, tag: str, assets: tuple[binaries_release.Asset, ...]) -> bool:
    with contextlib.suppress(OrchestrateError):
        return bool(choose(work, tag, assets))
    return False


def _lacking(work: Work, found: Found) -> bool:
    """Whether the locked list of a release has no archive for this machine, or no digest of it."""
    tag, assets = _tag(work, found), found.assets or ()
    return bool(_unpinned(work, tag, assets)) or not _fits(work, tag, assets)


def _tag(work: Work, found: Found) -> str:
    """The build, where a release stands in the job."""
    return found.source.tag if found.source else work.job.llama_cpp.tag


def unpinned_reasons(work: Work, lock: Lock | None) -> list[str]:
    """Why a lock cannot vouch for the programs that this machine would use: no digest of them was published or locked."""
    lacking = _unpinned(work, lock.llama_cpp.tag, lock.assets) if lock and lock.assets and records.uses_binaries(work.job) else []
    return [f"{asset.name}: no digest was published, and none is locked yet (`orchestrate run` does it)" for asset in lacking]


def _assets(work: Work, found: Found, first_use: bool) -> Action:
    def action(tell: Tell) -> str:
        tag, repo = _tag(work, found), work.job.llama_cpp.repo
        if found.assets is None:
            work.online(f"the list of the release {tag}")
            found.assets = binaries_release.fetch_assets(tag, repo, work.settings, tell)
        elif not _fits(work, tag, found.assets):
            # A release is filled for hours: what was locked meanwhile may have lacked this machine's archive.
            known = {asset.name for asset in found.assets}
            try:
                listed = binaries_release.fetch_assets(tag, repo, work.settings, tell)
                found.assets += tuple(asset for asset in listed if asset.name not in known)
            except NetworkError as error:
                tell(f"note: the locked list of release {tag} is not looked at again: {error.message.splitlines()[0]}")
        for asset in _unpinned(work, tag, found.assets) if first_use else ():
            pinned = install.pin(asset, work.store, work.settings, tell)
            tell(f"note: {asset.name} has no published digest; locked as downloaded now: sha256 {pinned.sha256}")
            found.assets = tuple(pinned if each == asset else each for each in found.assets)
        return "done"

    return action


def _files(work: Work, found: Found, wanted: Wanted) -> Action:
    def action(tell: Tell) -> str:
        found.models[wanted] = look(work, wanted, tell)
        return "done"

    return action


def look(work: Work, wanted: Wanted, tell: Tell = lambda text: None) -> FilesPin:
    """The files that a source holds now; those in a folder are examined too, before anything is downloaded."""
    if spec.is_folder(wanted.source):
        found = local_folders.listed(work, wanted)
        examine(work.folder(wanted.source), wanted, found.files)
        return found
    work.online(f"the list of files of {wanted.source}@{wanted.revision}")
    if work.folder(wanted.source).is_dir():
        tell(f"note: {wanted.source} is taken for a repository of the hub; for the folder of that name write ./{wanted.source}")
    how: dict[str, Any] = {"kind": wanted.kind, "weights": wanted.weights, "remote_code": wanted.remote_code}
    snapshot = hub.list_hub(wanted.source, wanted.revision, work.settings, tell, **how)
    return FilesPin(wanted=wanted, commit=snapshot.commit, files=snapshot.files, unread=snapshot.unread)


def origin(work: Work, pin: FilesPin, tell: Tell, look: Look = lambda folder, files: None) -> Path:
    """The folder that holds the files of a pin, each checked; those of the hub are fetched.

    `look` sees the small files before the weights are fetched, and then all of them.
    """
    wanted = pin.wanted
    if spec.is_folder(wanted.source):
        look(work.folder(wanted.source), pin.files)
        return work.folder(wanted.source)
    folder, locked = Path(), hub.Snapshot(source=wanted.source, commit=pin.commit, files=pin.files)
    if hub.missing(locked) and not work.settings.offline and (moved := hub.moved(locked, wanted.revision, work.settings)):
        tell(f"note: {moved}; the locked commit is used; to move on: {work.command('lock', '--upgrade', 'models')}")
    light = tuple(file for file in pin.files if not file.path.endswith(".safetensors"))
    for files in (light, pin.files):
        snapshot = msgspec.structs.replace(locked, files=files)
        for file in hub.missing(snapshot, work.store.sha256):
            work.online(f"an undamaged {file.path} of {wanted.source}")
        folder = hub.fetch(snapshot, work.settings, tell, work.store.sha256)
        examine(folder, wanted, files)
        look(folder, files)
    return folder


def examine(folder: Path, wanted: Wanted, files: tuple[hub.HubFile, ...]) -> None:
    """Refuse files that upstream would convert wrongly, run, or choke on; raises OrchestrateError with the way out."""
    for file in files:
        if file.path.endswith(".safetensors"):
            safetensors.check_safetensors(folder / file.path)
    if wanted.kind == "model" and not wanted.remote_code:
        remote_code.check_code(folder, (file.path for file in files), wanted.source)
