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
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.environment import requirements
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.environment.pin import Pin
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.records import PartialLock
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.lock.tree import ROUTES
from llamacpp_orchestrator.merge import kinds
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import remote_code
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.source.pin import SourcePin
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.tag import Tag

ADAPTER_CONFIG = "adapter_config.json"

Look = Callable[[Path, tuple[hub.HubFile, ...]], None]

this_host = functools.lru_cache(maxsize=1)(host.detect)


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """A job of which some parts are pinned already.

    With `first_use` an archive that this machine needs and whose digest was never published is downloaded and pinned.
    """

    context: Context
    partial: PartialLock
    first_use: bool = False


def steps(resolution: Resolution, binaries: bool = False) -> list[Step]:
    """The steps that complete a lock; each learns one part of it."""
    context, partial = resolution.context, resolution.partial
    job = context.job
    steps: list[Step] = []
    stale_environment = partial.environment is None and job.environment.path is None
    if partial.source is None or stale_environment:
        steps.append(Step(kind="source"))
    if stale_environment:
        steps.append(Step(kind="environment", needs=("source",)))
    names = records.names(job)
    fetched = [wanted for wanted in records.all_wanted(job) if wanted not in partial.models]
    listed = tuple(f"fetch {names[wanted]}" for wanted in fetched if wanted.kind == "merge")
    known = records.uses_reference(job) or any(pin.by_peft for pin in partial.models.values())
    if partial.reference is None and (known or listed):
        steps.append(Step(kind="reference", needs=(*(["environment"] if stale_environment else []), *(() if known else listed))))
    release = partial.source is None and Tag(job.llama_cpp.tag).is_release
    used = (binaries or records.uses_binaries(job)) and job.binaries.backend not in records.WITHOUT_RELEASE
    if used and (partial.assets is None or (resolution.first_use and _lacking(resolution))):
        steps.append(Step(kind="binaries", needs=("source",) if release else ()))
    return steps + [Step(kind="fetch", key=names[wanted]) for wanted in fetched]


def complete(resolution: Resolution, learned: Outcomes) -> Lock:
    """The finished lock, once all steps have ended well."""
    partial, job = resolution.partial, resolution.context.job
    names = records.names(job)

    def part(step: str, default: Any) -> Any:
        return learned[step].value if step in learned else default

    return Lock(
        llama_cpp=part("source", partial.source),
        environment=part("environment", partial.environment),
        reference=part("reference", partial.reference),
        assets=part("binaries", partial.assets) or (),
        models=tuple(part(f"fetch {names[wanted]}", partial.models.get(wanted)) for wanted in records.all_wanted(job)),
    )


def _source(resolution: Resolution, key: str, learned: Outcomes, tell: Tell) -> Outcome:
    context = resolution.context
    pin = resolution.partial.source or _resolved(context, tell)
    status = "current" if context.store.has("source", pin.key()) else "done"
    lock_tree.get_tree(context, pin, tell)
    return Outcome(status, lock_tree.known(context.store, pin))


def _resolved(context: Context, tell: Tell) -> SourcePin:
    llama_cpp = context.job.llama_cpp
    context.online(f"what the tag {llama_cpp.tag} points at")

    def resolve(route: str) -> SourcePin:
        tag, release = llama_cpp.tag, ""
        if Tag(llama_cpp.tag).is_release:
            tag, release = nightly.build_of(llama_cpp.tag, llama_cpp.repo, route, context.settings, tell), llama_cpp.tag
            tell(f"note: {release} is {tag}")
        resolved = ROUTES[route].resolve(llama_cpp.repo, tag, context.settings, tell)
        exact = {"commit": resolved} if route == "git" else {"package": resolved}
        return SourcePin(tag=tag, release=release, repo=llama_cpp.repo, tree="", **exact)

    return first_answer(context.settings.llama_cpp_from, resolve, tell)


def _environment(resolution: Resolution, key: str, learned: Outcomes, tell: Tell) -> Outcome:
    context, spare, source = resolution.context, resolution.partial.spare, learned["source"].value
    environment = context.job.environment
    lines = requirements.upstream_requirements(context.store.entry("source", source.key()), source.tag)
    upstream = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if spare and spare.upstream == upstream:
        return Outcome("current", spare)
    context.online("a resolution of the environment")
    with tempfile.TemporaryDirectory() as scratch:
        how = (environment.python, environment.torch, environment.overrides)
        pin = venv.resolve(lines, *how, context.settings, Path(scratch), tell, source.time)
    return Outcome("done", _environment_pin(environment, upstream, environment.overrides, pin))


