"""What libraries would read of the environment: put right, or named, before one of them reads it."""

from __future__ import annotations

import re
from pathlib import Path

import certifi
import msgspec
import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system import surroundings

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
# Every variable of huggingface_hub, uv, pip, git and requests that we honour, with a value that it may have.
HONOURED = {
    "ALL_PROXY": "socks5h://127.0.0.1:9",
    "CURL_CA_BUNDLE": "",
    "GIT_SSL_CAINFO": "",
    "GITHUB_TOKEN": "ghp_x",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HOME": "/tmp/hf",
    "HF_HUB_CACHE": "/tmp/hf/hub",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DOWNLOAD_TIMEOUT": "30",
    "HF_HUB_ETAG_TIMEOUT": "30",
    "HF_HUB_OFFLINE": "0",
    "HF_TOKEN": "hf_x",
    "HTTPS_PROXY": "http://u:p@127.0.0.1:9",
    "HTTP_PROXY": "127.0.0.1:9",
    "NO_PROXY": "localhost",
    "ORCHESTRATE_CACHE_DIR": "/tmp/c",
    "ORCHESTRATE_GITHUB_API_URL": "http://127.0.0.1:9",
    "ORCHESTRATE_GITHUB_URL": "http://127.0.0.1:9",
    "ORCHESTRATE_LIMIT_MEMORY": "8G",
    "ORCHESTRATE_LIMIT_MINUTES": "60",
    "ORCHESTRATE_LLAMA_CPP_FROM": "pypi",
    "ORCHESTRATE_MEMORY": "8G",
    "ORCHESTRATE_TOKEN_HOSTS": "mirror.example",
    "ORCHESTRATE_TORCH_INDEX": "http://127.0.0.1:9",
    "PIP_CERT": "",
    "PIP_EXTRA_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_FIND_LINKS": "/tmp/wheels",
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "REQUESTS_CA_BUNDLE": "",
    "SSL_CERT_FILE": "",
    "UV_CONCURRENT_DOWNLOADS": "4",
    "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
    "UV_HTTP_TIMEOUT": "30",
    "UV_INDEX": "http://127.0.0.1:9/simple",
    "UV_NATIVE_TLS": "true",
    "UV_OFFLINE": "0",
}
FREE = {"HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_XET", "HF_HUB_OFFLINE"}  # words that mean no: nothing is wrong there
PATHS = {"HF_HOME", "HF_HUB_CACHE", "ORCHESTRATE_CACHE_DIR", "PIP_FIND_LINKS", "NO_PROXY", "ORCHESTRATE_TOKEN_HOSTS"}


def read(environ: dict[str, str], tmp_path: Path) -> settings.Settings:
    given = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", **environ}
    surroundings.settle(given)
    return settings.load(given)


@pytest.mark.parametrize("name", HONOURED)
def test_blanks_mean_nothing_and_quotes_are_named(name: str, tmp_path: Path) -> None:
    value = HONOURED[name]
    if not value:
        (tmp_path / "ca.pem").write_text(PEM)
        value = str(tmp_path / "ca.pem")
    plain = read({name: value}, tmp_path)
    assert read({name: f"  {value}\r\n"}, tmp_path) == plain
    assert read({name: ""}, tmp_path) == read({name: " \t"}, tmp_path) == read({}, tmp_path)
    for quote in "'\"":
        with pytest.raises(JobError) as caught:
            read({name: f"{quote}{value}{quote}"}, tmp_path)
        assert name in caught.value.message and "without the quotes" in caught.value.hint and value not in caught.value.message


@pytest.mark.parametrize("name", sorted(set(HONOURED) - FREE - PATHS))
def test_nonsense_is_named_before_a_library_reads_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        read({name: "no sense ü"}, tmp_path)
    assert name in caught.value.message and caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"ALL_PROXY": "socks://h:1"}, {"ALL_PROXY": "socks5h://h:1"}),
        ({"all_proxy": "SOCKS://u:p@h:1/"}, {"all_proxy": "socks5h://u:p@h:1/"}),
        ({"HTTPS_PROXY": "h:3128"}, {"HTTPS_PROXY": "http://h:3128"}),
        ({"https_proxy": "[::1]:3128"}, {"https_proxy": "http://[::1]:3128"}),
        ({"HTTP_PROXY": "https://h"}, {"HTTP_PROXY": "https://h"}),
        ({"HTTP_PROXY": "http://h:1", "http_proxy": ""}, {}),  # curl's way to take a proxy back
        ({"NO_PROXY": " * "}, {"NO_PROXY": "*"}),
        ({"PS1": "' '", "EDITOR": ""}, {"PS1": "' '", "EDITOR": ""}),  # none of ours
    ],
)
def test_proxies_are_written_as_all_libraries_read_them(given: dict[str, str], meant: dict[str, str]) -> None:
    assert surroundings.readable(given) == meant


