"""Fault 86: no token and no login is found in what is said, logged, locked or recorded, whether a command ends well or not."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.answer import Answer
from tests.support.programs import TOOL
from tests.support.stage.github import GitHub
from tests.support.stage.github import release
from tests.support.stage.hub import Hub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Told = Callable[..., str]

SECRET = "SECRETSECRET"
TOKENS = {"GITHUB_TOKEN": f"ghp_{SECRET}", "GH_TOKEN": f"gho_{SECRET}", "HF_TOKEN": f"hf_{SECRET}"}


def found(*places: Path) -> list[Path]:
    """The files that hold the secret, but for installed packages."""
    files = (path for place in places for path in place.rglob("*") if "site-packages" not in path.parts and path.is_file())
    return [path for path in files if not path.is_symlink() and SECRET.encode() in path.read_bytes()]


@pytest.fixture
def silent(orchestrate: Orchestrate) -> Callable[..., Answer]:
    """A command that must not say the secret, neither to people nor to programs."""

    def run(*argv: object) -> Answer:
        answer = orchestrate(*argv)
        assert SECRET not in answer.out + answer.err, answer.out + answer.err
        return answer

    return run


class Nothing(http.server.BaseHTTPRequestHandler):
    """An index that has no page for anything."""

    def do_GET(self) -> None:
        self.send_error(404)

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def empty() -> Iterator[str]:
    """The address of such an index, with a login in it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://user:{SECRET}@127.0.0.1:{server.server_address[1]}/simple"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_86_a_run_that_ends_well(
    silent: Callable[..., Answer],
    job: Job,
    linux: None,
    github: GitHub,
    hub: Hub,
    data: Path,
    world: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in TOKENS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ORCHESTRATE_TOKEN_HOSTS", hub.url.partition("://")[2])
    github.archive = release(TOOL + "# of the test of secrets\n")
    models = {"source": "org/m", "name": "m", "quantize": ["Q8_0"], "loras": [str(data / "lora-a")]}
    file = job(models, binaries={"backend": "cpu"})
    assert silent("run", file, "--verbose").code == 0
    assert hub.tokens, "the token was used"
    for argv in (("plan", file, "--json"), ("doctor", file), ("verify", "dist", "--deep"), ("run", file, "--json")):
        silent(*argv)
    kinds = ("source", "binaries", "views", "logs", "downloads")
    assert found(world, world.parent / "hf", *(shared_cache / kind for kind in kinds)) == []


@pytest.mark.parametrize("step", ["an index without PyTorch", "an index without the tree"])
def test_86_a_login_of_an_index(
    step: str,
    silent: Callable[..., Answer],
    job: Job,
    data: Path,
    world: Path,
    shared_cache: Path,
    empty: str,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = job(str(data / "tiny-llama"), binaries={"backend": "none"})
    assert silent("setup", file).code == 0
    lock = file.with_name("job.lock.yaml")
    kept = lock.read_bytes()
    if step == "an index without PyTorch":
        job(str(data / "tiny-llama"), binaries={"backend": "none"}, environment={"overrides": ["torch==2.13.0", "tqdm>=4"]})
    else:
        lock.unlink()
    before = lock.exists()
    cache = world / "cache"
    cache.mkdir()
    shutil.copy(shared_cache / "CACHEDIR.TAG", cache)
    with monkeypatch.context() as changed:
        for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
            changed.setenv(name, empty)
        changed.setenv("PIP_CONFIG_FILE", os.devnull)
        changed.setenv("PIP_FIND_LINKS", "")
        changed.setenv("ORCHESTRATE_TORCH_INDEX", empty)
        changed.setenv("UV_CACHE_DIR", str(world / "uv"))
        changed.setenv("ORCHESTRATE_CACHE_DIR", str(cache))
        if step != "an index without the tree":
            (cache / "source").symlink_to(shared_cache / "source")
        told(f"86 {step}", silent("lock", file))
        assert lock.exists() == before and (not before or lock.read_bytes() == kept)
    assert found(world, shared_cache / "logs") == []
    assert silent("lock", file).code == 0
