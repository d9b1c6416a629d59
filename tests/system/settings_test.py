"""Settings: environment before config.yaml before pip's files, and what is wrong is named."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.system.command import Limits

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def load(tmp_path: Path, config: str | None = None, pip: str | None = None, **environ: str) -> settings.Settings:
    """Settings that nothing of this machine has a part in."""
    (tmp_path / "pip.conf").write_text(pip or "")
    (tmp_path / "config.yaml").write_text(config or "")
    fixed = {
        "ORCHESTRATE_CONFIG": str(tmp_path / "config.yaml"),
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf") if pip else os.devnull,
    }
    return settings.load({**fixed, **environ})


def test_without_anything(tmp_path: Path) -> None:
    found = load(tmp_path, "# nothing set\n")
    assert found == settings.Settings(cache=found.cache, index=settings.Index())
    assert found.cache.is_absolute() and settings.NAME in str(found.cache)


def test_config_and_environment(tmp_path: Path) -> None:
    config = """\
cache_dir: cache
github: https://mirror.org/github/
huggingface: https://hf.mirror
llama_cpp_from: pypi
index_url: https://packages.org/simple/
extra_index_urls: [https://a.org/x, https://b.org/y]
find_links: [wheels, "https://c.org/z"]
cert: ca.pem
"""
    (tmp_path / "ca.pem").write_text(PEM)
    found = load(tmp_path, config)
    assert (found.cache, found.github, found.llama_cpp_from) == (tmp_path / "cache", ("https://mirror.org/github",), ("pypi",))
    assert found.index == settings.Index(
        index_urls=("https://packages.org/simple",),
        extra_index_urls=("https://a.org/x", "https://b.org/y"),
        find_links=(str(tmp_path / "wheels"), "https://c.org/z"),
        cert=str(tmp_path / "ca.pem"),
    )
    found = load(
        tmp_path,
        config,
        ORCHESTRATE_CACHE_DIR=str(tmp_path / "other"),
        ORCHESTRATE_GITHUB_URL="http://127.0.0.1:1/",
        ORCHESTRATE_GITHUB_API_URL="http://127.0.0.1:2",
        HF_ENDPOINT="http://127.0.0.1:3/",
        ORCHESTRATE_TORCH_INDEX="http://127.0.0.1:4",
        ORCHESTRATE_LLAMA_CPP_FROM="git",
        PIP_INDEX_URL="https://pip.org/simple",
    )
    assert (found.cache, found.github, found.github_api) == (tmp_path / "other", ("http://127.0.0.1:1",), ("http://127.0.0.1:2",))
    assert (found.huggingface, found.torch_index) == (("http://127.0.0.1:3",), ("http://127.0.0.1:4",))
    assert found.llama_cpp_from == ("git",)
    assert found.index.index_urls == ("https://pip.org/simple",)


def test_several_places_in_order(tmp_path: Path) -> None:
    config = """\
github: [https://a.org/gh, https://github.com]
huggingface: https://b.org https://huggingface.co
index_url: [https://c.org/simple, https://d.org/simple]
llama_cpp_from: [git, pypi]
token_hosts: [B.org, "c.org:8443"]
"""
    found = load(tmp_path, config)
    assert found.github == ("https://a.org/gh", "https://github.com")
    assert found.huggingface == ("https://b.org", "https://huggingface.co")
    assert found.index.index_urls == ("https://c.org/simple", "https://d.org/simple")
    assert found.llama_cpp_from == ("git", "pypi")
    found = load(
        tmp_path,
        HF_ENDPOINT="https://x.org/, https://y.org",
        ORCHESTRATE_LLAMA_CPP_FROM="pypi,git",
        PIP_INDEX_URL="https://p.org/simple https://q.org/simple",
    )
    assert found.huggingface == ("https://x.org", "https://y.org") and found.llama_cpp_from == ("pypi", "git")
    assert found.index.index_urls == ("https://p.org/simple", "https://q.org/simple")


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("https://huggingface.co", True),
        ("https://b.org", True),
        ("http://b.org", True),
        ("http://huggingface.co", False),
        ("https://c.org:8443/hub", True),
        ("https://c.org", False),
        ("https://huggingface.co.evil.org", False),
        ("https://huggingface.co@evil.org", False),
        ("https://mirror.org/https://huggingface.co", False),
    ],
)
def test_who_may_be_sent_a_token(tmp_path: Path, url: str, trusted: bool) -> None:
    found = load(tmp_path, ORCHESTRATE_TOKEN_HOSTS="b.org C.org:8443")
    assert found.trusts(url, "https://huggingface.co") is trusted


PIP = """\
[global]
index-url = https://global.org/simple
Extra_Index_Url =
    https://one.org/simple
    https://two.org/simple
find-links = file:///wheels
[install]
index-url = https://install.org/simple/
[list]
index-url = https://list.org
"""


@pytest.mark.parametrize(
    ("environ", "url", "extra", "links"),
    [
        ({}, "https://install.org/simple", ("https://one.org/simple", "https://two.org/simple"), ("file:///wheels",)),
        (
            {
                "PIP_INDEX_URL": "https://p.org",
                "PIP_EXTRA_INDEX_URL": "https://q.org https://r.org",
                "PIP_FIND_LINKS": "https://s.org",
            },
            "https://p.org",
            ("https://q.org", "https://r.org"),
            ("https://s.org",),
        ),
        (
            {
                "UV_INDEX_URL": "https://u.org",
                "UV_INDEX": "mine=https://v.org",
                "UV_EXTRA_INDEX_URL": "https://w.org",
                "PIP_INDEX_URL": "x",
            },
            "https://u.org",
            ("https://v.org", "https://w.org"),
            ("file:///wheels",),
        ),
        (
            {
                "UV_DEFAULT_INDEX": "main=https://d.org/",
                "UV_INDEX_URL": "https://u.org",
                "UV_FIND_LINKS": "https://a.org,https://b.org",
            },
            "https://d.org",
            ("https://one.org/simple", "https://two.org/simple"),
            ("https://a.org", "https://b.org"),
        ),
    ],
)
def test_package_indexes(
    tmp_path: Path, environ: dict[str, str], url: str, extra: tuple[str, ...], links: tuple[str, ...]
) -> None:
    found = load(tmp_path, pip=PIP, **environ).index
    assert (found.index_urls, found.extra_index_urls, found.find_links) == ((url,), extra, links)


def test_relative_folders_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").write_text(PEM)
    found = load(tmp_path, PIP_FIND_LINKS="wheels ~/more", PIP_CERT="ca.pem", ORCHESTRATE_CACHE_DIR="cache")
    assert found.cache == tmp_path / "cache"
    assert found.index.find_links == (str(tmp_path / "wheels"), str(Path.home() / "more"))
    assert found.index.cert == str(tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("config", "environ", "said"),
    [
        ("githbu: x", {}, 'config.yaml:1: githbu: unknown key; did you mean "github"?'),
        ("- x", {}, "expected keys with values, found a list"),
        ("find_links: {x: y}", {}, "find_links: expected text, found keys with values"),
        ("llama_cpp_from: svn", {}, 'llama_cpp_from: unknown value "svn"; known: git, pypi'),
        ("github: mirror.org", {}, 'config.yaml: github: expected a URL with http or https, found "mirror.org"'),
        ("extra_index_urls: [x]", {}, "config.yaml: extra_index_urls: expected a URL"),
        ("cert: none.pem", {}, "config.yaml: cert: "),
        ("cert: config.yaml", {}, "config.yaml holds no certificate"),
        ("", {"ORCHESTRATE_LLAMA_CPP_FROM": "svn"}, 'ORCHESTRATE_LLAMA_CPP_FROM: unknown value "svn"'),
        ("", {"HF_ENDPOINT": "hf-mirror.com"}, "HF_ENDPOINT: expected a URL"),
        ("", {"PIP_INDEX_URL": "ftp://x"}, "PIP_INDEX_URL: expected a URL with http or https or file"),
        ("", {"PIP_CERT": "no such.pem"}, "PIP_CERT: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, config: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(JobError) as caught:
        load(tmp_path, config, **environ)
    assert said in caught.value.message


def test_a_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.yaml", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(JobError, match=said):
            settings.load({"ORCHESTRATE_CONFIG": str(path), "PIP_CONFIG_FILE": os.devnull})


def test_the_usual_config_file_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_config_path", lambda *names, **options: tmp_path / "none")
    assert settings.load({"PIP_CONFIG_FILE": os.devnull}).github == ("https://github.com",)


def test_memory(tmp_path: Path) -> None:
    assert load(tmp_path, "memory: 6GiB\n").memory == 6 << 30
    assert load(tmp_path, "memory: 6GiB\n", ORCHESTRATE_MEMORY="900M").memory == 900_000_000
    for config, variables, where in (
        ("memory: 6\n", {}, "config.yaml: memory"),
        ("", {"ORCHESTRATE_MEMORY": "6"}, "ORCHESTRATE_MEMORY"),
    ):
        with pytest.raises(JobError, match=f"{where}: expected a size"):
            load(tmp_path, config, **variables)


def test_how_long_a_server_may_put_off(tmp_path: Path) -> None:
    assert load(tmp_path, "").wait == 30.0 and load(tmp_path, "wait_seconds: 90\n").wait == 90.0
    assert load(tmp_path, "wait_seconds: 90\n", ORCHESTRATE_WAIT_SECONDS="0").wait == 0.0
    for config, variables, where in (
        ("wait_seconds: long\n", {}, "config.yaml: wait_seconds"),
        ("", {"ORCHESTRATE_WAIT_SECONDS": "1e3"}, "ORCHESTRATE_WAIT_SECONDS"),
        ("", {"ORCHESTRATE_WAIT_SECONDS": "9" * 6}, "ORCHESTRATE_WAIT_SECONDS"),
    ):
        with pytest.raises(JobError, match=f"{where}: expected a number of seconds, found"):
            load(tmp_path, config, **variables)


def test_limits(tmp_path: Path) -> None:
    assert load(tmp_path, "").limits == Limits(memory=0, seconds=86400.0)
    assert load(tmp_path, "limit_memory: 6GiB\nlimit_minutes: 90\n").limits == Limits(memory=6 << 30, seconds=5400.0)
    both = {"ORCHESTRATE_LIMIT_MEMORY": "900M", "ORCHESTRATE_LIMIT_MINUTES": "5"}
    assert load(tmp_path, "limit_memory: 6GiB\nlimit_minutes: 90\n", **both).limits == Limits(memory=900_000_000, seconds=300.0)
    for config, variables, said in (
        ("limit_memory: 6\n", {}, "config.yaml: limit_memory: expected a size"),
        ("limit_minutes: 1e3\n", {}, 'config.yaml: limit_minutes: expected a number of minutes, found "1e3"'),
        ("", {"ORCHESTRATE_LIMIT_MEMORY": "6"}, "ORCHESTRATE_LIMIT_MEMORY: expected a size"),
        ("", {"ORCHESTRATE_LIMIT_MINUTES": "0"}, "ORCHESTRATE_LIMIT_MINUTES: expected a number of minutes"),
    ):
        with pytest.raises(JobError, match=said):
            load(tmp_path, config, **variables)
