from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.binaries import release as binaries_release
from llamacpp_orchestrator.binaries import selection
from llamacpp_orchestrator.binaries import selftest
from llamacpp_orchestrator.binaries.release import Asset
from llamacpp_orchestrator.binaries.release import Choice
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.host import Host
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.store import Store
from tests.support.programs import EARLY
from tests.support.programs import script
from tests.support.programs import shell
from tests.support.server import Route
from tests.support.server import Server
from tests.support.server import answer

DATA = Path(__file__).parents[1] / "data"
RELEASES = {each["tag"]: each for each in json.loads((DATA / "assets.json").read_text())}
CASES = json.loads((DATA / "asset-cases.json").read_text())
PLAIN = Settings(cache=Path("unused"), index=Index())


def nothing(text: str) -> None:
    pass


REPO = "https://github.com/ggml-org/llama.cpp"


def assets(tag: str) -> tuple[Asset, ...]:
    return tuple(Asset(name=name, url=f"https://x/{name}") for name in RELEASES.get(tag, {"assets": ()})["assets"])


def machine(system: str = "linux", arch: str = "x64", **fields: Any) -> Host:
    return Host(system=system, arch=arch, **{"cores": 4, "memory": 8_000_000_000, **fields})


# --- choosing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in list(case.values())[:5]))
def test_choose(case: dict[str, Any]) -> None:
    host, expected = machine(case["os"], case["arch"], cuda=case["cuda_driver"]), case["expect"]
    if "error" in expected:
        with pytest.raises(OrchestrateError) as caught:
            selection.choose(case["tag"], assets(case["tag"]), host, case["backend"])
        assert expected["error"] == caught.value.message or case["tag"] not in RELEASES
        assert all(each in caught.value.message for each in expected["alternatives"])
    else:
        chosen = selection.choose(case["tag"], assets(case["tag"]), host, case["backend"])
        assert chosen.archive.name == expected["archive"]
        assert (chosen.runtime.name if chosen.runtime else None) == expected["cudart"]
        assert chosen.minor_compat == case.get("minor_compat", False)
        assert chosen.reason and "\n" not in chosen.reason


@pytest.mark.parametrize(
    ("tag", "system", "fields", "cuda", "name", "said"),
    [
        # Minor version compatibility needs machine code for the GPU.
        ("b6000", "windows", {"cuda": "12.0", "capabilities": ("8.6",)}, "auto", "win-cuda-12.4", "minor version"),
        (
            "b6000",
            "windows",
            {"cuda": "12.0", "capabilities": ("8.6", "7.5")},
            "auto",
            "win-cpu",
            "newer driver than one for CUDA 12.0",
        ),
        ("b5000", "windows", {"cuda": "12.0", "capabilities": ("8.9",)}, "auto", "win-cuda-cu11.7", "newest for a driver"),
        ("b3878", "windows", {"cuda": "11.4", "capabilities": ("6.1",)}, "auto", "win-cuda-cu11.7.1", "minor version"),
        ("b3190", "windows", {"cuda": "11.4", "capabilities": ("8.6",)}, "auto", "win-avx2", "newer driver"),
        ("b6000", "windows", {"cuda": "12.0"}, "auto", "win-cuda-12.4", "not certain"),
        # Blackwell prefers a file with code made for it.
        ("b10985", "windows", {"cuda": "13.0", "capabilities": ("12.0",)}, "auto", "win-cuda-13.4", "minor version"),
        ("b7315", "windows", {"cuda": "13.0", "capabilities": ("12.0",)}, "auto", "win-cuda-12.4", "newest for"),
        ("b10970", "linux", {"cuda": "13.0", "capabilities": ("12.0",)}, "auto", "ubuntu-cuda-12.8", "newest for"),
        ("b10970", "linux", {"cuda": "13.0", "capabilities": ("12.1",)}, "auto", "ubuntu-cuda-13.3", "minor version"),
        # A CUDA version of one's own.
        ("b11434", "windows", {"cuda": "13.4"}, "12.4", "win-cuda-12.4", "newest for"),
        ("b11434", "windows", {"cuda": "13.4"}, "12", "win-cuda-12.4", "newest for"),
        # The C library decides too.
        ("b11434", "linux", {"cuda": "13.4", "libc": "glibc 2.35"}, "auto", "ubuntu-x64", "need glibc 2.38, here is 2.35"),
        ("b11434", "linux", {"cuda": "13.4", "libc": "glibc 2.39"}, "auto", "ubuntu-cuda-13.4", "newest for"),
        # What made automatic fall to the CPU is told.
        ("b3878", "linux", {"cuda": "12.6"}, "auto", "ubuntu-x64", "has no CUDA archive for linux"),
        ("b3878", "linux", {}, "auto", "ubuntu-x64", "no NVIDIA driver"),
    ],
)
def test_choose_automatically(tag: str, system: str, fields: dict[str, Any], cuda: str, name: str, said: str) -> None:
    chosen = selection.choose(tag, assets(tag), machine(system, **fields), "auto", cuda)
    assert chosen.archive.name.startswith(f"llama-{tag}-bin-{name}")
    assert said in chosen.reason


