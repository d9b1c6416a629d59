"""Faults of the converter tree's source, 18 to 31: git, its servers and its tags, and what lies in the cache."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llamacpp_orchestrator.util.store import beside
from tests.support import NOWHERE
from tests.support.answer import Answer
from tests.support.folders import remains
from tests.support.programs import installed
from tests.support.programs import script
from tests.support.rights import NOBODY
from tests.support.rights import somebody
from tests.support.stage.github import git
from tests.support.stage.hub import MODEL
from tests.support.stage.trees import SMALL
from tests.support.stage.trees import commit

Orchestrate = Callable[..., Answer]
Told = Callable[..., str]
Ask = Callable[..., Path]

ELSEWHERE = {
    20: "jobs/routes_test.py::test_a_moved_tag_is_an_error_with_both_commits",  # by `run`, and how it is accepted
    22: "jobs/routes_test.py::test_git_gives_the_same_tree_as_the_package",
    28: "jobs/run_test.py::test_a_changed_tree_in_the_cache_is_repaired",
    29: "source/tree_test.py::test_the_users_configuration_and_hooks_have_no_say",
}
STRANGER = 12345


@pytest.fixture
def cache(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is not there yet."""
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world.parent / "cache"))
    monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git")
    return world.parent / "cache"


@pytest.fixture
def upstream(cache: Path, world: Path) -> Path:
    """A small repository like upstream's, where the tag b3000 has no script yet."""
    root = world.parent / "upstream"
    root.mkdir()
    git("init", "-q", "-b", "master", at=root)
    commit(root, {"LICENSE": "MIT\n"}, "b3000")
    commit(root, SMALL, "b5000")
    git("config", "uploadpack.allowFilter", "true", at=root)
    return root


@pytest.fixture
def ask(world: Path, upstream: Path) -> Ask:
    """Write a job whose lock needs nothing but the tree: its Python is the user's own, which has whatever is looked for."""
    script(world / "venv" / "bin" / "python")
    (world / "model").mkdir()
    for name, content in MODEL.items():
        (world / "model" / name).write_bytes(content)

    def made(repo: str = "", tag: str = "b5000", place: Path = world, **more: object) -> Path:
        model = {"source": "./model", "outtype": "f16"}
        asked = {"version": 1, "llama_cpp": {"tag": tag, "repo": repo or upstream.as_uri()}, "environment": {"path": "venv"}}
        (place / "job.yaml").write_text(yaml.safe_dump(asked | {"models": [model | more]}), encoding="utf-8")
        return place / "job.yaml"

    return made


