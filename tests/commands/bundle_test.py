"""A bundle holds all that a lock names; on a machine without a network it gives the same bytes, and nothing else is believed."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.commands import bundle
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.util import store
from llamacpp_orchestrator.util.store import Store
from tests.support import NOWHERE
from tests.support.answer import Answer
from tests.support.programs import TOOL
from tests.support.stage.github import GitHub
from tests.support.stage.github import release
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_a_machine_without_a_network_makes_the_same_bytes(
    linux: None,
    github: GitHub,
    hub: Hub,
    orchestrate: Orchestrate,
    job: Callable[..., Path],
    copy: Callable[..., Path],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy("lora-a", "adapter")
    github.archive = release(TOOL + "# bundled\n")
    model = {"source": "org/m", "name": "m", "quantize": ["Q8_0"], "loras": ["./adapter"]}
    merged = {"source": "org/m", "name": "merged", "outtype": "f16", "merge": "./adapter"}
    file = job(model, merged, binaries={"backend": "cpu"})
    first = orchestrate("run", file, "--json")
    assert first.code == 0, first.err
    packed = orchestrate("bundle", file, "-o", "all.tar")
    assert packed.code == 0, packed.err
    assert orchestrate("bundle", file, "-o", "again.tar").code == 0
    assert (world / "all.tar").read_bytes() == (world / "again.tar").read_bytes()
    assert orchestrate("bundle", file, "-o", "all.tar").code == 2, "what is there is not overwritten"

    # Another machine: nothing is there but the job, its lock and the bundle; every server is out of reach.
    there = tmp_path / "there"
    there.mkdir()
    for name in ("job.yaml", "job.lock.yaml", "all.tar"):
        shutil.copy(world / name, there / name)
    for name in ("ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_GITHUB_API_URL", "HF_ENDPOINT", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(tmp_path / "cache2"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf2"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv2"))
    monkeypatch.chdir(there)
    github.seen.clear()
    hub.seen.clear()
    made = orchestrate("run", "job.yaml", "--bundle", "all.tar", "--json")
    assert made.code == 0, made.err
    assert [one["sha256"] for one in made.json()["outputs"]] == [one["sha256"] for one in first.json()["outputs"]]
    assert not github.seen and not hub.seen
    again = orchestrate("run", "job.yaml", "--bundle", "all.tar", "--json").json()
    assert {one["status"] for one in again["outputs"]} == {"current"}


@pytest.fixture
def small(
    world: Path, orchestrate: Orchestrate, job: Callable[..., Path], copy: Callable[..., Path], tmp_path: Path
) -> tuple[Path, Context]:
    """A bundle without an environment, its job with the source folders gone, and a machine that has nothing yet."""
    (tmp_path / "own" / "bin").mkdir(parents=True)
    copy("tiny-llama", "model")
    file = job("./model", environment={"path": str(tmp_path / "own")})
    packed = orchestrate("bundle", file, "-o", "small.tar")
    assert packed.code == 0, packed.err
    shutil.rmtree(world / "model")
    here = msgspec.structs.replace(settings.load(os.environ), cache=tmp_path / "fresh")
    return world / "small.tar", Context(job=loader.load(file, folders=False), file=file, settings=here, store=Store(here.cache))


def rewritten(file: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], *more: tarfile.TarInfo) -> Path:
    """The same bundle with its members changed, dropped, or others added."""
    other = file.with_name("other.tar")
    with tarfile.open(file) as old, tarfile.open(other, "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            if (kept := change(member.name, content.read())) is not None:
                entry = tarfile.TarInfo(kept[0])
                entry.size = len(kept[1])
                new.addfile(entry, io.BytesIO(kept[1]))
        for extra in more:
            new.addfile(extra)
    return other


def link(name: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


def same(name: str, content: bytes) -> tuple[str, bytes]:
    return name, content


def flipped(wanted: str) -> Callable[[str, bytes], tuple[str, bytes]]:
    return lambda name, content: (name, content[:-1] + bytes([content[-1] ^ 1]) if name == wanted else content)


def labelled(**changes: Any) -> Callable[[str, bytes], tuple[str, bytes]]:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        if name != bundle.LABEL:
            return name, content
        return name, msgspec.json.encode(msgspec.json.decode(content) | changes)

    return change


def test_a_sound_bundle_is_put_into_its_place(small: tuple[Path, Context]) -> None:
    file, work = small
    found = bundle.opened(file, work)
    assert found.settings.offline and found.settings.index.index_urls == ()
    assert (found.folder("./model") / "model.safetensors").is_file()
    assert [entry.complete for entry in store.entries(work.store.root) if entry.kind == "source"] == [True]
    # The folders come out of the bundle, and they are what was locked.
    lock = lock_file.read(lock_file.path_for(work.file))
    assert lock is not None
    local_folders.drift(PinnedJob(found, lock))


def test_a_bundle_repairs_a_tree_that_was_changed(small: tuple[Path, Context]) -> None:
    file, work = small
    bundle.opened(file, work)
    (script,) = (work.store.root / "source").glob("*/convert_hf_to_gguf.py")
    before = script.read_bytes()
    script.write_bytes(b"raise SystemExit\n" + before)
    bundle.opened(file, work)
    assert script.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "extra", "code", "said"),
    [
        (flipped("models/0/model.safetensors"), (), 1, "models/0/model.safetensors in other.tar has digest"),
        (flipped("source/convert_hf_to_gguf.py"), (), 1, "the converter tree in other.tar has digest"),
        (lambda name, content: None if name == "models/0/config.json" else (name, content), (), 1, "lacks models/0/config.json"),
        (lambda name, content: (name.replace("models/0/config", "models/1/config"), content), (), 1, "the lock does not name"),
        (same, (link("wheels/x-1-py3-none-any.whl", "../bundle.json"),), 1, "the lock does not name"),
        (same, (link("models/0/x", "../../../beside"),), 1, "link out of its folder"),
        (same, (tarfile.TarInfo("../beside"),), 1, "leads out of its folder"),
        (same, (tarfile.TarInfo("{beside}"),), 1, "leads out of its folder"),
        (same, (tarfile.TarInfo("wheels/idna-3.20-py3-none-any.whl"),), 1, "not among the lock's"),
        (lambda name, content: None if name == bundle.LABEL else (name, content), (), 1, "is no bundle"),
        (labelled(lock="0" * 64), (), 3, "was packed for lock 0000"),
        (labelled(platform="windows-arm64"), (), 2, "was packed for windows-arm64"),
        (labelled(format="x"), (), 1, "is no bundle that can be read"),
    ],
)
def test_what_the_lock_does_not_know_is_refused(
    change: Any, extra: tuple[tarfile.TarInfo, ...], code: int, said: str, small: tuple[Path, Context], tmp_path: Path
) -> None:
    file, work = small
    for member in extra:
        member.name = member.name.format(beside=(tmp_path / "beside").as_posix())
    with pytest.raises(OrchestrateError) as caught:
        bundle.opened(rewritten(file, change, *extra), work)
    assert said in caught.value.message and caught.value.exit_code == code
    assert not (work.store.root / "source").exists() and not list((tmp_path / "fresh").glob("bundles/*"))
    assert not list(tmp_path.rglob("beside"))
    bundle.opened(file, work)


def test_bundles_that_cannot_be_read(small: tuple[Path, Context], orchestrate: Orchestrate, world: Path) -> None:
    _, work = small
    (world / "text.tar").write_text("hello")
    pipes = [world / "pipe.tar"] if os.name != "nt" else []
    for pipe in pipes:
        os.mkfifo(pipe)
    for path in (world / "text.tar", world, *pipes):
        with pytest.raises(OrchestrateError, match="is no bundle"):
            bundle.opened(path, work)
    (world / "job.lock.yaml").unlink()
    answer = orchestrate("run", "job.yaml", "--bundle", "small.tar")
    assert answer.code == 3 and "there is no lock" in answer.err
    assert orchestrate("run", "job.yaml", "job.yaml", "--bundle", "small.tar").code == 2
    (world / "model").mkdir()
    assert orchestrate("bundle", "job.yaml", "-o", "nowhere/x.tar").code == 2


@pytest.mark.parametrize(("platform", "libc"), [("linux-arm64", bundle.GLIBC), ("windows-x64", ""), ("macos-arm64", "")])
def test_another_machine_is_a_plain_one(platform: str, libc: str) -> None:
    found = bundle.machine(platform)
    assert bundle.platform_of(found) == platform and found.libc == libc and found.cuda is None


def test_platforms() -> None:
    here = lock_resolve.this_host()
    assert bundle.machine(bundle.platform_of(here)) is here and isinstance(here, host.Host)
    with pytest.raises(OrchestrateError, match='did you mean "linux-x64"'):
        bundle.machine("linux-x86")


def test_an_unknown_platform_is_told_before_anything_is_asked(
    orchestrate: Orchestrate, job: Callable[..., Path], world: Path
) -> None:
    (world / "model").mkdir()
    answer = orchestrate("bundle", job("./model"), "-o", "x.tar", "--platform", "beos-x64")
    assert answer.code == 2 and "--platform beos-x64: no such platform" in answer.err and "source" not in answer.err


def test_a_bundle_is_for_one_machine(orchestrate: Callable[..., Answer], job: Callable[..., Path], world: Path) -> None:
    (world / "all.tar").write_bytes(b"")
    answer = orchestrate("run", job("org/m"), "--bundle", "all.tar", "--scheduler", "tcp://127.0.0.1:9")
    assert answer.code == 2 and "--bundle goes with one JOB, and not with --scheduler" in answer.err
