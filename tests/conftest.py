"""The test world: a cache, a home for models and a config of its own, and no server unless a test starts one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs
import pytest
import yaml
from filelock import FileLock

from llamacpp_orchestrator.__main__ import main
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.environment import reference as environment_reference
from llamacpp_orchestrator.environment import venv
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.util.store import MARK
from llamacpp_orchestrator.util.store import Store
from tests.support import NOWHERE
from tests.support import ROOT
from tests.support import TAG
from tests.support import resolutions
from tests.support import workers
from tests.support.answer import Answer
from tests.support.stage import trees
from tests.support.stage.fixtures import github as github
from tests.support.stage.fixtures import hub as hub
from tests.support.stage.fixtures import linux as linux
from tests.support.stage.fixtures import repository as repository
from tests.support.stage.fixtures import uploads as uploads
from tests.support.warm import Lender


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Coverage is that of the quick tests: where it is measured, Python takes half as long again, or four times as long."""
    for item in items:
        if item.get_closest_marker("slow") or item.path.parent.name == "fuzz":
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def uncovered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it measured in what a slow test starts."""
    if request.node.get_closest_marker("no_cover"):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def own_session() -> Iterator[None]:
    """Leave no client of the hub behind: it keeps the proxies and certificates of the test that was the first to ask."""
    yield
    if library := sys.modules.get("huggingface_hub"):
        library.close_session()


@pytest.fixture(scope="session")
def demo_data() -> ModuleType:
    """configs/demo_data.py, which makes real inputs."""
    place = importlib.util.spec_from_file_location("demo_data", ROOT / "configs" / "demo_data.py")
    assert place and place.loader
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def data(demo_data: ModuleType, tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """all-MiniLM-L6-v2, tiny-llama, lora-a and lora-b."""
    folder = tmp_path_factory.mktemp("data")
    workers.once(shared / "data" / "demo", {"data": folder}, lambda: demo_data.main(folder))
    return folder


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Callable[[str], Path]:
    """Real converter trees by tag, out of packages; "0.3.1" and the like are those that llama-cpp-python carried then."""
    folder = tmp_path_factory.mktemp("trees")

    def get(tag: str) -> Path:
        dest = folder / tag
        if not dest.exists():
            dest.mkdir()
            workers.once(shared / "trees" / tag, {"tree": dest}, lambda: trees.checkout(tag, dest))
        return dest

    return get


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, so that the tree and the environment are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_cache: Path) -> Path:
    """A folder to work in, with every setting fenced off from the machine but the package index."""
    for name in list(os.environ):
        if name.startswith(("ORCHESTRATE_", "HF_", "GIT_")) or name in ("GITHUB_TOKEN", "GH_TOKEN"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(shared_cache))
    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setenv("ORCHESTRATE_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "pypi")
    for name in ("ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_GITHUB_API_URL", "ORCHESTRATE_TORCH_INDEX", "HF_ENDPOINT"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture(scope="session")
def lender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lender]:
    """The warm interpreters of this session."""
    lender = Lender(tmp_path_factory.mktemp("warm") / "log")
    yield lender
    lender.close()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def cold() -> None:
    """For tests of starting itself: commands share no interpreter and no resolution with those of other tests."""


@pytest.fixture
def orchestrate(
    request: pytest.FixtureRequest,
    world: Path,
    capfd: pytest.CaptureFixture[str],
    lender: Lender,
    shared_cache: Path,
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Answer]]:
    """Run a command in this process, as the console script would, but that it finds a warm interpreter and leaves it so.

    Nor is a package index asked again what it has told in this session, or an environment built again that a worker has built.
    """
    if "cold" not in request.fixturenames:
        monkeypatch.setattr(warm_worker, "Warm", lender)
        for name in ("resolve", "resolve_reference"):
            monkeypatch.setattr(venv, name, resolutions.remembering(getattr(venv, name), shared / "resolutions"))
        build = workers.sharing(setup.build_environment, shared_cache, shared)
        monkeypatch.setattr(setup, "build_environment", build)

    def run(*argv: object) -> Answer:
        capfd.readouterr()
        code = main([str(word) for word in argv])
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    yield run


@pytest.fixture
def job(world: Path) -> Callable[..., Path]:
    """Write a job file with some models, and other keys where a test needs them."""

    def write(*models: Any, name: str = "job.yaml", **keys: Any) -> Path:
        asked = {"version": 1, "llama_cpp": {"tag": TAG}, "environment": {"overrides": ["torch==2.13.0"]}, "models": list(models)}
        path = world / name
        path.write_text(yaml.safe_dump(asked | keys, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def pythons() -> list[Path]:
    """The interpreter that the driver has made for upstream's scripts, once one was asked for."""
    return []