@pytest.mark.parametrize(
    "text", ["ftp://h:1", "socks4://h:1", "http://h:abc", "http://", "h p:1", "http://h:0", "http://h:99999"]
)
def test_what_is_no_proxy_is_named_without_its_login(text: str) -> None:
    with pytest.raises(JobError, match="HTTPS_PROXY") as caught:
        surroundings.readable({"HTTPS_PROXY": text.replace("://h", "://u:secret@h")})
    assert "secret" not in caught.value.message and "http://proxy.example:3128" in caught.value.hint


def test_where_nobody_has_a_home_only_a_place_for_the_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(surroundings, "has_home", lambda environ: False)
    with pytest.raises(JobError) as caught:
        surroundings.settle({})
    assert "ORCHESTRATE_CACHE_DIR" in caught.value.hint
    environ = {"ORCHESTRATE_CACHE_DIR": str(tmp_path / "c")}
    surroundings.settle(environ)
    assert environ["HOME"] == str(tmp_path / "c" / "home") and not (tmp_path / "c").exists()
    assert settings.load({**environ, "PIP_CONFIG_FILE": "/dev/null"}).cache == tmp_path / "c"


@pytest.mark.parametrize(
    ("variable", "shared"),
    [
        ("PIP_CERT", {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}),
        ("GIT_SSL_CAINFO", {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}),
        ("SSL_CERT_FILE", {"REQUESTS_CA_BUNDLE"}),
        ("REQUESTS_CA_BUNDLE", {"SSL_CERT_FILE"}),
        ("CURL_CA_BUNDLE", {"SSL_CERT_FILE"}),
        ("", {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}),  # by config.yaml or pip's file
    ],
)
def test_certificates_of_one_stack_serve_all(variable: str, shared: set[str], tmp_path: Path) -> None:
    own = tmp_path / "ca.pem"
    own.write_text(PEM)
    index = settings.Index(cert=None if variable else str(own))
    environ = {variable: str(own)} if variable else {}
    surroundings.share_certificates(environ, settings.Settings(cache=tmp_path / "cache", index=index))
    assert environ.keys() - {variable} == shared and (not variable or environ[variable] == str(own))
    for name in shared:  # what was trusted before stays so
        assert Path(environ[name]).read_text() == Path(certifi.where()).read_text() + "\n" + PEM
    before = dict(environ)
    surroundings.share_certificates(environ, settings.Settings(cache=tmp_path / "cache", index=index))
    assert environ == before


def test_without_certificates_nothing_is_set(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    surroundings.share_certificates(environ, settings.Settings(cache=tmp_path, index=settings.Index()))
    assert environ == {} and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("hosts", "url", "trusted"),
    [
        (("mirror.example",), "https://mirror.example:8443/x", True),
        (("mirror.example:8443",), "https://mirror.example:8443/x", True),
        (("mirror.example:9",), "https://mirror.example:8443/x", False),
        (("mirror.example",), "https://other.mirror.example/x", False),
    ],
)
def test_a_host_without_a_port_has_all_of_them(hosts: tuple[str, ...], url: str, trusted: bool, tmp_path: Path) -> None:
    here = settings.Settings(cache=tmp_path, index=settings.Index())
    assert msgspec.structs.replace(here, token_hosts=hosts).trusts(url, "https://huggingface.co") is trusted


def test_variables_that_nobody_knows_are_noted_with_the_nearest_and_taken_out(tmp_path: Path) -> None:
    strange = {"ORCHESTRATE_CACHEDIR": "x", "orchestrate_memory": "1", "ORCHESTRATE_ZZZ": "1"}
    environ = {"HOME": str(tmp_path), "ORCHESTRATE_MEMORY": "8G", "MY_ORCHESTRATE_X": "1", **strange}
    notes = sorted(surroundings.settle(environ), key=str.lower)
    assert 'ORCHESTRATE_CACHEDIR means nothing here; after ORCHESTRATE_, did you mean "CACHE_DIR"?' in notes[0]
    assert 'did you mean "MEMORY"?' in notes[1] and "ORCHESTRATE_ZZZ" in notes[2] and "known: CACHE_DIR, CONFIG" in notes[2]
    assert environ.keys() == {"HOME", "ORCHESTRATE_MEMORY", "MY_ORCHESTRATE_X"} and surroundings.settle(environ) == []


def test_every_variable_that_is_read_is_known() -> None:
    package = Path(surroundings.__file__).parents[1]
    read = {name for path in package.rglob("*.py") for name in re.findall(r"ORCHESTRATE_[A-Z_]*[A-Z]", path.read_text("utf-8"))}
    assert read == set(settings.VARIABLES)