def test_choose_cuda_without_a_driver_when_the_version_is_given() -> None:
    chosen = selection.choose("b11434", assets("b11434"), machine(), "cuda", "12.8")
    assert (chosen.archive.name, chosen.backend) == ("llama-b11434-bin-ubuntu-cuda-12.8-x64.tar.gz", "cuda")
    assert "driver is unknown" in chosen.reason


@pytest.mark.parametrize(("backend", "word"), [("sycl", "sycl-fp32"), ("openvino", "openvino-2026.4.1"), ("vulkan", "vulkan")])
def test_choose_other_backends(backend: str, word: str) -> None:
    assert (
        selection.choose("b11434", assets("b11434"), machine(), backend).archive.name
        == f"llama-b11434-bin-ubuntu-{word}-x64.tar.gz"
    )


@pytest.mark.parametrize(
    ("tag", "host", "backend", "cuda", "message", "hint"),
    [
        ("b3878", machine(cuda="12.6"), "cuda", "auto", "no CUDA archive for linux x64", "from b10970 on"),
        ("b3878", machine(cuda="12.6"), "cuda", "auto", "no CUDA archive", "set binaries.backend to cpu or source"),
        ("b3878", machine(cuda="12.6"), "cuda", "auto", "no CUDA archive", "conversions need no GPU"),
        ("b3878", machine(), "vulkan", "auto", "no vulkan archive", "the release has llama-b3878-bin-ubuntu-x64.zip"),
        ("b3878", machine("windows"), "rocm", "auto", "win-hip-x64-gfx1030.zip", "vulkan or cpu"),
        ("b11434", machine(cuda="13.4"), "cuda", "11.8", "no CUDA 11.8 archive for linux x64 (it has 12.8, 13.4)", "vulkan"),
        ("b11434", machine(cuda="12.8"), "cuda", "13.4", "driver supports CUDA 12.8, archives of b11434 need 13.4", "vulkan"),
        ("b11434", machine(libc="musl"), "auto", "auto", "made for glibc", "set binaries.backend to source, or to none"),
        ("b11434", machine(arch="other"), "auto", "auto", "no archive for this platform", "the release has llama-b11434"),
        ("b11434", machine(), "none", "auto", "no release archive is used", "cpu"),
        ("b11434", machine(), "source", "auto", "no release archive is used", "cpu"),
    ],
)
def test_choose_refuses(tag: str, host: Host, backend: str, cuda: str, message: str, hint: str) -> None:
    with pytest.raises(OrchestrateError) as caught:
        selection.choose(tag, assets(tag), host, backend, cuda)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("version", ["12", ".", "1..2", "9" * 5000])
def test_names_with_odd_versions_are_no_archives(version: str) -> None:
    names = (f"llama-b11434-bin-ubuntu-cuda-{version}-x64.tar.gz", f"llama-b11434-bin-ubuntu-rocm-{version}-x64.tar.gz")
    for backend in ("cuda", "rocm"):
        with pytest.raises(OrchestrateError, match="no archive for this platform"):
            selection.choose("b11434", tuple(Asset(name=name, url="") for name in names), machine(cuda="13.4"), backend)


