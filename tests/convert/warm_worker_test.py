"""The warm interpreter: when it begins, what it loads, and what it leaves behind."""

from __future__ import annotations

import hashlib
import io
import py_compile
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.commands import run as commands_run
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.models.hub import HubFile
from llamacpp_orchestrator.pipeline import build
from llamacpp_orchestrator.pipeline import graph
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.source import pin
from llamacpp_orchestrator.source import tree as source_tree
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import script_env
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.store import Store

pytestmark = pytest.mark.usefixtures("cold")
TOKENIZERS = "transformers.models.auto.tokenization_auto"


def silent(text: str) -> None:
    """Nobody listens."""


def test_what_cannot_be_started_is_told_by_the_first_conversion(tmp_path: Path) -> None:
    warm = warm_worker.Warm(str(tmp_path / "no-python"), tmp_path, script_env(tmp_path), tmp_path / "warm.log")
    warm.start()
    with pytest.raises(CommandFailed, match="could not be started"):
        warm.convert(Command(("python", "x.py"), cwd=str(tmp_path)), tmp_path / "log", silent)
    warm.close()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux can fork it")
@pytest.mark.parametrize(("kind", "loaded"), [("model", False), ("adapter", True)])
def test_it_loads_what_will_be_asked_for_and_once(
    kind: str, loaded: bool, python: Path, tree: Callable[[str], Path], tmp_path: Path, shared_cache: Path
) -> None:
    root, env = tree("b11434"), script_env(shared_cache / "home")
    probe = tmp_path / "probe.py"
    own = [f"{name!r} in sys.modules" for name in ("torch", TOKENIZERS, "gguf", "conversion.llama")]
    probe.write_text(f"import os, sys; print({', '.join(own)}, len(sys.path), sys.path[0], __file__, os.getppid())\n")
    warm = warm_worker.Warm(str(python), root, env, tmp_path / "warm.log", [root / source_tree.SCRIPTS[kind]])
    warm.start()
    command = Command((str(python), str(probe)), cwd=str(tmp_path), env=env)
    counts = [warm.convert(command, tmp_path / name, silent) for name in ("one", "two")]
    warm.close()
    for name, count in zip(("one", "two"), counts, strict=True):
        assert count == len((tmp_path / name).read_bytes().splitlines(keepends=True)[-1]), "bytes that it wrote, here to its log"
    one, two = ((tmp_path / name).read_text(encoding="utf-8").splitlines()[-1].split() for name in ("one", "two"))
    assert one == two and one[:4] == ["True", str(loaded), "True", "True"]
    alone = process.capture(command).splitlines()[-1].split()
    assert one[4:7] == alone[4:7], "what a process of its own sees"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux can fork it")
def test_what_is_loaded_is_the_same_for_many_conversions(tmp_path: Path) -> None:
    (tmp_path / "loaded.py").write_text("import os\nDATA = bytearray(range(256)) * 40_000\nPID = os.getpid()\n")
    probe = tmp_path / "probe.py"
    probe.write_text("import hashlib\nimport loaded\nprint(hashlib.sha256(loaded.DATA).hexdigest(), loaded.PID)\n")
    warm = warm_worker.Warm(sys.executable, tmp_path, script_env(tmp_path), tmp_path / "warm.log", [probe])
    command = Command((sys.executable, str(probe)), cwd=str(tmp_path), env=script_env(tmp_path))
    logs = [tmp_path / str(number) for number in range(30)]  # from the 25th on its memory lies in large pages
    for log in logs:
        warm.convert(command, log, silent)
    warm.close()
    (said,) = {log.read_text().splitlines()[-1] for log in logs}
    assert said.split()[0] == hashlib.sha256(bytes(range(256)) * 40_000).hexdigest()


def test_an_interpreter_that_is_lent_again_serves_both_scripts_of_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[set[str]] = []

    def warm(python: str, tree: Path, env: object, log: Path, scripts: list[Path]) -> io.BytesIO:
        begun.append({path.name for path in scripts})
        return io.BytesIO()  # it can be closed

    monkeypatch.setattr(warm_worker, "Warm", warm)
    root, extra = tmp_path / "tree", inside.path("rendering")  # a tree that is still to come
    with warm_worker.shelf() as lend:
        model, adapter = (root / source_tree.SCRIPTS[kind] for kind in ("model", "adapter"))
        for scripts in ([model], [adapter], [model, extra], [adapter]):
            with lend("python", root, (), tmp_path / "log", scripts):
                pass
    assert begun == [set(source_tree.SCRIPTS.values()), {*source_tree.SCRIPTS.values(), extra.name}]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux can fork it")
def test_what_python_compiles_lies_apart_and_what_lies_beside_a_script_is_not_taken(
    python: Path, tree: Callable[[str], Path], tmp_path: Path
) -> None:
    root, env = tmp_path / "tree", script_env(tmp_path)
    shutil.copytree(tree("b11434"), root)
    (root / "probed.py").write_text("SAID = 'good'\n", encoding="utf-8")
    planted = tmp_path / "planted.py"
    planted.write_text("SAID = 'other'\n", encoding="utf-8")
    beside = root / "__pycache__" / f"probed.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(planted), str(beside), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    probe = root / "probe.py"
    probe.write_text("import probed\nprint(probed.SAID)\n", encoding="utf-8")
    command, before = Command((str(python), str(probe)), cwd=str(tmp_path), env=env), set(root.rglob("*"))
    warm = warm_worker.Warm(str(python), root, env, tmp_path / "warm.log", [root / source_tree.SCRIPTS["model"]])
    for name, run in (("one", warm.convert), ("two", warm_worker.run_alone)):
        run(command, tmp_path / name, silent)
        assert (tmp_path / name).read_text(encoding="utf-8").splitlines()[-1] == "good"
    warm.close()
    assert set(root.rglob("*")) == before and [*(tmp_path / "bytecode").rglob("probed.*.pyc")]


