"""Versions, settings, proxies, certificates and the clock, as doctor tells them: nothing secret in it."""

from __future__ import annotations

import email.utils
import http.server
import os
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacpp_orchestrator.doctor import surroundings
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from tests.support import NOWHERE
from tests.support.answer import Answer

Clock = Callable[[float], str]


@pytest.fixture
def clock() -> Iterator[Clock]:
    """A server whose clock is so many seconds ahead of ours."""
    servers = []

    def serve(ahead: float) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            do_GET = do_HEAD

            def date_time_string(self, timestamp: float | None = None) -> str:
                return email.utils.formatdate(time.time() + ahead, usegmt=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://me:secret@127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(0, "agrees"), (200, "agrees"), (-3 * 86400, "3 days ahead of"), (3600, "60 minutes behind"), (10_000, "3 hours behind")],
)
def test_the_clock_is_held_against_a_server(ahead: float, said: str, clock: Clock) -> None:
    line = surroundings.clock([surroundings.offset(clock(ahead)), None])
    assert said in line.said and line.ok is (said == "agrees")
    assert line.ok or ("set this machine's clock" in line.remedy and line.cause == "clock")


def test_where_nothing_tells_the_time_none_is_wrong(clock: Clock) -> None:
    assert surroundings.offset(NOWHERE) is None
    assert surroundings.clock([None]).ok and surroundings.clock([]).ok


def test_doctor_says_that_the_clock_is_wrong(
    clock: Clock, orchestrate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", clock(7 * 86400))
    monkeypatch.setenv("ORCHESTRATE_GITHUB_API_URL", clock(7 * 86400))
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    lines = {line["name"]: line for line in orchestrate("doctor", "--json").json()}
    assert lines["clock"]["cause"] == "clock" and "7 days behind" in lines["clock"]["said"]


def test_variables_are_told_without_what_is_secret() -> None:
    environ = {
        "HF_TOKEN": "hf_abc",
        "ORCHESTRATE_TOKEN_HOSTS": "mirror:80",
        "PIP_INDEX_URL": "https://me:hunter2@index/simple?key=hunter2",
        "UV_INDEX": "a=https://me:hunter2@index/a https://index/b",
        "HTTPS_PROXY": "me:hunter2@proxy:3128",
        "UV_PUBLISH_PASSWORD": "hunter2",
        "HF_HUB_OFFLINE": "",
        "EDITOR": "vi",
    }
    said = surroundings.variables(environ)
    assert "hunter2" not in said and "hf_abc" not in said and "me" not in said.replace("name", "")
    assert "HF_TOKEN (set)" in said and "ORCHESTRATE_TOKEN_HOSTS=mirror:80" in said and "HTTPS_PROXY=proxy:3128" in said
    assert "PIP_INDEX_URL=https://index/simple" in said and "EDITOR" not in said and "OFFLINE" not in said
    assert surroundings.variables({}) == "none"


def test_settings_are_told_without_a_login() -> None:
    index = Index(index_urls=("https://me:hunter2@index/simple",), extra_index_urls=("https://more",), find_links=("/wheels",))
    said = surroundings.settings_said(Settings(cache=Path("unused"), huggingface=("https://me:hunter2@hub",), index=index))
    assert "packages https://index/simple https://more /wheels" in said and "hub https://hub;" in said and "hunter2" not in said


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_proxies_are_named_and_tried(no_proxies: pytest.MonkeyPatch, clock: Clock) -> None:
    assert [line.said for line in surroundings.proxies_said()] == ["none is set"]
    living = clock(0)
    no_proxies.setenv("http_proxy", living)
    no_proxies.setenv("https_proxy", "http://me:secret@127.0.0.1:9")
    no_proxies.setenv("no_proxy", "inside.example")
    lines = surroundings.proxies_said()
    assert [line.ok for line in lines] == [True, False] and not any("secret" in line.said for line in lines)
    assert "http://127.0.0.1:9 for https, not for inside.example does not answer" in lines[1].said and lines[1].cause == "proxy"
    assert surroundings.proxy_of("https://huggingface.co") == "http://127.0.0.1:9" == lines[1].place
    assert surroundings.proxy_of("https://inside.example/x") == "" == surroundings.proxy_of("file:///x")


def test_a_proxy_that_is_no_address(no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("https_proxy", "http://proxy:port")
    (line,) = surroundings.proxies_said()
    assert not line.ok and line.cause == "proxy"


def test_certificates_that_are_set(tmp_path: Path) -> None:
    there = tmp_path / "ca.pem"
    there.write_text("")
    settings = Settings(cache=tmp_path, index=Index(cert=str(there)))
    assert surroundings.certificates_said(settings, {})[0].said == f"cert={there}"
    assert surroundings.certificates_said(Settings(cache=tmp_path, index=Index()), {})[0].said == "the usual ones"
    (line,) = surroundings.certificates_said(settings, {"SSL_CERT_FILE": str(tmp_path / "gone.pem")})
    assert line.cause == "certificate" and "SSL_CERT_FILE names" in line.said and not line.ok