@pytest.mark.parametrize(
    ("tag", "system", "broken"), [("b4410", "linux", True), ("b3240", "macos", True), ("b4410", "windows", False)]
)
def test_archives_that_cannot_run(tag: str, system: str, broken: bool) -> None:
    word = {"linux": "ubuntu-x64", "macos": "macos-x64", "windows": "win-avx2-x64"}[system]
    files = (Asset(name=f"llama-{tag}-bin-{word}.zip", url="https://x"),)
    if broken:
        with pytest.raises(OrchestrateError, match="lack llama.cpp's own libraries"):
            selection.choose(tag, files, machine(system), "cpu")
    else:
        assert selection.choose(tag, files, machine(system), "cpu").archive == files[0]


def test_a_release_without_the_runtime_is_not_ready() -> None:
    files = tuple(asset for asset in assets("b11434") if not asset.name.startswith("cudart"))
    with pytest.raises(OrchestrateError, match="not the CUDA runtime archive"):
        selection.choose("b11434", files, machine(cuda="12.8"), "cuda")


@pytest.mark.parametrize(("tag", "build"), [("b3878", 3878), ("master-1fed755", 1), ("v1.2.3", selection.NEWEST)])
def test_build_number(tag: str, build: int) -> None:
    assert selection.build_number(tag) == build


SELECTABLE = re.compile(
    r"(cudart-.*|llama-.*-bin-(win-(cublas|cuda|-cu|vulkan|cpu|avx2|llvm-arm64\.|arm64-x64|hip-radeon|rocm|sycl)"
    r"|ubuntu-(x64|arm64|cuda|vulkan|rocm|sycl-fp32)|macos-(x64|arm64)\.).*)"
)


@pytest.mark.parametrize("tag", [tag for tag in RELEASES if tag != "b8124"])
def test_candidates_hold_all_that_could_be_chosen(tag: str) -> None:
    names = [name for name in RELEASES[tag]["assets"] if SELECTABLE.fullmatch(name)]
    if 7224 <= selection.build_number(tag) <= 7485:
        names = [name for name in names if "-win-" in name or name.endswith(".tar.gz")]
    assert set(names) <= set(binaries_release.candidates(tag))
    assert len(binaries_release.candidates(tag)) < 45


def test_no_candidates_for_other_names() -> None:
    assert binaries_release.candidates("v1.2.3") == ()


# --- a release on a server ----------------------------------------------------------------------------------------------


class Github(Server):
    """The release API and the downloads, on loopback."""

    def settings(self, cache: Path) -> Settings:
        return Settings(cache=cache, github=(self.url,), github_api=(f"{self.url}/api",), index=Index())

    def release(self, tag: str, *names: str, path: str = "/api/repos/ggml-org/llama.cpp/releases/tags/") -> None:
        found = [
            {"name": name, "size": 5, "digest": None, "browser_download_url": f"https://github.com/x/{name}"} for name in names
        ]
        self.routes[f"{path}{tag}"] = answer(200, json.dumps({"id": 7, "assets": found}).encode())


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[Github]:
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.001)
    with Github() as made:
        yield made


