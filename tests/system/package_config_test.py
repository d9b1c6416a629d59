"""pip's and uv's config files: where they lie on each system, and what they say of the places of packages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.system import package_config
from llamacpp_orchestrator.system import settings

HOME, PREFIX = Path("/home/me"), Path("/venv")


@pytest.mark.parametrize(
    ("system", "environ", "files"),
    [
        (
            "linux",
            {},
            [
                "/etc/xdg/pip/pip.conf",
                "/etc/pip.conf",
                "/home/me/.pip/pip.conf",
                "/home/me/.config/pip/pip.conf",
                "/venv/pip.conf",
            ],
        ),
        (
            "linux",
            {"XDG_CONFIG_DIRS": "/a:/b", "XDG_CONFIG_HOME": "/c"},
            [
                "/a/pip/pip.conf",
                "/b/pip/pip.conf",
                "/etc/pip.conf",
                "/home/me/.pip/pip.conf",
                "/c/pip/pip.conf",
                "/venv/pip.conf",
            ],
        ),
        ("linux", {"PIP_CONFIG_FILE": "/x.conf"}, ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", "/venv/pip.conf", "/x.conf"]),
        ("linux", {"PIP_CONFIG_FILE": os.devnull}, []),
        (
            "macos",
            {},
            [
                "/Library/Application Support/pip/pip.conf",
                "/home/me/.pip/pip.conf",
                "/home/me/.config/pip/pip.conf",
                "/venv/pip.conf",
            ],
        ),
        (
            "windows",
            {"PROGRAMDATA": "/pd", "APPDATA": "/ad"},
            ["/pd/pip/pip.ini", "/home/me/pip/pip.ini", "/ad/pip/pip.ini", "/venv/pip.ini"],
        ),
        ("windows", {"PIP_CONFIG_FILE": "/x.ini"}, ["/venv/pip.ini", "/x.ini"]),
    ],
)
def test_where_pip_looks(system: str, environ: dict[str, str], files: list[str]) -> None:
    assert [file.as_posix() for file in package_config.pip_config_files(system, environ, HOME, PREFIX)] == files


def test_macos_prefers_the_library_folder(tmp_path: Path) -> None:
    library = tmp_path / "Library" / "Application Support" / "pip"
    library.mkdir(parents=True)
    assert library / "pip.conf" in package_config.pip_config_files("macos", {}, tmp_path, PREFIX)


def test_pip_options() -> None:
    first = "[install]\nfind-links = /a\n[global]\nindex-url = https://a.org\ncert=/c\n"
    second = "[global]\nfind-links = /b\n--index_url = https://b.org\n"
    found = package_config.pip_options({"first": first, "second": second})
    assert found == {"find-links": "/a", "index-url": "https://b.org", "cert": "/c"}
    with pytest.raises(JobError, match="broken: not a pip config file"):
        package_config.pip_options({"broken": "index-url = x"})


@pytest.mark.parametrize(
    ("system", "environ", "files"),
    [
        ("linux", {}, ["/home/me/.config/uv/uv.toml", "/etc/xdg/uv/uv.toml", "/etc/uv/uv.toml"]),
        ("macos", {"XDG_CONFIG_HOME": "/c"}, ["/c/uv/uv.toml", "/etc/xdg/uv/uv.toml", "/etc/uv/uv.toml"]),
        ("windows", {"PROGRAMDATA": "/pd", "APPDATA": "/ad"}, ["/ad/uv/uv.toml", "/pd/uv/uv.toml"]),
        ("linux", {"UV_CONFIG_FILE": "/x.toml"}, ["/x.toml"]),
        ("linux", {"UV_NO_CONFIG": "1"}, []),
    ],
)
def test_where_uv_looks(system: str, environ: dict[str, str], files: list[str]) -> None:
    assert [file.as_posix() for file in package_config.uv_config_files(system, environ, HOME)] == files


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ('index-url = "https://a"\nextra-index-url = ["https://b", "https://c"]\nlink-mode = "symlink"\n',
         {"index-url": "https://a", "extra-index-url": "https://b https://c"}),
        ('[[index]]\nname = "m"\nurl = "https://a"\ndefault = true\n[[index]]\nurl = "https://b"\n',
         {"index-url": "https://a", "extra-index-url": "https://b"}),
        ('[[index]]\nurl = "https://torch"\nexplicit = true\n', {}),
        ('find-links = ["/w"]\n[pip]\nindex-url = "https://p"\n', {"find-links": "/w"}),
    ],
)  # fmt: skip
def test_uv_options(text: str, options: dict[str, str]) -> None:
    assert package_config.uv_options(text, "uv.toml") == options


def test_a_mirror_in_uvs_own_file_is_used(tmp_path: Path) -> None:
    file = tmp_path / "uv.toml"
    file.write_text('[[index]]\nurl = "https://mirror.example/simple"\ndefault = true\n')
    environ = {"UV_CONFIG_FILE": str(file), "PIP_CONFIG_FILE": os.devnull}
    assert settings.load(environ).index.index_urls == ("https://mirror.example/simple",)
    file.write_text("index = [")
    with pytest.raises(JobError, match=r"uv\.toml: not a uv config file"):
        settings.load(environ)