def half_made(cache: Path, world: Path) -> list[Path]:
    """What a failure must not leave: a lock, scratch folders, parts, entries without their mark."""
    entries = [path for path in (cache / "source").glob("*") if path.is_dir() and not beside(path).exists()]
    return [*entries, *remains(cache), *world.glob("*.lock.yaml")]


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Start a server with a handler of requests on loopback; its address."""
    started: list[http.server.ThreadingHTTPServer] = []

    def start(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> str:
        started.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=started[-1].serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_address[1]}"

    yield start
    for each in started:
        each.shutdown()
        each.server_close()


def test_18_no_git(ask: Ask, cache: Path, world: Path, orchestrate: Orchestrate, told: Told) -> None:
    file, path = ask(), os.environ["PATH"]
    os.environ["PATH"] = str(world)
    try:
        helped, answer = orchestrate("--help"), orchestrate("lock", file)
    finally:
        os.environ["PATH"] = path
    assert helped.code == 0 and "Usage" in helped.out
    told("18 no git", answer)
    assert half_made(cache, world) == [] and orchestrate("lock", file).code == 0


@pytest.mark.parametrize("tag", ["b5001", "b1", "0" * 40, "master-abcdef0"])
def test_19_a_tag_that_is_not_there(
    tag: str, ask: Ask, upstream: Path, cache: Path, world: Path, orchestrate: Orchestrate, told: Told
) -> None:
    file = ask(tag=tag)
    answer = orchestrate("lock", file)
    answer.err = re.sub(r"fatal: .*not our ref", "fatal: not our ref", answer.err)  # git says it in one of two ways
    said = told(f"19 {tag.replace('0' * 40, 'a commit')}", answer)
    assert half_made(cache, world) == []
    if tag.startswith("b"):
        assert "b5000" in said
        git("tag", tag, at=upstream)
        assert orchestrate("lock", file).code == 0


def test_20_a_tag_that_was_moved(
    ask: Ask, upstream: Path, cache: Path, world: Path, orchestrate: Orchestrate, told: Told
) -> None:
    file, lock = ask(), world / "job.lock.yaml"
    assert orchestrate("lock", file).code == 0
    before, kept = git("rev-parse", "b5000", at=upstream).strip(), lock.read_bytes()
    shutil.rmtree(cache)
    after = commit(upstream, {"conversion/base.py": "base = 2\n"}, "-f", "b5000")
    answer = orchestrate("run", file)
    assert before in answer.err and after in answer.err and answer.err.count("error: the tag") == 1
    told("20 moved tag", answer)
    assert lock.read_bytes() == kept and [path for path in half_made(cache, world) if path != lock] == []
    assert orchestrate("lock", file, "--upgrade", "llama_cpp").code == 0 and after in lock.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fault", "asked"),
    [
        ("21 a transport that runs programs", {"repo": "ext::sh -c touch% ran"}),
        ("21 an option as address", {"repo": "--upload-pack=touch ran"}),
        ("21 an option as host", {"repo": "ssh://-oProxyCommand=touch%20ran/x"}),
        ("21 a path", {"repo": "../upstream"}),
        ("21 an option as tag", {"tag": "--upload-pack=touch ran;git-upload-pack"}),
        ("21 a path as tag", {"tag": "../../b5000"}),
        ("21 a range as tag", {"tag": "b3000..b5000"}),
    ],
)
def test_21_what_git_would_run(
    fault: str, asked: dict[str, str], ask: Ask, cache: Path, world: Path, orchestrate: Orchestrate, told: Told
) -> None:
    said = told(fault, orchestrate("lock", ask(**asked)), code=2)
    assert f"llama_cpp.{next(iter(asked))}" in said
    assert not cache.exists() and not (world / "ran").exists() and half_made(cache, world) == []
    assert orchestrate("lock", ask()).code == 0


def test_21_what_git_would_run_by_a_setting(
    ask: Ask, cache: Path, world: Path, orchestrate: Orchestrate, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_GITHUB_URL", "ext::sh%20-c%20touch%20ran")
    told("21 a mirror that runs programs", orchestrate("lock", ask("https://github.com/ggml-org/llama.cpp")), code=2)
    assert not (world / "ran").exists() and not cache.exists()


def test_23_a_server_without_the_smart_protocol(
    ask: Ask, upstream: Path, cache: Path, world: Path, server: Callable[..., str], orchestrate: Orchestrate, told: Told
) -> None:
    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words: object) -> None:
            super().__init__(*words, directory=str(upstream / ".git"))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    git("update-server-info", at=upstream)
    told("23 dumb http", orchestrate("lock", ask(server(Files))))
    assert half_made(cache, world) == []


class Login(http.server.BaseHTTPRequestHandler):
    """Asks everybody for a login."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Basic realm=x")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.skipif(os.name == "nt", reason="has no such terminals")