def _reference(resolution: Resolution, key: str, learned: Outcomes, tell: Tell) -> Outcome:
    context, environment = resolution.context, resolution.context.job.environment
    pins = [
        *resolution.partial.models.values(),
        *(outcome.value for step, outcome in learned.items() if step.startswith("fetch ")),
    ]
    if not records.uses_reference(context.job) and not any(pin.by_peft for pin in pins):
        return Outcome("current")
    converting = learned["environment"].value if "environment" in learned else resolution.partial.environment
    beside, overrides = converting.pin() if converting else None, reference.overrides(environment.overrides)
    context.online(f"a resolution of {reference.TITLE}")
    with tempfile.TemporaryDirectory() as scratch:
        how = (environment.python, environment.torch, overrides, beside)
        pin = venv.resolve_reference(*how, context.settings, Path(scratch), tell)
    return Outcome("done", _environment_pin(environment, reference.upstream(), overrides, pin))


def _environment_pin(environment: spec.Environment, upstream: str, overrides: tuple[str, ...], pin: Pin) -> EnvironmentPin:
    return EnvironmentPin(
        upstream=upstream,
        torch=environment.torch,
        overrides=overrides,
        wanted=environment.python,
        python=pin.python,
        requirements=pin.requirements,
    )


def choose(context: Context, tag: str, assets: tuple[binaries_release.Asset, ...]) -> binaries_release.Choice:
    """The archive of a build's release for this machine; OrchestrateError when none fits, with what would."""
    binaries = context.job.binaries
    if binaries.backend == "none":
        message = f"{context.file.name}: `quantize` and `verify: load` need the release binaries, and binaries.backend is none"
        raise JobError(message, "set `backend: cpu`")
    usable = tuple(asset for asset in assets if context.archives is None or asset.name in context.archives)
    return binaries_release.choose(tag, usable, this_host(), binaries.backend, binaries.cuda)


def _unpinned(context: Context, tag: str, assets: tuple[binaries_release.Asset, ...]) -> list[binaries_release.Asset]:
    with contextlib.suppress(OrchestrateError):
        choice = choose(context, tag, assets)
        return [asset for asset in (choice.archive, choice.runtime) if asset and not asset.sha256]
    return []


def _fits(context: Context, tag: str, assets: tuple[binaries_release.Asset, ...]) -> bool:
    with contextlib.suppress(OrchestrateError):
        return bool(choose(context, tag, assets))
    return False


def _lacking(resolution: Resolution) -> bool:
    """Tell whether the locked list of a release has no archive for this machine, or no digest of it."""
    context, partial = resolution.context, resolution.partial
    tag, assets = partial.source.tag if partial.source else context.job.llama_cpp.tag, partial.assets or ()
    return bool(_unpinned(context, tag, assets)) or not _fits(context, tag, assets)


def unpinned_reasons(pinned: PinnedJob) -> list[str]:
    """Reasons why a lock cannot vouch for this machine's programs: no digest of them was published or locked."""
    context, assets = pinned.context, pinned.lock.assets
    lacking = _unpinned(context, pinned.tag, assets) if assets and records.uses_binaries(context.job) else []
    return [f"{asset.name}: no digest was published, and none is locked yet (`orchestrate run` does it)" for asset in lacking]


def _assets(resolution: Resolution, key: str, learned: Outcomes, tell: Tell) -> Outcome:
    context, partial = resolution.context, resolution.partial
    source = learned["source"].value if "source" in learned else partial.source
    # Where a release stands in the job, its build is known by now.
    tag, repo, assets = source.tag if source else context.job.llama_cpp.tag, context.job.llama_cpp.repo, partial.assets
    if assets is None:
        context.online(f"the list of the release {tag}")
        assets = binaries_release.fetch_assets(tag, repo, context.settings, tell)
    elif not _fits(context, tag, assets):
        # A release is filled for hours: what was locked meanwhile may have lacked this machine's archive.
        names = {asset.name for asset in assets}
        try:
            listed = binaries_release.fetch_assets(tag, repo, context.settings, tell)
            assets += tuple(asset for asset in listed if asset.name not in names)
        except NetworkError as error:
            tell(f"note: the locked list of release {tag} is not looked at again: {error.message.splitlines()[0]}")
    for asset in _unpinned(context, tag, assets) if resolution.first_use else ():
        pinned = install.pin(asset, context.store, context.settings, tell)
        tell(f"note: {asset.name} has no published digest; locked as downloaded now: sha256 {pinned.sha256}")
        assets = tuple(pinned if other == asset else other for other in assets)
    return Outcome("done", assets)


