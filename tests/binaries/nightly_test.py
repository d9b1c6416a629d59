"""A release stands for the build that it names, by whichever way it is asked; the lock holds the build and keeps the release."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacpp_orchestrator.binaries import nightly
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.util.tag import Tag
from tests.support import NOWHERE
from tests.support import TAG
from tests.support.answer import Answer
from tests.support.programs import IDLE
from tests.support.stage.github import GitHub
from tests.support.stage.github import git
from tests.support.stage.github import release

REPO = "https://github.com/ggml-org/llama.cpp"
API = "/repos/ggml-org/llama.cpp/releases"


@pytest.mark.parametrize(
    ("text", "valid", "build", "named"),
    [
        ("b11434", True, 11434, False),
        ("v0.3.0", True, None, True),
        ("v1.2", True, None, True),
        ("latest", True, None, True),
        ("0" * 40, True, None, False),
        ("master-1fed755", True, None, False),
        ("main", False, None, False),
        ("Latest", False, None, False),
        ("v0", False, None, False),
        ("0.3.0", False, None, False),
        ("v0.3.0;x", False, None, False),
        ("b１１", False, None, False),
        ("--upload-pack=x", False, None, False),
        ("b1\n", False, None, False),
    ],
)
def test_a_tag_says_what_it_is(text: str, valid: bool, build: int | None, named: bool) -> None:
    tag = Tag(text)
    assert (tag.is_valid, tag.build, tag.is_release) == (valid, build, named)
    assert tag.commit == (text if len(text) == 40 else "")


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[GitHub]:
    """A server of releases alone."""
    with GitHub(tmp_path) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        server.named = {"v0.2.0": b"b9760\n", "v0.3.0": b"\xef\xbb\xbfb10485\r\n", "v0.3.1": None, "v0.4.0": b"b11434"}
        yield server
        server.shutdown()


def at(server: GitHub, api: str = "", github: str = "") -> settings.Settings:
    own = {"ORCHESTRATE_GITHUB_API_URL": api or server.url, "ORCHESTRATE_GITHUB_URL": github or server.url}
    return settings.load({"ORCHESTRATE_CONFIG": os.devnull, **own} | {"ORCHESTRATE_CACHE_DIR": str(server.root)})


@pytest.mark.parametrize(("tag", "build"), [("v0.2.0", "b9760"), ("v0.3.0", "b10485"), ("latest", "b11434")])
def test_a_release_names_its_build(tag: str, build: str, releases: GitHub) -> None:
    told: list[str] = []
    assert nightly.named(tag, REPO, at(releases), told.append) == build
    where = "latest" if tag == "latest" else f"tags/{tag}"
    assert releases.seen[0] == f"{API}/{where}" and releases.seen[1].endswith("/nightly-tag.txt") and not told
    # Where the API is out of reach or the hour's questions are used up: by the address of the file, which is no call of it.
    for limited, api in ((True, ""), (False, NOWHERE)):
        releases.limited, releases.seen[:] = limited, []
        assert nightly.named(tag, REPO, at(releases, api), told.append) == build
        assert [path for path in releases.seen if path.endswith("/nightly-tag.txt")]


def test_a_mirror_of_the_api_and_of_the_files_serve(releases: GitHub) -> None:
    told: list[str] = []
    assert nightly.named("latest", REPO, at(releases, f"{NOWHERE},{releases.url}"), told.append) == "b11434"
    assert len(told) == 1 and "trying" in told[0]
    assert nightly.named("v0.2.0", REPO, at(releases, github=f"{NOWHERE},{releases.url}"), told.append) == "b9760"


def test_the_newest_release_of_a_copy_may_be_a_build(releases: GitHub) -> None:
    releases.named["b12000"] = None
    assert nightly.named("latest", "https://github.com/ggml-org/llama.cpp.git", at(releases), lambda text: None) == "b12000"


@pytest.mark.parametrize(
    ("tag", "content", "said"),
    [
        ("v9.9.9", None, "has no release v9.9.9 that names a build"),
        ("v0.3.1", None, "has no release v0.3.1 that names a build in its nightly-tag.txt"),
        ("v0.2.0", b"<html>log in</html>", "sent a web page instead of nightly-tag.txt"),
        ("v0.2.0", b"log in first", "nightly-tag.txt of release v0.2.0 names no build: log in first"),
        ("v0.2.0", b"", "sent 0 bytes instead of nightly-tag.txt"),
        ("v0.2.0", b"b1\nb2", "names no build"),
        ("v0.2.0", b"\xff\xfe\x00" * 50, "names no build"),
        ("v0.2.0", b"v0.1.0", "names no build"),
    ],
)
@pytest.mark.parametrize("api", ["", NOWHERE])
def test_a_release_without_a_build_is_told(tag: str, content: bytes | None, said: str, api: str, releases: GitHub) -> None:
    if content is not None:
        releases.named[tag] = content
    with pytest.raises(OrchestrateError) as failed:
        nightly.named(tag, REPO, at(releases, api), lambda text: None)
    assert said in failed.value.message and failed.value.hint


def test_nobody_to_ask_and_no_releases_at_all(releases: GitHub) -> None:
    with pytest.raises(NetworkError, match="which build latest of .* is cannot be asked") as failed:
        nightly.named("latest", REPO, at(releases, NOWHERE, NOWHERE), lambda text: None)
    assert "bNNNN" in failed.value.hint and "ORCHESTRATE_GITHUB_URL" in failed.value.hint
    with pytest.raises(JobError, match="names no GitHub repository"):
        nightly.named("latest", "file:///srv/llama.cpp", at(releases), lambda text: None)


def test_by_packages_latest_is_the_newest_that_there_is(releases: GitHub) -> None:
    known = settings.load(os.environ)
    here = at(releases)
    both = settings.Settings(cache=here.cache, github=here.github, github_api=here.github_api, index=known.index)
    for named, build, words in ((b"b11434", "b11434", ""), (b"b11435", "b11434", "of which there is no package")):
        told: list[str] = []
        releases.named = {"v0.4.0": named}
        assert nightly.build_of("latest", REPO, "pypi", both, told.append) == build
        assert words in "".join(told) and bool(told) == bool(words)
    away = settings.Settings(cache=here.cache, github=(NOWHERE,), github_api=(NOWHERE,), index=known.index)
    newest = nightly.build_of("latest", REPO, "pypi", away, told.append)
    assert int(newest[1:]) >= 11434 and told[-1].endswith(f"the newest package is taken: {newest}")
    with pytest.raises(NetworkError):  # only latest can be anything
        nightly.build_of("v0.4.0", REPO, "pypi", away, told.append)


@pytest.mark.slow
def test_the_lock_holds_the_build_and_fits_its_release(
    github: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, linux: None
) -> None:
    github.archive = release(IDLE + "# of a nightly release\n")
    github.named = {"v0.4.0": f"{TAG}\n".encode()}
    place = github.root / "ggml-org" / "llama.cpp"
    git("tag", "-f", "b11435", TAG, at=place)
    model = str(data / "tiny-llama")
    file = job(model, llama_cpp={"tag": "latest"}, binaries={"backend": "cpu"})
    assert f"note: latest is {TAG}" in orchestrate("setup", file).err
    lock = lock_file.read(lock_file.path_for(file))
    commit = git("rev-parse", TAG, at=place).strip()
    assert lock and (lock.llama_cpp.tag, lock.llama_cpp.release, lock.llama_cpp.commit) == (TAG, "latest", commit)
    assert lock.assets and all(TAG in asset.name for asset in lock.assets)
    # The newest release is another by now: what is locked stays, with and without a network, until it is told to move.
    github.named["v0.4.1"] = b"b11435\n"
    before = lock_file.path_for(file).read_bytes()
    shown = orchestrate("plan", file, "--json").json()
    assert [step["detail"] for step in shown["steps"] if step["name"] == "source"] == [f"{TAG} (latest, {commit})"]
    for words in (("setup", "--locked"), ("setup",), ("setup", "--offline"), ("lock",)):
        assert orchestrate(words[0], file, *words[1:]).code == 0
        assert lock_file.path_for(file).read_bytes() == before
    assert f"latest is {TAG}, which is {commit}" in orchestrate("doctor", file).out
    assert "llama_cpp: tag b11434 → b11435" in orchestrate("lock", file, "--upgrade", "llama_cpp").err
    again = lock_file.read(lock_file.path_for(file))
    assert again and (again.llama_cpp.tag, again.llama_cpp.release) == ("b11435", "latest")
    # Another release, or the build itself, is another wish.
    pinned = job(model, llama_cpp={"tag": "b11435"}, binaries={"backend": "none"})
    assert orchestrate("setup", pinned, "--locked").code == 3
    assert "locked latest of" in orchestrate("setup", pinned, "--locked").err
    assert orchestrate("lock", job(model, llama_cpp={"tag": "v0.4.0"}, binaries={"backend": "none"})).code == 0
    named = lock_file.read(lock_file.path_for(file))
    assert named and (named.llama_cpp.tag, named.llama_cpp.release) == (TAG, "v0.4.0")


def test_convert_takes_a_release(github: GitHub, orchestrate: Callable[..., Answer], data: Path, world: Path) -> None:
    github.named = {"v0.4.0": TAG.encode()}
    words = ("--tag", "latest", "--outtype", "f16", "--override", "torch==2.13.0", "--output", "out", "--write-job", "kept.yaml")
    made = orchestrate("convert", data / "tiny-llama", *words)
    assert made.code == 0, made.err
    assert "tag: latest" in (world / "kept.yaml").read_text()
    answer = orchestrate("convert", data / "tiny-llama", "--tag", "v7.7.7", "--override", "torch==2.13.0", "--output", "other")
    assert answer.code == 1 and "has no release v7.7.7 that names a build" in answer.err
    assert orchestrate("convert", data / "tiny-llama", "--tag", "newest").code == 2


def test_without_a_network_and_a_lock_a_release_is_nothing(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> None:
    answer = orchestrate("lock", job(str(data / "tiny-llama"), llama_cpp={"tag": "latest"}), "--offline")
    assert answer.code == 1 and "what the tag latest points at" in answer.err


@pytest.mark.parametrize(("tag", "named"), [("latest", ""), (TAG, "nightly"), (TAG, "b1")])
def test_a_lock_that_names_no_build_is_damaged(
    tag: str, named: str, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> None:
    file = job(str(data / "tiny-llama"), binaries={"backend": "none"})
    assert orchestrate("lock", file).code == 0
    path = lock_file.path_for(file)
    release_line = f"  release: {named}\n" if named else ""
    path.write_text(path.read_text().replace(f"  tag: {TAG}\n", f"  tag: {tag}\n{release_line}"))
    with pytest.raises(LockError, match="a lock names the build"):
        lock_file.read(path)