def test_fetch_assets(github: Github, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "T0KEN")
    listed = [
        {
            "name": "a b.zip",
            "size": 5,
            "digest": "sha256:" + "ab" * 32,
            "browser_download_url": "https://github.com/x",
            "state": "uploaded",
        },
        {"name": "c.zip", "size": 6, "digest": None, "browser_download_url": "https://github.com/y"},
        {"name": "half.zip", "size": 0, "digest": None, "browser_download_url": "https://github.com/z", "state": "starter"},
    ]
    github.routes["/api/repos/ggml-org/llama.cpp/releases/tags/b1%2F2"] = answer(200, json.dumps({"assets": listed}).encode())
    found = binaries_release.fetch_assets("b1/2", REPO + ".git", github.settings(tmp_path), nothing)
    where = "https://github.com/ggml-org/llama.cpp/releases/download/b1%2F2"  # no mirror: the list goes into the lock
    assert found == (
        Asset(name="a b.zip", url=f"{where}/a%20b.zip", size=5, sha256="ab" * 32),
        Asset(name="c.zip", url=f"{where}/c.zip", size=6),
    )
    assert "authorization" not in github.seen[0][2]
    plain = Settings(cache=tmp_path, github_api=(f"{github.url}/api",), index=Index())
    assert [asset.url for asset in binaries_release.fetch_assets("b1/2", REPO, plain, nothing)] == [
        "https://github.com/x",
        "https://github.com/y",
    ]
    elsewhere = binaries_release.fetch_assets(
        "b1/2", "https://git.example.org/ggml-org/llama.cpp", github.settings(tmp_path), nothing
    )
    assert [asset.url for asset in elsewhere] == ["https://github.com/x", "https://github.com/y"], "as that server says"


@pytest.mark.parametrize("name", ["GITHUB_TOKEN", "GH_TOKEN"])
def test_the_token_goes_to_the_api_of_github_only(
    github: Github, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    for each in ("GITHUB_TOKEN", "GH_TOKEN"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "T0KEN")
    # A proxy on loopback sees what would be sent to each host; it could not by https, so here the token was issued by http.
    monkeypatch.setattr(binaries_release, "GITHUB_API", "http://api.github.com")
    for host, token in (
        ("http://api.github.com", "Bearer T0KEN"),
        ("http://api.github.com.evil.test", ""),
        ("http://evil.test", ""),
    ):
        monkeypatch.setenv("http_proxy", github.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        path = f"{host}/repos/ggml-org/llama.cpp/releases/tags/b9"
        github.routes[path] = answer(200, b'{"assets": []}')
        assert (
            binaries_release.fetch_assets("b9", REPO, Settings(cache=tmp_path, github_api=(host,), index=Index()), nothing) == ()
        )
        method, asked, headers = github.seen[-1]
        assert (method, asked, headers.get("authorization", "")) == ("GET", path, token)


def test_fetch_assets_of_many_pages(github: Github, tmp_path: Path) -> None:
    names = [f"file{number}.zip" for number in range(130)]
    github.release("b9", *names[:30])
    base = "/api/repos/ggml-org/llama.cpp/releases"
    for page, part in ((1, names[:100]), (2, names[100:])):
        listed = [{"name": name, "size": 1, "browser_download_url": "https://github.com/x"} for name in part]
        github.routes[f"{base}/7/assets?per_page=100&page={page}"] = answer(200, json.dumps(listed).encode())
    assert [asset.name for asset in binaries_release.fetch_assets("b9", REPO, github.settings(tmp_path), nothing)] == names


LIMITED = answer(403, b"{}", X_RateLimit_Remaining="0", X_RateLimit_Reset="1700000000")


def test_a_spent_rate_limit_is_no_obstacle(github: Github, tmp_path: Path) -> None:
    github.routes["/api/repos/ggml-org/llama.cpp/releases/tags/b3878"] = LIMITED
    name = "llama-b3878-bin-ubuntu-x64.zip"
    path = f"/ggml-org/llama.cpp/releases/download/b3878/{name}"
    github.routes[path] = answer(302, Location="/store")
    github.routes["/store"] = answer(200, b"12345")
    assert binaries_release.fetch_assets("b3878", REPO, github.settings(tmp_path), nothing) == (
        Asset(name=name, url="https://github.com" + path, size=5),
    )


def test_a_login_page_that_answers_to_every_name_is_no_release(github: Github, tmp_path: Path) -> None:
    github.routes["/api/repos/ggml-org/llama.cpp/releases/tags/b3878"] = answer(200, b"<html>log in</html>")
    for name in (*binaries_release.candidates("b3878"), binaries_release.NO_ARCHIVE):
        github.routes[f"/ggml-org/llama.cpp/releases/download/b3878/{name}"] = answer(200, b"<html>log in</html>")
    with pytest.raises(NetworkError, match="login page"):
        binaries_release.fetch_assets("b3878", REPO, github.settings(tmp_path), nothing)


def test_a_spent_rate_limit_and_no_file(github: Github, tmp_path: Path) -> None:
    github.routes["/api/repos/ggml-org/llama.cpp/releases/tags/b3878"] = LIMITED
    with pytest.raises(NetworkError, match="resets at 2023-11-14 22:13 UTC") as caught:
        binaries_release.fetch_assets("b3878", REPO, github.settings(tmp_path), nothing)
    assert "GITHUB_TOKEN" in caught.value.hint
    nowhere = Settings(cache=tmp_path, github=("http://127.0.0.1:9",), github_api=(f"{github.url}/api",), index=Index())
    with pytest.raises(NetworkError, match="rate limit"):
        binaries_release.fetch_assets("b3878", REPO, nowhere, nothing)


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (answer(404, b"{}"), "has no release b3878, or it is still being filled"),
        (answer(401, b"{}"), "token is missing or not accepted"),
        (answer(200, b'{"message": "hello"}'), "not a release"),
        (answer(200, b"[]"), "not a release"),
        (
            answer(200, b'{"id": 1, "assets": [{"name": "a", "size": "5", "browser_download_url": "https://h/a"}]}'),
            "not a release",
        ),
    ],
)
def test_fetch_assets_refused(github: Github, tmp_path: Path, route: Route, said: str) -> None:
    github.routes["/api/repos/ggml-org/llama.cpp/releases/tags/b3878"] = route
    with pytest.raises(NetworkError, match=said):
        binaries_release.fetch_assets("b3878", REPO, github.settings(tmp_path), nothing)
    assert [command for command, _, _ in github.seen] == ["GET"]


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        (REPO, "ggml-org/llama.cpp"),
        (REPO + "/", "ggml-org/llama.cpp"),
        ("git@github.com:me/fork.git", "me/fork"),
        ("ssh://git@github.com/me/fork", "me/fork"),
        ("http://127.0.0.1:8000/mirror/ggml-org/llama.cpp.git", "ggml-org/llama.cpp"),
    ],
)
def test_owner_name(repo: str, expected: str) -> None:
    assert binaries_release._owner_name(repo) == expected


