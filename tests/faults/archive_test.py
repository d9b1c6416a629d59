"""Faults of the release's archive, 32 to 44, and of a disk that is too small for it: its list, its way here, what it holds."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.system import host
from llamacpp_orchestrator.system.settings import SERVERS
from llamacpp_orchestrator.util import archive
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util import store
from llamacpp_orchestrator.util.store import beside
from tests.support import NOWHERE
from tests.support import TAG
from tests.support.answer import Answer
from tests.support.archives import STRAYS
from tests.support.archives import File
from tests.support.archives import stray
from tests.support.archives import tarball
from tests.support.archives import zipped
from tests.support.disks import mounted
from tests.support.disks import possible
from tests.support.programs import IDLE
from tests.support.programs import NEWER
from tests.support.programs import TOOL
from tests.support.programs import shell
from tests.support.stage.github import GitHub
from tests.support.stage.github import Route
from tests.support.stage.github import git
from tests.support.stage.github import release
from tests.support.stage.hub import MODEL
from tests.support.stage.trees import SMALL
from tests.support.stage.trees import commit

Orchestrate = Callable[..., Answer]
Told = Callable[..., str]
Again = Callable[[], Answer]

ELSEWHERE = {
    33: "jobs/routes_test.py::test_an_archive_without_a_published_digest_is_pinned_by_its_first_download",
    38: "binaries/release_test.py::test_probe",  # llama-quantize, which ends with 1 after its usage
    39: "binaries/release_test.py::test_a_spent_rate_limit_is_no_obstacle",
    42: "util/download_test.py::test_fetch_goes_on_where_it_was_cut",
}
API, FILES = "/repos/", "/ggml-org/llama.cpp/releases/"
PAGE = b"<!DOCTYPE html>\n<html><body>Welcome to this network. Log in!</body></html>"
SECRET = "SWORDFISH"
GOOD = [(f"build/bin/{name}", IDLE.encode(), 0, "") for name in ("llama-cli", "llama-quantize")]
REAL = pytest.mark.skipif(platform.machine() != "x86_64", reason="it is about this processor")
pytestmark = pytest.mark.skipif(host.system() != "linux", reason="the texts name Linux's archive")
NAME = f"llama-{TAG}-bin-ubuntu-x64.tar.gz"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository like upstream's, where a server of github.com has it."""
    root = tmp_path_factory.mktemp("site")
    place = root / "ggml-org" / "llama.cpp"
    place.mkdir(parents=True)
    git("init", "-q", "-b", "master", at=place)
    commit(place, SMALL, TAG)
    git("config", "uploadpack.allowFilter", "true", at=place)
    return root


@contextlib.contextmanager
def serving(root: Path) -> Iterator[GitHub]:
    """A server of github.com and of its API on loopback, with a good archive."""
    with GitHub(root) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        server.archive = release(IDLE)
        yield server
        server.shutdown()


@pytest.fixture
def site(world: Path, upstream: Path, linux: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    """A mirror of github.com and of its API with a small tree behind it, and a cache that is not there yet."""
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world.parent / "cache"))
    monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git")
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    with serving(upstream) as server:
        monkeypatch.setenv("ORCHESTRATE_GITHUB_URL", server.url)
        monkeypatch.setenv("ORCHESTRATE_GITHUB_API_URL", server.url)
        yield server


@pytest.fixture
def cache(site: GitHub, world: Path) -> Path:
    return world.parent / "cache"


@pytest.fixture
def again(site: GitHub, world: Path, orchestrate: Orchestrate) -> Again:
    """The one command, always the same: it wants a program of the release."""
    write_job(world)
    return lambda: orchestrate("exec", world / "job.yaml", "--", "llama-cli", "--version")