def _files(resolution: Resolution, key: str, learned: Outcomes, tell: Tell) -> Outcome:
    wanted = next(wanted for wanted, name in records.names(resolution.context.job).items() if name == key)
    return Outcome("done", look(resolution.context, wanted, tell))


ACTIONS = {"source": _source, "environment": _environment, "reference": _reference, "binaries": _assets, "fetch": _files}


def look(context: Context, wanted: Wanted, tell: Tell = lambda text: None) -> FilesPin:
    """The files that a source holds now; those in a folder are examined too, before anything is downloaded."""
    if wanted.is_folder:
        folder, pin = context.folder(wanted.source), local_folders.listed(context, wanted)
        examine(folder, wanted, pin.files)
        return msgspec.structs.replace(pin, by_peft=_by_peft(wanted, folder))
    namesake, taken = context.folder(wanted.source).is_dir(), f"{wanted.source} is taken for a repository of the hub"
    how: dict[str, Any] = {"kind": wanted.kind, "weights": wanted.weights, "remote_code": wanted.remote_code}
    try:
        context.online(f"the list of files of {wanted.source}@{wanted.revision}")
        if namesake:
            tell(f"note: {taken}; for the folder of that name write ./{wanted.source}")
        snapshot = hub.list_hub(wanted.source, wanted.revision, context.settings, tell, **how)
    except NetworkError as error:
        if not namesake:
            raise
        message = f"{taken}, and there is a folder of that name here\n{error.message}"
        raise JobError(message, f"for the folder write ./{wanted.source}") from error
    by_peft = False
    if wanted.kind == "merge":  # its config is small, and tells whether another environment must be pinned
        config = tuple(file for file in snapshot.files if file.path == ADAPTER_CONFIG)
        by_peft = _by_peft(wanted, hub.fetch(msgspec.structs.replace(snapshot, files=config), context.settings, tell))
    return FilesPin(wanted=wanted, commit=snapshot.commit, files=snapshot.files, unread=snapshot.unread, by_peft=by_peft)


def _by_peft(wanted: Wanted, folder: Path) -> bool:
    return wanted.kind == "merge" and kinds.needs_peft(safetensors.read_json(folder / ADAPTER_CONFIG))


def origin(context: Context, pin: FilesPin, tell: Tell, look: Look = lambda folder, files: None) -> Path:
    """The folder that holds the files of a pin, each checked; those of the hub are fetched.

    `look` sees the small files before the weights are fetched, and then all of them.
    """
    wanted = pin.wanted
    if wanted.is_folder:
        look(context.folder(wanted.source), pin.files)
        return context.folder(wanted.source)
    folder = Path()
    for part in (pin.small, pin):
        for file in missing(part, context.store.sha256):
            context.online(f"an undamaged {file.path} of {wanted.source}")
        folder = hub.fetch(part.snapshot, context.settings, tell, context.store.sha256)
        examine(folder, wanted, part.files)
        look(folder, part.files)
    return folder


def missing(pin: FilesPin, sha256: Callable[[Path], str] | None = None) -> tuple[hub.HubFile, ...]:
    """The files of a pin that are not on this machine yet, with `sha256` also those that are damaged; () for a folder."""
    return () if pin.wanted.is_folder else hub.missing(pin.snapshot, sha256)


def tell_moved(context: Context, pin: FilesPin, tell: Tell) -> None:
    """Say so where files must be fetched of a revision that has moved since it was locked."""
    asking = not context.settings.offline and missing(pin)
    if asking and (moved := hub.moved(pin.snapshot, pin.wanted.revision, context.settings)):
        tell(f"note: {moved}; the locked commit is used; to move on: {context.command('lock', '--upgrade', 'models')}")


def examine(folder: Path, wanted: Wanted, files: tuple[hub.HubFile, ...]) -> None:
    """Refuse files that upstream would convert wrongly, run, or choke on; raises OrchestrateError with the way out."""
    for file in files:
        if file.path.endswith(".safetensors"):
            safetensors.check_safetensors(folder / file.path)
    if not wanted.is_adapter and not wanted.remote_code:
        remote_code.check_code(folder, (file.path for file in files), wanted.source)