def test_a_repository_without_releases() -> None:
    with pytest.raises(JobError, match="names no GitHub repository"):
        binaries_release._owner_name("file:///srv/llama.cpp")


# --- installing ---------------------------------------------------------------------------------------------------------

PROGRAM = EARLY.encode()


def pack_tar(names: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            if name.endswith("/"):
                info.type, info.size = tarfile.DIRTYPE, 0
            elif content.startswith(b"->"):
                info.type, info.linkname, info.size = tarfile.SYMTYPE, content[2:].decode(), 0
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def pack_zip(names: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, content in names.items():
            info = zipfile.ZipInfo(name)
            link = content.startswith(b"->")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if link else 0
            file.writestr(info, content[2:] if link else content)
    return made.getvalue()


LAYOUTS = {
    "zip of Linux": ("llama-b1-bin-ubuntu-x64.zip", pack_zip, "build/bin/", "llama-quantize", "linux"),
    "flat tar": ("llama-b1-bin-ubuntu-x64.tar.gz", pack_tar, "./", "llama-quantize", "linux"),
    "tar with a folder": ("llama-b1-bin-ubuntu-x64.tar.gz", pack_tar, "llama-b1/", "llama-quantize", "linux"),
    "old program names": ("llama-b1-bin-macos-x64.zip", pack_zip, "build/bin/", "quantize", "macos"),
    "zip of Windows": ("llama-b1-bin-win-cuda-12.4-x64.zip", pack_zip, "", "llama-quantize.exe", "windows"),
}
RUNTIMES = {
    "linux": (
        "cudart-llama-b1-bin-ubuntu-cuda-12.8-x64.tar.gz",
        pack_tar,
        "cudart-llama-b1-bin-ubuntu-cuda-12.8-x64/libcudart.so.12",
    ),
    "macos": ("cudart.zip", pack_zip, "libcudart.dylib"),
    "windows": ("cudart-llama-bin-win-cuda-12.4-x64.zip", pack_zip, "cudart64_12.dll"),
}


def publish(folder: Path, name: str, content: bytes, known: bool = True) -> Asset:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return Asset(
        name=name, url=(folder / name).as_uri(), size=len(content), sha256=hashlib.sha256(content).hexdigest() if known else None
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("known", [True, False])
def test_install(tmp_path: Path, layout: str, known: bool) -> None:
    name, pack, top, program, system = LAYOUTS[layout]
    tops = {} if top in ("", "./") else {top.split("/")[0] + "/": b""}
    content = {**tops, f"{top}{program}": PROGRAM, f"{top}libllama.so": b"->libllama.so.0", f"{top}libllama.so.0": b"lib"}
    archive = publish(tmp_path / "site", name, pack(content), known)
    runtime_name, runtime_pack, runtime_file = RUNTIMES[system]
    runtime = publish(tmp_path / "site", runtime_name, runtime_pack({runtime_file: b"cuda"}), known)
    told: list[str] = []
    choice = Choice(archive=archive, runtime=runtime, reason="", backend="cuda")
    install.install(choice, tmp_path / "dest", Store(tmp_path), PLAIN, told.append)
    tool = install.find_tool(tmp_path / "dest", "llama-quantize", system)
    assert tool.name == program
    assert (tool.parent / Path(runtime_file).name).read_bytes() == b"cuda"
    assert (tool.parent / "libllama.so").read_bytes() == b"lib"
    assert os.access(tool, os.X_OK)
    total = f"{(archive.size + runtime.size) / 1e6:.1f}"
    assert told[-1] == f"{total} of {total} MB"
    assert list((tmp_path / "downloads").iterdir()) == []


def test_install_without_runtime_or_progress(tmp_path: Path) -> None:
    archive = publish(tmp_path / "site", "llama-b1-bin-ubuntu-x64.zip", pack_zip({"build/bin/llama-cli": PROGRAM}))
    install.install(
        Choice(archive=archive, runtime=None, reason="", backend="cpu"), tmp_path / "dest", Store(tmp_path), PLAIN, nothing
    )
    assert (tmp_path / "dest/build/bin/llama-cli").is_file()


def test_install_of_other_bytes(tmp_path: Path) -> None:
    archive = publish(tmp_path / "site", "llama-b1-bin-ubuntu-x64.zip", pack_zip({"llama-cli": PROGRAM}))
    (tmp_path / "site" / archive.name).write_bytes(pack_zip({"llama-cli": b"other"}))
    with pytest.raises(IntegrityError, match=str(archive.sha256)):
        install.install(
            Choice(archive=archive, runtime=None, reason="", backend="cpu"),
            tmp_path / "dest",
            Store(tmp_path),
            PLAIN,
            nothing,
        )
    assert not (tmp_path / "dest").exists()


def test_an_archive_that_cannot_be_unpacked_is_not_kept(tmp_path: Path) -> None:
    content = pack_zip({"llama-cli": PROGRAM})
    archive = publish(tmp_path / "site", "llama-b1-bin-ubuntu-x64.zip", content[: len(content) // 2])
    chosen = Choice(archive=archive, runtime=None, reason="", backend="cpu")
    with pytest.raises(IntegrityError, match="damaged"):
        install.install(chosen, tmp_path / "dest", Store(tmp_path), PLAIN, nothing)
    assert not install.file_of(archive, Store(tmp_path)).exists()


@pytest.mark.parametrize(
    ("there", "asked", "system", "found"),
    [
        ("llama-quantize", "llama-quantize", "linux", "llama-quantize"),
        ("quantize", "llama-quantize", "linux", "quantize"),
        ("llama-imatrix", "imatrix", "macos", "llama-imatrix"),
        ("main", "llama-cli", "linux", "main"),
        ("llama-cli.exe", "main", "windows", "llama-cli.exe"),
        ("llama-server.exe", "llama-server.exe", "windows", "llama-server.exe"),
        ("main", "llama-completion", "linux", "main"),
    ],
)
def test_find_tool(tmp_path: Path, there: str, asked: str, system: str, found: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / there).write_bytes(PROGRAM)
    assert install.find_tool(tmp_path, asked, system) == tmp_path / "bin" / found


def test_find_tool_lists_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "llama-cli").write_bytes(b"\x7fELF...")
    (tmp_path / "LICENSE").write_text("MIT")
    with pytest.raises(OrchestrateError, match="no program `llama-nothing`") as caught:
        install.find_tool(tmp_path, "llama-nothing", "linux")
    assert caught.value.hint == "it has llama-cli"
    with pytest.raises(OrchestrateError) as caught:
        install.find_tool(tmp_path, "llama-nothing", "windows")
    assert caught.value.hint == "it has no programs"


# --- the trial start ----------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for programs are shell scripts")


@posix
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("llama-cli", "echo loading\necho 'version: 3878 (d5ed2b92)' >&2\necho built", "version: 3878 (d5ed2b92)"),
        ("quantize", "echo 'usage: quantize [--help]'; exit 1", "quantize"),
        ("main", "echo 'error: unknown argument: --version' >&2; exit 1", "main"),
        ("llama-server", 'echo "version: $LD_LIBRARY_PATH"', "version: {root}"),
    ],
)
def test_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    script(tmp_path / name, text)
    assert selftest.probe(tmp_path, machine()) == said.format(root=tmp_path)


@posix
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            shell('echo "libc.so.6: version \\`GLIBC_2.38\' not found (required by x)" >&2; exit 1'),
            "needs GLIBC_2.38, newer .*glibc 2.36",
        ),
        (
            shell("echo 'x: error while loading shared libraries: libllama.so: cannot open it' >&2; exit 127"),
            "libllama.so is missing",
        ),
        (shell("echo 'dyld[1]: Library not loaded: @rpath/libllama.dylib' >&2; exit 1"), "missing: the package is inc"),
        (shell("echo 'x: error while loading shared libraries: libgomp.so.1: cannot' >&2; exit 127"), "library libgomp.so.1 is"),
        (shell("echo 'x: error while loading shared libraries: libc.so: failed to map segment' >&2; exit 127"), "noexec"),
        ("#!/nowhere/loader\n", "its loader /nowhere/loader is missing"),
        (shell("kill -4 $$"), "lacks instructions"),
        (shell("echo odd; exit 3"), "odd"),
        ("\x7fELF for another processor", "another processor than x64"),
    ],
)
def test_probe_says_why_it_cannot_start(tmp_path: Path, text: str, said: str) -> None:
    script(tmp_path / "llama-cli").write_text(text)
    with pytest.raises(OrchestrateError, match=f"(?s)llama-cli cannot start.*{said}"):
        selftest.probe(tmp_path, machine(libc="glibc 2.36"))


def test_probe_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(OrchestrateError, match="no program"):
        selftest.probe(tmp_path, machine())


def test_an_api_out_of_reach_is_no_matter_of_tokens(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    away = Settings(cache=tmp_path, github=(nowhere,), github_api=(nowhere,), index=Index(index_urls=(nowhere,)))
    with pytest.raises(NetworkError) as error:
        binaries_release.fetch_assets("b11434", "https://github.com/ggml-org/llama.cpp", away, nothing)
    assert "ORCHESTRATE_GITHUB_API_URL" in error.value.hint and "TOKEN" not in error.value.hint


@pytest.mark.skipif(os.name == "nt", reason="has other rights")
def test_programs_of_a_cache_that_was_restored_without_rights_can_be_started(tmp_path: Path) -> None:
    program, text, closed = tmp_path / "bin" / "llama-quantize", tmp_path / "LICENSE", tmp_path / "tool"
    program.parent.mkdir()
    program.write_bytes(b"\x7fELF")
    text.write_text("mine")
    closed.write_bytes(b"\x7fELF")
    closed.chmod(0o700)
    install.give_rights(tmp_path)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (program, closed)] == [0o755, 0o700]
    assert not os.access(text, os.X_OK)