def write_job(place: Path, **binaries: str) -> Path:
    """A job that asks for nothing but a tree and the programs."""
    (place / "model").mkdir(exist_ok=True)
    (place / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    (place / "venv" / "bin" / "python").touch()
    for name, content in MODEL.items():
        (place / "model" / name).write_bytes(content)
    asked = {"version": 1, "llama_cpp": {"tag": TAG}, "binaries": {"backend": "cpu"} | binaries, "environment": {"path": "venv"}}
    (place / "job.yaml").write_text(yaml.safe_dump(asked | {"models": ["./model"]}), encoding="utf-8")
    return place / "job.yaml"


def good(answer: Answer) -> bool:
    """Whether the program ran."""
    return answer.code == 0 and "version: 11434" in answer.out


def left(cache: Path) -> list[str]:
    """What a failure must not leave: entries without their mark, and files of no use to the next run."""
    entries = [path for path in cache.glob("binaries/*") if path.is_dir() and not beside(path).exists()]
    return [str(path) for path in (*entries, *cache.glob("downloads/*/*"), *cache.glob("downloads/*"))]


def accepted(orchestrate: Orchestrate, again: Again) -> bool:
    """Whether a release that was made anew is refused as such, and taken once somebody has accepted it as the text says."""
    refused = again()
    assert refused.code == 1 and "expected" in refused.err and "lock JOB --upgrade llama_cpp" in refused.err, refused.err
    return upgraded(orchestrate, again)


def upgraded(orchestrate: Orchestrate, again: Again) -> bool:
    """Whether all is well once the lock was made anew."""
    return orchestrate("lock", "job.yaml", "--upgrade", "llama_cpp").code == 0 and good(again())


def saying(content: bytes, status: int = 200, **headers: str) -> Callable[[Route], None]:
    """A route that answers with some bytes; a header of "" is left out."""

    def answer(route: Route) -> None:
        route.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            if value:
                route.send_header(name.replace("_", "-"), value)
        route.end_headers()
        with contextlib.suppress(ConnectionError):  # who has no room for it goes away
            route.wfile.write(content if route.command != "HEAD" else b"")

    return answer


# --- the list of a release ----------------------------------------------------------------------------------------------


def test_32_no_archive_of_a_kind(
    site: GitHub, world: Path, orchestrate: Orchestrate, again: Again, told: Told, cache: Path
) -> None:
    write_job(world, backend="vulkan")
    lock = world / "job.lock.yaml"
    said = told("32 no archive of this kind", again())
    assert f"llama-{TAG}-bin-ubuntu-x64.tar.gz" in said and not left(cache) and lock.exists()
    site.answers[API] = saying(b"", 404)
    second = again()
    assert second.code == 1 and "note: the locked list" in second.err and "no vulkan archive" in second.err
    site.answers.clear()
    before = lock_file.read(lock)
    site.platforms.append("ubuntu-vulkan")  # the release was still being filled
    assert orchestrate("exec", "job.yaml", "--", "llama-cli", "--version").code == 0
    after = lock_file.read(lock)
    assert before and after and after.assets[: len(before.assets)] == before.assets and len(after.assets) == 3


@pytest.mark.parametrize(("arch", "libc"), [("arm64", "glibc 2.36"), ("x64", "musl")])
def test_32_no_archive_for_a_machine(
    arch: str, libc: str, site: GitHub, again: Again, told: Told, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        found = host.Host(system="linux", arch=arch, libc=libc, cores=2, memory=8 * 10**9)
        other.setattr("llamacpp_orchestrator.lock.resolve.this_host", lambda: found)
        told(f"32 no archive for {arch} with {libc}", again())
    assert not left(cache) and good(again())


def test_32_no_release(site: GitHub, again: Again, told: Told, cache: Path) -> None:
    site.answers[API] = saying(b"{}", 404)
    told("32 no release of the tag", again())
    assert not left(cache)
    site.answers.clear()
    assert good(again())


def test_33_another_archive(site: GitHub, orchestrate: Orchestrate, again: Again, told: Told, cache: Path) -> None:
    assert orchestrate("lock", "job.yaml").code == 0 and orchestrate("exec", "job.yaml", "--", "llama-cli", "--version").code == 0
    first, site.archive = site.archive, release(IDLE + "# other\n")
    for mark in cache.glob("binaries/*.complete.json"):
        mark.unlink()
    answer = again()
    told("33 another digest", answer)
    assert {hashlib.sha256(each).hexdigest() for each in (first, site.archive)} == set(
        re.findall(r"\b[0-9a-f]{64}\b", answer.err)
    )
    assert not left(cache)
    site.archive = first
    assert good(again())


def test_33_no_mirror_has_it(
    site: GitHub, orchestrate: Orchestrate, again: Again, told: Told, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert orchestrate("lock", "job.yaml").code == 0
    with monkeypatch.context() as set_:
        places = [f"{NOWHERE}/{name}" for name in "abc"]
        set_.setenv("ORCHESTRATE_GITHUB_URL", " ".join([*places, site.url]))
        site.answers[FILES] = saying(b"", 404)
        said = told("33 five mirrors", again())
        assert "and 2 more places" in said
    site.answers.clear()
    assert good(again())


@pytest.mark.parametrize("digest", ["sha256:", "sha256:<html>", "sha256:" + "0" * 63, 7])
def test_33_a_digest_that_is_none(digest: Any, site: GitHub, again: Again, told: Told, cache: Path) -> None:
    listed = {"assets": [{"name": "a.zip", "size": 5, "digest": digest, "browser_download_url": "https://github.com/x"}]}
    site.answers[API] = saying(json.dumps(listed).encode())
    answer = again()
    if digest in ("sha256:", 7):  # as good as not published
        assert answer.code == 1 and "no cpu archive" in answer.err
    else:
        told("33 a digest that is none", answer)
    site.answers.clear()
    assert not left(cache) and good(again())


# --- what an archive holds ----------------------------------------------------------------------------------------------


def strayed(make: Callable[..., Path], number: int) -> Callable[[Path], Path]:
    """An archive with members of one kind that would lie beside its folder."""
    return lambda path: make(path, *stray(number, path.with_name("beside")))


DEVICES: dict[str, Callable[[Path], Path]] = {
    "tar device": lambda path: tarball(path, ("dev", b"", 0o644, ""), kind=tarfile.CHRTYPE),
    "tar pipe": lambda path: tarball(path, ("dev", b"", 0o644, ""), kind=tarfile.FIFOTYPE),
    "zip device": lambda path: zipped(path, ("dev", b"", 0o644, ""), kind=0o060000),
}
MAKERS: dict[str, Callable[[Path], Path]] = {
    **{f"tar {number}": strayed(tarball, number) for number in range(len(STRAYS))},
    **{f"zip {number}": strayed(zipped, number) for number in range(len(STRAYS))},
    **DEVICES,
}


@pytest.mark.parametrize("name", MAKERS)
def test_34_ways_out(
    name: str, site: GitHub, orchestrate: Orchestrate, again: Again, told: Told, cache: Path, world: Path
) -> None:
    site.ending = ".zip" if name.startswith("zip") else ".tar.gz"
    site.archive = MAKERS[name](world.parent / f"a{site.ending}").read_bytes()
    (world.parent / f"a{site.ending}").unlink()
    before = sorted(str(path) for path in world.parent.rglob("*") if cache not in (path, *path.parents))
    told(f"34 {name}", again())
    after = sorted(str(path) for path in world.parent.rglob("*") if cache not in (path, *path.parents))
    assert [path for path in after if path not in before] == [str(world / "job.lock.yaml")]
    assert not left(cache) and not list(world.parent.rglob("beside"))
    if name in ("tar 0", "zip device"):
        site.archive = zipped(world / "good.zip", *GOOD).read_bytes() if site.ending == ".zip" else release(IDLE)
        assert accepted(orchestrate, again)


def test_35_a_zip_that_does_not_say_what_runs(site: GitHub, again: Again, world: Path, cache: Path) -> None:
    site.ending, site.archive = ".zip", zipped(world / "a.zip", *GOOD).read_bytes()
    assert good(again())


def large_zip(path: Path) -> None:
    zipped(path, ("llama-cli", bytes(1_200_000), 0o755, ""))


def large_tar(path: Path) -> None:
    tarball(path, ("llama-cli", bytes(1_200_000), 0o755, ""))


def many_zip(path: Path) -> None:
    zipped(path, *((f"{number}", b"", 0o644, "") for number in range(12)))


def many_tar(path: Path) -> None:
    tarball(path, *((f"{number}", None, 0o755, "") for number in range(12)))


def long_header(path: Path) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("llama-cli")
        entry.pax_headers = {"comment": "x" * 30_000}
        tar.addfile(entry)


def long_map(path: Path) -> None:
    """A file with holes, and a long list of them."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        entry, content = tarfile.TarInfo("llama-cli"), b"10000\n" + b"0\n" * 20_000
        entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


def sparse(path: Path) -> None:
    """A file of which a megabyte is a hole."""
    entry = tarfile.TarInfo("llama-cli")
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    hole = b"%011o\0" % 1_200_000
    block[386:398], block[398:410], block[483:495] = hole, b"%011o\0" % 0, hole
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(gzip.compress(bytes(block) + bytes(1024)))


@pytest.mark.parametrize(
    ("name", "ending", "make", "limit"),
    [
        ("36 a zip too large", ".zip", large_zip, {}),
        ("36 a tar too large", ".tar.gz", large_tar, {}),
        ("36 a zip of too many", ".zip", many_zip, {"MOST_ENTRIES": 10}),
        ("36 a tar of too many", ".tar.gz", many_tar, {"MOST_ENTRIES": 10}),
        ("36 a header too long", ".tar.gz", long_header, {"LONGEST_HEADER": 10_000}),
        ("36 a hole too large", ".tar.gz", sparse, {}),
        ("36 a list too long", ".zip", many_zip, {"LONGEST_LIST": 400}),
        ("36 a map too long", ".tar.gz", long_map, {"LONGEST_HEADER": 10_000}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_36_more_than_a_cap(
    name: str, ending: str, make: Callable[[Path], None], limit: dict[str, int], site: GitHub, again: Again, told: Told,
    cache: Path, world: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The caps are lowered, so that small archives reach them."""
    make(world / f"a{ending}")
    site.ending, site.archive = ending, (world / f"a{ending}").read_bytes()
    monkeypatch.setitem(archive.unpack.__kwdefaults__, "cap", 1_000_000)
    for constant, value in limit.items():
        monkeypatch.setattr(archive, constant, value)
    assert "cap" in told(name, again()) and not left(cache)
    site.archive = zipped(world / "good.zip", *GOOD).read_bytes() if ending == ".zip" else release(IDLE)
    assert accepted(orchestrate, again)


def test_36_the_caps_are_the_promised_ones() -> None:
    promised = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    assert f"{archive.MOST_ENTRIES:,} entries" in promised


# --- its way here -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digests", [True, False], ids=["digest", "no digest"])
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("37 a page", saying(PAGE)),
        ("37 a page of no length", saying(PAGE, Content_Length="")),
        ("37 nothing", saying(b"")),
        ("37 something else", saying(b"hello")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_37_another_thing_instead_of_the_archive(
    name: str, answer: Callable[[Route], None], digests: bool, site: GitHub, again: Again, told: Told, cache: Path
) -> None:
    site.digests, site.answers[FILES] = digests, answer
    told(name, again())
    assert not left(cache)
    site.answers.clear()
    assert good(again())


@pytest.mark.parametrize("everywhere", [True, False])
def test_37_a_page_instead_of_the_list(everywhere: bool, site: GitHub, again: Again, told: Told, cache: Path) -> None:
    site.answers[API] = saying(PAGE)
    if everywhere:
        site.answers[FILES] = saying(PAGE)
        assert "web page" in told("37 a page instead of the list", again())
        assert not left(cache)
        site.answers.clear()
        assert good(again())
    else:  # the archives are there: what is asked instead is told
        answer = again()
        assert good(answer) and re.search("note: .* sent a web page instead of JSON.*by their names", answer.err)


def test_37_a_page_instead_of_a_repository(site: GitHub, again: Again, told: Told, cache: Path) -> None:
    site.answers["/ggml-org/llama.cpp/info/refs"] = saying(PAGE, Content_Type="text/html")
    told("37 a page instead of a repository", again())
    site.answers.clear()
    assert good(again())


def test_37_a_page_instead_of_an_index(
    site: GitHub, again: Again, told: Told, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as set_:
        set_.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "pypi")
        set_.setenv("UV_DEFAULT_INDEX", f"{site.url}/simple")
        set_.setenv("PIP_CONFIG_FILE", os.devnull)
        site.answers["/simple/"] = saying(PAGE, Content_Type="text/html")
        told("37 a page instead of an index", again())
    assert good(again())


def test_38_a_library_that_is_a_link_to_nothing(site: GitHub, orchestrate: Orchestrate, again: Again, told: Told) -> None:
    lacking = "error while loading shared libraries: libllama.so: cannot open shared object file: No such file or directory"
    text = shell(f'[ -e "${{0%/*}}/libllama.so" ] || {{ echo "$0: {lacking}" >&2; exit 127; }}', "echo version: 11434")
    files: list[File] = [(f"bin/{name}", text.encode(), 0o755, "") for name in ("llama-cli", "llama-quantize")]
    link: File = ("bin/libllama.so", b"", 0o777, "libllama.so.0")
    site.archive = packed(*files, link)
    told("38 a link to nothing", again())
    site.archive = packed(*files)
    assert not upgraded(orchestrate, again)
    told("38 no library", again())
    site.archive = packed(*files, link, ("bin/libllama.so.0", b"", 0o644, ""))
    assert upgraded(orchestrate, again)


def packed(*files: File) -> bytes:
    """A tar of some files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content, mode, target in files:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size, entry.linkname = mode, len(content or b""), target
            entry.type = tarfile.SYMTYPE if target else tarfile.REGTYPE
            tar.addfile(entry, io.BytesIO(content or b""))
    return made.getvalue()


LIMITS = {
    "39 the limit of the API": saying(b"{}", 403, X_RateLimit_Remaining="0", X_RateLimit_Reset="4102444800"),
    "39 too many requests": saying(b"{}", 429, X_RateLimit_Reset="4102444800", Retry_After="3600"),
    "39 a pause": saying(b"{}", 403, Retry_After="600"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_39_a_limit(name: str, site: GitHub, again: Again, told: Told, cache: Path) -> None:
    site.answers |= {API: LIMITS[name], FILES: saying(b"", 404)}
    said = told(name, again())
    assert "GITHUB_TOKEN" in said and ("resets at 2100-01-01" in said or "try again in" in said) and not left(cache)
    assert sum(path.startswith(API) for path in site.seen) == 1, "who names a time is not asked again before it"
    site.answers.clear()
    assert good(again())


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("netrc", [True, False], ids=["netrc", "no netrc"])
def test_40_44_a_token_stays_where_it_belongs(
    name: str, netrc: bool, site: GitHub, upstream: Path, again: Again, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, dict[str, str]]] = []

    def listening(answer: Callable[[Route], None]) -> Callable[[Route], None]:
        def listen(route: Route) -> None:
            seen.append((route.server.server_address[1], dict(route.headers)))
            answer(route)

        return listen

    if netrc:
        (world / "netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
        monkeypatch.setenv("NETRC", str(world / "netrc"))
    monkeypatch.setenv("GITHUB_TOKEN", "T0KEN")
    monkeypatch.setenv("ORCHESTRATE_TOKEN_HOSTS", f"127.0.0.1:{site.server_address[1]}")
    with serving(upstream) as other:
        there = f"http://{name}:{other.server_address[1]}"
        site.answers[API] = listening(lambda route: saying(b"", 302, Location=there + route.path)(route))
        other.answers[API] = listening(lambda route: route.reply(200, json.dumps(site_release(site)).encode()))
        answer = again()
    assert good(answer), answer.err
    ports = [port for port, _ in seen]
    assert ports == [site.server_address[1], other.server_address[1]]
    assert seen[0][1]["Authorization"] == "Bearer T0KEN", "and not what ~/.netrc has for the host"
    assert "T0KEN" not in str(seen[1]) and SECRET not in str(seen) and "Authorization" not in seen[1][1]


def site_release(site: GitHub) -> dict[str, Any]:
    """What the API of a server lists."""
    place = f"{site.url}/ggml-org/llama.cpp/releases/download/{TAG}"
    digest = "sha256:" + hashlib.sha256(site.archive).hexdigest()
    asset = {"name": NAME, "size": len(site.archive), "digest": digest, "browser_download_url": f"{place}/{NAME}"}
    return {"assets": [asset]}


def test_41_a_server_that_calls_the_archive_packed(site: GitHub, again: Again) -> None:
    site.answers[FILES] = saying(site.archive, Content_Encoding="gzip")
    assert good(again())


@pytest.mark.parametrize("known", ["digest", "size", "nothing"])
def test_42_a_body_that_is_cut(known: str, site: GitHub, again: Again, told: Told, cache: Path, world: Path) -> None:
    site.digests, half = known == "digest", site.archive[: len(site.archive) // 2]
    if known == "nothing":
        site.answers[API] = LIMITS["39 the limit of the API"]
    site.answers[f"{FILES}download/{TAG}/{NAME}"] = saying(half, Content_Length="")
    site.answers[FILES] = saying(b"", 404)
    told(f"42 cut, {known} known", again())
    parts = list(cache.glob("downloads/*/*"))
    assert [path.suffix for path in parts] == ([] if known == "nothing" else [".part"]), "kept to go on with, if that can be told"
    lock = lock_file.read(world / "job.lock.yaml")
    assert not lock or not [each for each in lock.assets if each.sha256 == hashlib.sha256(half).hexdigest()], "no half is locked"
    site.answers.clear()
    assert good(again())


def endless(tar: bytes) -> bytes:
    """A tar without the empty blocks at its end."""
    content = tar.rstrip(b"\0")
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "without its sums": lambda whole: whole[:-8],
    "of another sum": lambda whole: whole[:-8] + bytes([whole[-8] ^ 255]) + whole[-7:],
    "without an end": lambda whole: gzip.compress(endless(gzip.decompress(whole))),
}


@pytest.mark.parametrize(("name", "mirrored"), [*((name, False) for name in SPOILT), ("of another sum", True)])
def test_42_an_archive_that_is_not_whole_and_has_no_digest(
    name: str, mirrored: bool, site: GitHub, upstream: Path, again: Again, told: Told, cache: Path, world: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    site.digests, whole = False, site.archive
    site.archive = SPOILT[name](whole)
    with serving(upstream) as other:
        if mirrored:
            monkeypatch.setenv("ORCHESTRATE_GITHUB_URL", f"{site.url} {other.url}")
        answer = again()
    if mirrored:
        assert good(answer) and f"{NAME} is damaged" in answer.err, answer.err
    else:
        told("42 not whole, no digest known", answer)
    lock = lock_file.read(world / "job.lock.yaml")
    bad, digests = hashlib.sha256(site.archive).hexdigest(), {asset.sha256 for asset in lock.assets} if lock else set()
    assert bad not in digests and not left(cache)
    site.archive = whole
    assert good(again())


FOREIGN = ("complete.json", "content.sha256", "complete.json/below", ".complete.json", "CACHEDIR.TAG", "job.lock.yaml")


@pytest.mark.parametrize("name", FOREIGN)
def test_an_archive_with_a_file_named_as_a_mark_of_ours(
    name: str, site: GitHub, again: Again, cache: Path, world: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.archive = packed((name, b'{"kind": "binaries", "key": "k", "about": ""}', 0o644, ""), *GOOD)
    assert orchestrate("lock", world / "job.yaml").code == 0
    with monkeypatch.context() as patch:
        # As if the process had gone once the first file lay there: nothing is swept.
        unpack, remove = archive.unpack, store.remove

        def half(file: Path, dest: Path) -> None:
            unpack(file, dest, keep=lambda path: path == name)
            patch.setattr(store, "remove", lambda path: None)
            raise KeyboardInterrupt

        patch.setattr(archive, "unpack", half)
        assert again().code == 130
    assert store.remove is remove and list(cache.glob(f"binaries/*/{name}")) and not list(cache.glob("binaries/*.complete.json"))
    assert good(again()) and good(again())


@pytest.mark.parametrize("damage", ["cut", "empty", "folder", "newer", "a program cut", "a program gone", "of another"])
def test_a_mark_that_does_not_fit_is_none(damage: str, site: GitHub, again: Again, cache: Path) -> None:
    assert good(again())
    mark, program = next(cache.glob("binaries/*.complete.json")), next(cache.glob("binaries/*/**/llama-cli"))
    text, code = mark.read_text(encoding="utf-8"), program.read_bytes()
    if damage == "folder":
        mark.unlink()
        (mark / "below").mkdir(parents=True)
    elif damage == "a program gone":
        program.unlink()
    elif damage == "a program cut":
        program.write_bytes(code[:-1])
    else:
        other = {
            "cut": text[:-9],
            "empty": "",
            "newer": text.replace(":1,", ":2,", 1),
            "of another": text.replace("binaries", "b"),
        }
        assert other[damage] != text
        mark.write_text(other[damage], encoding="utf-8")
    site.seen.clear()
    assert good(again()) and mark.read_text(encoding="utf-8") == text and program.read_bytes() == code
    assert any(NAME in path for path in site.seen), "it was made anew"


def test_the_mark_of_an_older_version_is_none(site: GitHub, again: Again, cache: Path) -> None:
    assert good(again())
    mark = next(cache.glob("binaries/*.complete.json"))
    entry = mark.with_name(mark.name.removesuffix(".complete.json"))
    (entry / "complete.json").write_text(f'{{"kind": "binaries", "key": "{entry.name}", "about": ""}}\n', encoding="utf-8")
    mark.unlink()
    next(entry.glob("**/llama-cli")).write_text("half", encoding="utf-8")
    assert good(again()) and mark.is_file() and not (entry / "complete.json").exists()


# --- what cannot run here -----------------------------------------------------------------------------------------------


def elf(machine: int) -> bytes:
    """The beginning of a program for some processor."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(200)


def foreign() -> bytes:
    """A real program of this machine, which asks for the loader of another C library."""
    text, loader = Path("/bin/true").read_bytes(), b"/lib64/ld-linux-x86-64.so.2\0"
    assert loader in text
    return text.replace(loader, b"/lib/ld-musl-x86_64.so.1".ljust(len(loader), b"\0"))


@REAL
@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("43 another processor", elf(183), "arm64"),
        ("43 a processor that nobody knows", elf(999), "processor"),
        ("43 another C library", foreign, "/lib/ld-musl-x86_64.so.1"),
        ("43 a newer C library", NEWER.encode(), "GLIBC_2.99"),
        ("43 no word", shell("exit 3").encode(), "exit code 3"),
        ("43 many words", shell("seq 50", "echo at last >&2", "exit 3").encode(), "at last"),
        ("43 an instruction", shell("kill -4 $$").encode(), "instructions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_43_a_program_that_cannot_start(
    name: str, text: Any, named: str, site: GitHub, orchestrate: Orchestrate, again: Again, told: Told, cache: Path
) -> None:
    content = text() if callable(text) else text
    site.archive = packed(*((f"bin/{tool}", content, 0o755, "") for tool in ("llama-cli", "llama-quantize")))
    answer = again()
    answer.err = re.sub(r"`?/\S*/bin/llama-cli", "<tool>", answer.err)
    assert named in told(name, answer) and "hint:" in answer.err
    site.archive = release(IDLE)
    assert upgraded(orchestrate, again)


# --- disks, neighbours and logins ---------------------------------------------------------------------------------------

small = pytest.mark.skipif(not possible(), reason="only root on Linux can make a small disk")


@small
@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
@pytest.mark.parametrize("part", ["the download", "the download, of no size", "what it holds"])
def test_58_a_disk_that_is_too_small(
    part: str, ending: str, site: GitHub, again: Again, told: Told, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = world.parent / "disk"
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(disk / "cache"))
    more = bytes(9_000_000) if part == "what it holds" else os.urandom(9_000_000)
    files: list[File] = [("bin/llama-cli", IDLE.encode(), 0o755, ""), ("bin/more", more, 0o644, "")]
    made = (zip_of if ending == ".zip" else tarball)(world / f"a{ending}", *files)
    site.ending, site.archive = ending, made.read_bytes()
    name = f"llama-{TAG}-bin-ubuntu-x64{ending}"
    if part.endswith("no size"):
        site.platforms.clear()
        listed = {
            "name": name,
            "size": 0,
            "digest": None,
            "browser_download_url": f"https://github.com{FILES}download/{TAG}/{name}",
        }
        site.answers |= {API: saying(json.dumps({"assets": [listed]}).encode()), FILES: saying(site.archive, Content_Length="")}
    with mounted(disk, 4):
        answer = again()
        answer.err = re.sub(r"(?<=binaries/)[0-9a-f]{32}", "<key>", answer.err)
        answer.err = re.sub(r"[\d.]+ MB(?= missing)|(?<=have )[\d.]+ [kM]?B", "<space>", answer.err)
        said = told(f"58 {part}{'' if ending == '.tar.gz' else ', zip'}", answer)
        assert "have" in said and ("need 9.0 MB" in said or part.endswith("no size"))
        kept = [path.name for path in (disk / "cache").glob("downloads/*/*")]
        assert kept == ([name] if part == "what it holds" else []), "a whole archive need not be fetched again"
        assert not list((disk / "cache").glob("binaries/*"))
        subprocess.run(["mount", "-o", "remount,size=80m", str(disk)], check=True)
        assert good(again()) and not left(disk / "cache")


def zip_of(path: Path, *files: File) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content, _, _ in files:
            zipped.writestr(name, content or b"")
    return path


@REAL
def test_57_two_runs_that_fetch_one_archive(site: GitHub, world: Path, cache: Path) -> None:
    site.digests, archive, now, most = False, site.archive, set[int](), list[int]()

    def slow(route: Route) -> None:
        now.add(id(route))
        most.append(len(now))
        time.sleep(0.3)  # long enough for the other to ask, if it may
        saying(archive)(route)
        now.discard(id(route))

    site.answers[FILES] = slow
    jobs = []
    for name in ("one", "two"):
        (world / name).mkdir()
        jobs.append(write_job(world / name))
    words = (sys.executable, "-m", "llamacpp_orchestrator", "exec")
    runs = [subprocess.Popen([*words, job, "--", "llama-cli", "--version"], stdout=-1, stderr=-1, text=True) for job in jobs]
    for run in runs:
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0 and "version: 11434" in out, err
    assert set(most) == {1} and not left(cache)
    first, second = (lock_file.read(lock_file.path_for(job)) for job in jobs)
    assert first and second and first.assets == second.assets


NAMES = (*(variable for variable, _ in SERVERS.values()), "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")
WRONG = {
    "no end of an address": f"http://me:{SECRET}@[::1/x",
    "no scheme": f"me:{SECRET}@host/x",
    "a slash in it": f"http://me:{SECRET}/{SECRET}@host/x",
    "a hash in it": f"http://me:{SECRET}#{SECRET}@host/x",
    "a comma in it": f"http://me:{SECRET},{SECRET}@host/x",
    "no host": f"http://me:{SECRET}@",
    "another scheme": f"ftp://me:{SECRET}@host/x",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_86_a_login_in_an_address_that_is_none(
    wrong: str, again: Again, told: Told, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    for name in NAMES:
        with monkeypatch.context() as set_:
            set_.setenv(name, WRONG[wrong])
            answer = again()
            assert SECRET not in answer.err + answer.out, name
            if name == "ORCHESTRATE_GITHUB_URL":
                told(f"86 a login, {wrong}", answer, code=2)
            allowed = (0, 2) if wrong == "a comma in it" else (2,)  # only some are lists with commas
            assert answer.code in allowed and (name in answer.err or not answer.code), answer.err
    assert good(again())


@pytest.mark.parametrize("wrong", WRONG)
def test_86_a_login_in_a_job(wrong: str, again: Again, told: Told, world: Path) -> None:
    file = world / "job.yaml"
    kept = file.read_text(encoding="utf-8")
    asked = yaml.safe_load(kept)
    asked["llama_cpp"]["repo"] = WRONG[wrong]
    file.write_text(yaml.safe_dump(asked), encoding="utf-8")
    said = told(f"86 a login in a job, {wrong}", again(), code=2)
    assert SECRET not in said
    file.write_text(kept, encoding="utf-8")
    assert good(again())


def test_86_a_login_that_works_and_one_of_a_mirror_that_is_down(
    site: GitHub, again: Again, told: Told, world: Path, cache: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, down = site.url.replace("//", f"//me:{SECRET}@"), NOWHERE.replace("//", f"//me:{SECRET}@")
    kept = os.environ["ORCHESTRATE_GITHUB_URL"]
    for variable in ("ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_GITHUB_API_URL"):
        monkeypatch.setenv(variable, down)
    answer = again()
    answer.err = re.sub(r"(?<=/': ).*", "<what curl says>", answer.err)
    assert SECRET not in answer.err + told("86 a mirror that is down", answer)
    for variable in ("ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_GITHUB_API_URL"):
        monkeypatch.setenv(variable, f"{down} {named}")
    seen: list[str] = []

    def look(route: Route) -> None:
        seen.append(route.headers.get("Authorization", ""))
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                seen.extend([text] if SECRET in (text := file.read_text(errors="replace")) else [])
        route.git(b"")

    site.answers["/ggml-org/llama.cpp/info/refs"] = look
    answer = again()
    assert good(answer) and "note: " in answer.err and SECRET not in answer.err
    assert set(seen) == {f"Basic {base64.b64encode(f'me:{SECRET}'.encode()).decode()}"}, "and in no argument of a program"
    site.answers.clear()
    with monkeypatch.context() as proxies:
        for variable in ("http_proxy", "https_proxy", "no_proxy"):
            proxies.setenv(variable, "" if variable == "no_proxy" else down)
        answer = orchestrate("lock", "job.yaml", "--upgrade", "all")
        assert answer.code == 1 and SECRET not in answer.err
    monkeypatch.setenv("HF_ENDPOINT", named)
    for words in (("doctor", "job.yaml"), ("doctor", "job.yaml", "--json"), ("doctor",), ("plan", "job.yaml")):
        looked = orchestrate(*words)
        assert SECRET not in looked.out + looked.err, words
    files = [path for place in (cache, world) for path in place.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if SECRET.encode() in path.read_bytes()]
    monkeypatch.setenv("ORCHESTRATE_GITHUB_URL", kept)
    assert good(again())


PIP_FILES = {
    "no section": f"index-url = http://me:{SECRET}@host",
    "no value": f"[global]\nindex-url\nme:{SECRET}@host",
    "no end": "[global]\n[global",
}


@pytest.mark.parametrize("wrong", PIP_FILES)
def test_86_a_login_in_a_file_of_pip(wrong: str, again: Again, told: Told, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "pip.conf").write_text(PIP_FILES[wrong], encoding="utf-8")
    with monkeypatch.context() as set_:
        set_.setenv("PIP_CONFIG_FILE", str(world / "pip.conf"))
        assert SECRET not in told(f"86 a file of pip, {wrong}", again(), code=2)
    assert good(again())


def test_33_a_run_whose_archive_is_another_leaves_the_outputs_alone(
    github: GitHub, linux: None, orchestrate: Orchestrate, job: Callable[..., Path], data: Path, told: Told, world: Path,
    shared_cache: Path,
) -> None:  # fmt: skip
    github.archive = release(TOOL + "# of a run\n")

    def run(*types: str) -> Answer:
        model = {"source": str(data / "tiny-llama"), "outtype": "f16", "quantize": list(types)}
        return orchestrate("run", job(model, binaries={"backend": "cpu"}, name="first.yaml"))  # it has most of its lock already

    assert run("Q8_0").code == 0
    before = {path.name: path.read_bytes() for path in (world / "dist").iterdir()}
    for tool in (shared_cache / "binaries").glob("*/llama-*/llama-cli"):
        if "# of a run" in tool.read_text(encoding="utf-8"):
            beside(tool.parents[1]).unlink()
    kept, github.archive = github.archive, release(TOOL + "# of another\n")
    told("33 another digest, in a run", run("Q8_0", "Q4_K_M"))
    assert {path.name: path.read_bytes() for path in (world / "dist").iterdir()} == before
    github.archive = kept
    assert run("Q8_0", "Q4_K_M").code == 0 and len(list((world / "dist").glob("*Q4_K_M.gguf"))) == 1