def the_work(tmp_path: Path, more: str) -> Context:
    text = f"version: 1\nllama_cpp: {{tag: b11434}}\nmodels:\n  - source: org/base\n    {more}\n"
    job = loader.parse(text.encode(), tmp_path / "job.yaml")
    return Context(
        job=job,
        file=tmp_path / "job.yaml",
        settings=Settings(cache=tmp_path / "cache", index=Index()),
        store=Store(tmp_path / "cache"),
    )


def the_lock(work: Context, names: tuple[str, ...]) -> records.Lock:
    files = tuple(HubFile(path=name, size=1, sha256="a" * 64) for name in names)
    return records.Lock(
        llama_cpp=pin.SourcePin(tag="b11434", repo="x", tree="d" * 64, commit="e" * 40),
        environment=records.EnvironmentPin(upstream="0" * 64, torch="cpu", python="3.11", requirements="a==1\n"),
        assets=(),
        models=tuple(records.FilesPin(wanted=each, commit="c" * 40, files=files) for each in records.all_wanted(work.job)),
    )


LOADER = inside.path("rendering")


@pytest.mark.parametrize(
    ("more", "files", "names"),
    [
        ("outtype: f16", ("tokenizer.model", "tokenizer.json"), {"convert_hf_to_gguf.py"}),
        ("outtype: f16", ("tokenizer.json",), {"convert_hf_to_gguf.py", LOADER.name}),
        ("outtype: none\n    loras: [org/a]", ("tokenizer.model",), {"convert_lora_to_gguf.py"}),
        ("loras: [org/a]", (), {"convert_hf_to_gguf.py", "convert_lora_to_gguf.py"}),
    ],
)
def test_what_will_be_asked_for(tmp_path: Path, more: str, files: tuple[str, ...], names: set[str]) -> None:
    work = the_work(tmp_path, more)
    pinned = PinnedJob(work, the_lock(work, files))
    scripts = graph.scripts(pinned, build.builds(pinned))
    assert {path.name for path in scripts} == names
    assert all(path == LOADER or path.parent == pinned.tree for path in scripts)


def test_it_begins_at_once_where_all_that_it_needs_is_here_and_whole(tmp_path: Path) -> None:
    work = the_work(tmp_path, "outtype: f16")
    pinned = PinnedJob(work, the_lock(work, ()))
    environment, source = pinned.lock.environment, pinned.lock.llama_cpp
    assert environment and not setup.in_place(pinned)

    def tree(dest: Path) -> dict[str, str]:
        (dest / source_tree.SCRIPTS["model"]).write_text("import torch\n")
        return {"tree": source_tree.tree_digest(dest)}

    def venv(dest: Path) -> None:
        python, packages = python_in(dest / "venv"), dest / "venv" / "lib" / "python3.11" / "site-packages"
        for path, text in ((python, "#!"), (packages / "a-1.dist-info" / "RECORD", "a.py,,\n"), (packages / "a.py", "")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        python.chmod(0o755)

    script = work.store.ensure("source", source.key(), tree) / source_tree.SCRIPTS["model"]
    pinned = msgspec.structs.replace(
        pinned, lock=msgspec.structs.replace(pinned.lock, llama_cpp=msgspec.structs.replace(source, tree=""))
    )
    assert not setup.in_place(pinned)
    built = work.store.ensure("environments", environment.pin().digest(), venv)
    assert setup.in_place(pinned)
    own = msgspec.structs.replace(pinned, lock=msgspec.structs.replace(pinned.lock, environment=None))
    assert not setup.in_place(own), "of an environment of the user's own nothing is known"
    script.write_text("import other\n")  # of the same size
    assert not setup.in_place(pinned)
    script.write_text("import torch\n")
    next(built.rglob("a.py")).unlink()
    assert not setup.in_place(pinned)


def test_it_begins_when_the_last_of_what_it_needs_is_here() -> None:
    begun: list[str] = []
    steps = [Step(kind="source"), Step(kind="environment"), Step(kind="fetch", key="a")]
    show = commands_run._tidying(lambda event: None, steps, build.Outputs((), frozenset()), lambda: begun.append("begun"))
    for status in ("started", "failed"):
        show(Event("source", status))
    show(Event("environment", "current"))
    show(Event("fetch a", "done"))
    assert not begun
    show(Event("source", "done"))
    assert begun == ["begun"]


def test_a_failure_never_repeats_the_advice_to_load_pickles_unsafely() -> None:
    error = warm_worker.failed(
        CommandFailed("x ended with exit code 1", code=1, tail="boom\nset weights_only=False to load it\nlast")
    )
    assert "weights_only" not in error.message and "last" in error.message
    assert "--jobs 1" in warm_worker.failed(CommandFailed("x was killed", code=-9)).hint


@pytest.mark.parametrize(("line", "shown"), [("Writing:  45%|####  | 1/2", "45%"), ("a 1%|\r 99%|", "99%"), ("INFO: 45%", "")])
def test_progress(line: str, shown: str) -> None:
    assert warm_worker.progress_of(line) == shown