@pytest.fixture
def python(pythons: list[Path], orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path) -> Path:
    """The interpreter that the driver makes for upstream's scripts."""
    if not pythons:
        file = job(str(data / "tiny-llama"), name="environment.yaml", binaries={"backend": "none"})
        assert orchestrate("setup", file).code == 0
        found = settings.load(os.environ)
        lock = lock_file.read(lock_file.path_for(file))
        assert lock
        context = Context(job=loader.load(file), file=file, settings=found, store=Store(found.cache))
        pythons.append(PinnedJob(context, lock).python)
    return pythons[0]


@pytest.fixture
def reference(world: Path, shared_cache: Path, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path) -> Path:
    """The interpreter that the driver makes to compare outputs with their sources in."""
    file = job({"source": str(data / "tiny-llama"), "verify": "logits"}, name="reference.yaml", binaries={"backend": "source"})
    kept = shared_cache / "reference.lock.yaml"
    if kept.exists():
        shutil.copy(kept, lock_file.path_for(file))
    else:
        assert orchestrate("lock", file).code == 0
        shutil.copy(lock_file.path_for(file), kept)
    found = settings.load(os.environ)
    lock = lock_file.read(lock_file.path_for(file))
    work = Context(job=loader.load(file), file=file, settings=found, store=Store(found.cache))
    assert lock and lock.reference
    setup.build_environment(work, lock.reference, environment_reference.TITLE, world / "reference.log", lambda text: None)
    return PinnedJob(work, lock).python_of(lock.reference)


@pytest.fixture
def run(lender: Lender, tree: Callable[[str], Path]) -> Run:
    """How a script of the environment runs: as a fork of the session's warm interpreter where that can be, else by itself."""

    def forked(command: Command, log: Path, tell: Callable[[str], None]) -> None:
        lender(command.argv[0], tree(TAG), command.env, log).convert(command, log, tell)

    return forked if warm_worker.can_fork(sys.platform) else warm_worker.run_alone


@pytest.fixture
def compiled(shared_cache: Path) -> dict[str, str]:
    """Where the driver has Python keep what it compiles of the environment: ten seconds' work for who begins anew."""
    return {"PYTHONPYCACHEPREFIX": str(shared_cache / "home" / "bytecode")}


@pytest.fixture
def once(world: Path, shared_cache: Path) -> Callable[[str, Callable[[], object]], None]:
    """Put into the folder to work in what is made there the first time, and is a copy of that from then on."""

    def fill(name: str, make: Callable[[], object]) -> None:
        kept = shared_cache / "worlds" / name
        if kept.exists():
            shutil.copytree(kept, world, dirs_exist_ok=True)
        else:
            make()
            shutil.copytree(world, kept)

    return fill


@pytest.fixture
def copy(world: Path, data: Path) -> Callable[..., Path]:
    """A copy of a model or adapter that a test may spoil."""

    def make(name: str, to: str = "model") -> Path:
        return Path(shutil.copytree(data / name, world / to))

    return make


@pytest.fixture
def built(
    world: Path, shared_cache: Path, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> dict[str, Any]:
    """Programs built from the tag's source, once on a machine for all sessions, and the key of a job that asks for them."""
    asked, here = {"backend": "source"}, shared_cache / "builds"
    kept = Path(platformdirs.user_cache_dir("llamacpp-orchestrator-tests")) / TAG / "programs"
    kept.mkdir(parents=True, exist_ok=True)
    # Of tests that run beside each other one builds, and the others take what it has built.
    with FileLock(kept.with_name("builds.lock")):
        if not list(here.glob(f"*{MARK}")):
            shutil.copytree(kept, here, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
            answer = orchestrate("setup", job(str(data / "tiny-llama"), name="setup.yaml", binaries=asked))
            assert answer.code == 0, answer.err
            for mark in here.glob(f"*{MARK}"):
                entry = kept / mark.name.removesuffix(MARK)
                if not entry.exists():
                    draft = Path(shutil.copytree(here / entry.name, kept / f".{os.getpid()}"))
                    shutil.copy(mark, kept / mark.name)
                    draft.rename(entry)
    return asked


@pytest.fixture
def recorder(built: dict[str, Any], shared_cache: Path) -> Path:
    """The tag's own llama-perplexity."""
    return next((shared_cache / "builds").rglob("llama-perplexity*"))
