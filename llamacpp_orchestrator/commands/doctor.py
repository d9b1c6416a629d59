"""A look at this machine: what a job would find here, and what to set where something is missing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.doctor import disks
from llamacpp_orchestrator.doctor import packages
from llamacpp_orchestrator.doctor import servers
from llamacpp_orchestrator.doctor import surroundings
from llamacpp_orchestrator.doctor.disks import Place
from llamacpp_orchestrator.doctor.grouping import grouped
from llamacpp_orchestrator.doctor.records import Line
from llamacpp_orchestrator.doctor.records import Probe
from llamacpp_orchestrator.doctor.records import answered
from llamacpp_orchestrator.doctor.records import problem
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import clean_env
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.background import load
from llamacpp_orchestrator.util.units import size

THREADS, MOST_CLOCKS = 12, 4
SMALL = 50_000_000  # what resolving takes
# What the questions import when they are asked; threads that do so at one time may lock each other out (_DeadlockError).
LIBRARIES = (
    "requests", "urllib3", "pypi_simple", "huggingface_hub", "huggingface_hub.hf_api", "huggingface_hub.utils.tqdm", "filelock",
    "psutil", "uv", "urllib.request", "mmap", "subprocess", "encodings.idna", "netrc", "git",
)  # fmt: skip
ELSEWHERE = {
    "cache": "set ORCHESTRATE_CACHE_DIR to a folder of yours on another disk",
    "uv": "set UV_CACHE_DIR to a folder of yours on another disk",
    "models": "set HF_HOME to a folder of yours on another disk",
    "output": "set `output` in the job to a folder of yours on another disk",
    "temporary": "set TMPDIR (on Windows TEMP) to a folder of yours with some space",
}


def examine(context: Context | None, settings: Settings) -> list[Line]:
    """Everything worth knowing about this machine, for one job where one is given; raises nothing."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # GitPython's own answer where there is no git
            load(name)
    machine = host.detect()
    local = [*surroundings.probes(settings), *_machine(machine, settings), *_disks(context, settings)]
    asked = list(servers.of_job(context, machine) if context else servers.set_here(settings))
    places = list(dict.fromkeys(probe.place for probe in asked if probe.place.startswith("http")))[:MOST_CLOCKS]
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    try:
        answers = pool.map(answered, [*local, *asked])
        offsets = pool.map(surroundings.offset, places)
        lines = [line for some in answers for line in some]
        return grouped([*lines, surroundings.clock(offsets)], surroundings.proxy_of)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a server that gives no answer must not hold up who ends us


def lacking(lines: Iterable[Line]) -> list[str]:
    """The names of what no place could give; one that does not answer is no harm where another does."""
    names: dict[str, bool] = {}
    for line in filter(lambda line: line.needed, lines):
        names[line.name] = names.get(line.name, False) or line.ok
    return [name for name, ok in names.items() if not ok]


def _machine(machine: host.Host, settings: Settings) -> Iterator[Probe]:
    system = " ".join(filter(None, (machine.system, machine.arch, machine.libc)))
    yield Probe(name="system", ask=lambda: (Line(name="system", ok=machine.arch != "other", said=system),))
    yield Probe(name="cores, memory", ask=lambda: f"{machine.cores} cores, {size(machine.memory)}")
    yield Probe(name="memory bound", ask=functools.partial(_bound, settings))
    yield Probe(name="fence", ask=functools.partial(_fence, machine))
    yield Probe(name="gpu", ask=functools.partial(_gpu, machine))
    if "git" in settings.llama_cpp_from:
        yield Probe(name="git", ask=_program("git", lambda: "git", "install git, or set ORCHESTRATE_LLAMA_CPP_FROM=pypi"))
    yield Probe(name="uv", ask=_program("uv", indexes.uv, "reinstall llamacpp-orchestrator"))


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


def _program(name: str, find: Callable[[], str], hint: str) -> Callable[[], tuple[Line, ...]]:
    def ask() -> tuple[Line, ...]:
        try:
            version = process.capture(Command((find(), "--version"), env=clean_env())).strip()
            return (Line(name=name, ok=True, said=version),)
        except OrchestrateError as error:
            return (problem(name, "program", error.message.splitlines()[0], hint),)

    return ask


def _disks(context: Context | None, settings: Settings) -> Iterator[Probe]:
    """The folders that a job writes to, and what it does there."""
    job = context.job if context else None
    fetched = job is None or any(not wanted.is_folder for wanted in records.all_wanted(job))
    built = job is None or job.environment.path is None or records.uses_reference(job)
    cache, folder = settings.cache, hub.cache_folder()
    yield _disk(lambda: Place(name="cache", folder=cache, way=ELSEWHERE["cache"], programs=True, links=built, inner=True))
    if built:
        yield _disk(lambda: Place(name="uv's cache", folder=packages.cache(settings), way=ELSEWHERE["uv"], room=0), "uv's cache")
    yield _disk(lambda: Place(name="models", folder=folder, way=ELSEWHERE["models"], needed=fetched), "models")
    if context:
        output = context.file.parent / context.job.output
        yield _disk(lambda: Place(name="output", folder=output, way=ELSEWHERE["output"]), "output")
        for wanted, source in local_folders.local_folders(context).items():
            yield Probe(name=wanted.source, ask=functools.partial(_folder, wanted, source))
    temporary = Path(tempfile.gettempdir())
    yield _disk(lambda: Place(name="temporary", folder=temporary, way=ELSEWHERE["temporary"], room=SMALL), "temporary")


def _folder(wanted: records.Wanted, folder: Path) -> str:
    local_folders.check_one(wanted, folder)
    return f"a folder with {'an adapter' if wanted.is_adapter else 'a model'}"


def _disk(place: Callable[[], Place], name: str = "cache") -> Probe:
    return Probe(name=name, ask=lambda: disks.examine(place()))
