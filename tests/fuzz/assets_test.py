"""What GitHub's API, or whatever stands in its place, says of a release, and which archive is chosen of that."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.binaries import release
from llamacpp_orchestrator.binaries import selection
from llamacpp_orchestrator.binaries.selection import Asset
from llamacpp_orchestrator.system.host import Host
from llamacpp_orchestrator.util import download
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_text
from tests.fuzz.common import reading
from tests.fuzz.common import words
from tests.fuzz.server import saying
from tests.fuzz.server import settings

NAMES = (
    "llama-b11434-bin-ubuntu-x64.tar.gz", "llama-b11434-bin-ubuntu-cuda-12.8-x64.tar.gz", "llama-b11434-bin-win-cpu-x64.zip",
    "llama-b11434-bin-win-cuda-12.4-x64.zip", "cudart-llama-bin-win-cuda-12.4-x64.zip", "llama-b11434-bin-macos-arm64.tar.gz",
    "cudart-llama-b11434-bin-ubuntu-cuda-12.8-x64.tar.gz", "llama-b11434-bin-ubuntu-rocm-7.2-x64.tar.gz",
)  # fmt: skip
RELEASE: dict[str, Any] = {
    "id": 1,
    "tag_name": "b11434",
    "assets": [
        {
            "name": name,
            "state": "uploaded",
            "size": 5,
            "digest": "sha256:" + "1" * 64,
            "browser_download_url": f"https://github.com/ggml-org/llama.cpp/releases/download/b11434/{name}",
        }
        for name in NAMES
    ],
}
HOSTS = tuple(
    Host(system=system, arch=arch, libc="glibc 2.39", cores=2, memory=0, cuda=cuda, capabilities=("8.6",) if cuda else ())
    for system, arch, cuda in itertools.product(("linux", "windows", "macos"), ("x64", "arm64"), (None, "12.4"))
)
# Names as upstream's, with other things where its versions are.
versions = st.from_regex(r"[\d.]{0,8}", fullmatch=True) | st.sampled_from(("9" * 5000, "12", ".", "1..2"))
names = st.builds(
    lambda name, version: name.replace("12.4", version).replace("12.8", version).replace("7.2", version),
    st.sampled_from(NAMES),
    versions,
)


def chosen(assets: tuple[Asset, ...]) -> None:
    for host, backend in itertools.product(HOSTS, ("auto", "cuda", "rocm", "cpu")):
        reading(lambda host=host, backend=backend: selection.choose("b11434", assets, host, backend))  # type: ignore[misc]


@fuzzed(json_text(RELEASE, {"message": "Not Found"}))
def test_lists_of_a_release(text: bytes) -> None:
    with saying(**{"/repos": (text, {})}) as there:
        here = settings(there.url)
        assets = reading(lambda: release.fetch_assets("b1", "https://github.com/ggml-org/llama.cpp", here, print)) or ()
    for asset in assets:
        assert isinstance(asset.name, str) and isinstance(asset.url, str) and type(asset.size) is int
    chosen(assets)


@fuzzed(st.lists(names | words, max_size=12))
def test_names_of_archives(found: list[str]) -> None:
    chosen(tuple(Asset(name=name, url="https://h/x") for name in found))


HEADERS = ("Content-Length", "X-RateLimit-Reset", "Retry-After", "X-RateLimit-Remaining", "Location", "ETag", "Content-Encoding")
latin = st.sampled_from(("0", "-1", "²", "9" * 30, "1e5", "", "gzip", '"', "http://[", "/x", "x" * 3000)) | st.text(
    st.characters(min_codepoint=33, max_codepoint=255, exclude_categories=["Cc"]), max_size=10
)


@fuzzed(st.tuples(st.sampled_from(("200", "302", "401", "403", "404")), st.dictionaries(st.sampled_from(HEADERS), latin)))
def test_headers(said: tuple[str, dict[str, str]]) -> None:
    status, headers = said
    with saying(**{"/": (json.dumps(RELEASE).encode(), {"status": status, "Connection": "close"} | headers)}) as there:
        for ask in (download.get_json, download.head, download.probe):
            reading(lambda ask=ask: ask(f"{there.url}/x"))  # type: ignore[misc]