def test_24_a_login_is_not_asked_for_on_a_terminal(
    ask: Ask, cache: Path, world: Path, server: Callable[..., str], told: Told
) -> None:
    import fcntl
    import termios

    file, (ours, theirs) = ask(server(Login)), os.openpty()
    began = time.monotonic()
    child = subprocess.Popen(
        [installed("orchestrate"), "lock", file, "--no-progress"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    _, err = child.communicate(timeout=30)
    assert time.monotonic() - began < 10
    told("24 a login", Answer(child.returncode, "", err))
    os.close(theirs)
    os.set_blocking(ours, False)
    asked = b""
    with contextlib.suppress(OSError):  # how the end of a terminal reads
        asked = os.read(ours, 1000)
    os.close(ours)
    assert asked == b""
    assert half_made(cache, world) == []


def test_26_locks_of_git_in_a_tree_that_is_half_there(
    ask: Ask, upstream: Path, cache: Path, world: Path, orchestrate: Orchestrate
) -> None:
    entry = cache / "source" / git("rev-parse", "b5000", at=upstream).strip()
    (entry / ".git").mkdir(parents=True)
    for name in ("index.lock", "shallow.lock"):
        (entry / ".git" / name).write_text("", encoding="utf-8")
    assert orchestrate("lock", ask()).code == 0
    assert not (entry / ".git").exists() and (entry / "conversion" / "base.py").read_bytes() == b"base = 1\n"


@pytest.mark.skipif(os.name == "nt", reason="other rights there")
@pytest.mark.parametrize("whole", [True, False], ids=["all is there", "the tree is half there"])
def test_27_a_cache_of_another_user(
    whole: bool, ask: Ask, upstream: Path, orchestrate: Orchestrate, told: Told, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    with tempfile.TemporaryDirectory() as name:
        place = Path(shutil.copytree(world, Path(name) / "work"))
        upstream = Path(shutil.copytree(upstream, Path(name) / "upstream"))
        cache, settings = place / "cache", place / ".gitconfig"
        monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(cache))
        monkeypatch.setenv("ORCHESTRATE_CONFIG", os.devnull)
        monkeypatch.setenv("HOME", str(place))
        settings.write_text("[user]\n\tname = me\n", encoding="utf-8")
        file = ask(upstream.as_uri(), place=place)
        assert orchestrate("lock", file).code == 0
        for path in (Path(name), place, *place.rglob("*")):
            os.chown(path, STRANGER, STRANGER) if cache in (path, *path.parents) else path.chmod(0o777)
        assert orchestrate("lock", file).code == 0, "root may use it"
        if not whole:
            next(cache.glob("source/*.complete.json")).unlink()
            file.with_name("job.lock.yaml").unlink()
        for path in (upstream, *upstream.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        with somebody():
            answer = orchestrate("lock", file)
        assert settings.read_text(encoding="utf-8") == "[user]\n\tname = me\n"
        answer.err = re.sub(r"[0-9a-f]{40}", "<commit>", answer.err.replace(name, "<open>"))
        if whole:
            assert answer.code == 0, answer.err
            return
        told("27 a cache of another user", answer)
        monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(place / "mine"))
        with somebody():
            assert orchestrate("lock", file).code == 0


@pytest.mark.parametrize("how", ["away", "no server"])
def test_30_the_server_is_gone(
    how: str, ask: Ask, upstream: Path, cache: Path, world: Path, orchestrate: Orchestrate, told: Told
) -> None:
    file = ask()
    assert orchestrate("lock", file).code == 0
    away = upstream.rename(upstream.with_name("away"))
    assert orchestrate("lock", file).code == 0, "all is cached and locked"
    (world / "job.lock.yaml").unlink()
    shutil.rmtree(cache)
    answer = orchestrate("lock", file if how == "away" else ask(f"{NOWHERE}/llama.cpp"))
    answer.err = re.sub(r"(?<=/': ).*", "<what curl says>", answer.err)
    told(f"30 {how}", answer)
    assert half_made(cache, world) == []
    away.rename(upstream)
    assert orchestrate("lock", ask()).code == 0


def test_31_a_tag_older_than_the_script(ask: Ask, cache: Path, world: Path, orchestrate: Orchestrate, told: Told) -> None:
    said = told("31 no script", orchestrate("lock", ask(tag="b3000")))
    assert "convert_hf_to_gguf.py" in said and "b3000" in said and half_made(cache, world) == []
    assert orchestrate("lock", ask()).code == 0


@pytest.mark.skipif(os.name == "nt", reason="the stand-in interpreter is a shell script")
def test_31_a_tag_older_than_the_script_for_adapters(
    ask: Ask, upstream: Path, world: Path, data: Path, orchestrate: Orchestrate, told: Told
) -> None:
    (upstream / "convert_lora_to_gguf.py").unlink()
    commit(upstream, {}, "b4500")
    file = ask(tag="b4500", source=str(data / "tiny-llama"), loras=[str(data / "lora-a")])
    said = told("31 no script for adapters", orchestrate("run", file), code=2)
    assert "convert_lora_to_gguf.py" in said and "b4500" in said and not list((world / "dist").glob("*.gguf"))
