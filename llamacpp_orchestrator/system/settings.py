"""What belongs to this machine and not to a job: cache, mirrors and package indexes, from the environment and config files."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from typing import Any
from urllib.parse import urlsplit

import msgspec
import platformdirs
from msgspec import Meta

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.system import package_config
from llamacpp_orchestrator.system.command import Limits
from llamacpp_orchestrator.util import units
from llamacpp_orchestrator.util import yaml_reader

NAME = "llamacpp-orchestrator"
SYSTEMS = {"Windows": "windows", "Darwin": "macos"}
PYPI = "https://pypi.org/simple"
ROUTES = ("git", "pypi")
WAIT = 30  # seconds
DAY = 24 * 60  # in minutes: some types of the largest models take half of it
# Settings' field → the variable that wins over config.yaml, and the value without either. Each may name several places.
SERVERS = {
    "github": ("ORCHESTRATE_GITHUB_URL", "https://github.com"),
    "github_api": ("ORCHESTRATE_GITHUB_API_URL", "https://api.github.com"),
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co"),
    "torch_index": ("ORCHESTRATE_TORCH_INDEX", "https://download.pytorch.org/whl"),
}


# All that begin with ORCHESTRATE_ and mean something.
VARIABLES = (
    "ORCHESTRATE_CACHE_DIR", "ORCHESTRATE_CONFIG", "ORCHESTRATE_LIMIT_MEMORY", "ORCHESTRATE_LIMIT_MINUTES",
    "ORCHESTRATE_LLAMA_CPP_FROM", "ORCHESTRATE_MEMORY", "ORCHESTRATE_TOKEN_HOSTS", "ORCHESTRATE_WAIT_SECONDS",
    *(variable for variable, _ in SERVERS.values() if variable.startswith("ORCHESTRATE_")),
)  # fmt: skip


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """Where Python packages come from: the first of `index_urls` that answers; `find_links` are URLs or absolute folders."""

    index_urls: tuple[str, ...] = (PYPI,)
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    cert: str | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's own choices. Places are tried in order; `llama_cpp_from` holds git or pypi, or both.

    `token_hosts` may be sent the user's tokens besides the servers that issued them. `memory` is how many bytes a job may
    take at a time, 0 for most of what is free; `limits` is what one program may take, where 0 bytes are all of the machine's.
    `wait` is how many seconds a server may put off one request.
    """

    cache: Path
    github: tuple[str, ...] = (SERVERS["github"][1],)
    github_api: tuple[str, ...] = (SERVERS["github_api"][1],)
    huggingface: tuple[str, ...] = (SERVERS["huggingface"][1],)
    torch_index: tuple[str, ...] = (SERVERS["torch_index"][1],)
    llama_cpp_from: tuple[str, ...] = ("git",)
    token_hosts: tuple[str, ...] = ()
    memory: int = 0
    limits: Limits = Limits(seconds=60.0 * DAY)
    wait: float = WAIT
    offline: bool = False
    index: Index

    def trusts(self, url: str, original: str) -> bool:
        """Whether a token that `original` has issued may be sent to a URL."""
        asked, issuer = urlsplit(url), urlsplit(original)
        host = asked.netloc.rpartition("@")[2].lower()
        same = (asked.scheme, host) == (issuer.scheme, issuer.netloc)
        return same or bool({host, (asked.hostname or "").lower()} & {*self.token_hosts})  # without a port: on each of them


Places = Annotated[tuple[str, ...], Meta(extra={"short": str.split})]  # a list, or text with one or several


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """config.yaml, where every key is optional."""

    cache_dir: str = ""
    github: Places = ()
    github_api: Places = ()
    huggingface: Places = ()
    torch_index: Places = ()
    llama_cpp_from: Annotated[tuple[Annotated[str, Meta(extra={"words": ROUTES})], ...], Meta(extra={"short": str.split})] = ()
    token_hosts: Places = ()
    memory: str = ""
    limit_memory: str = ""
    limit_minutes: str = ""
    wait_seconds: str = ""
    index_url: Places = ()
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    cert: str = ""


def system() -> str:
    """linux, windows or macos; other systems count as linux, which they resemble most."""
    return SYSTEMS.get(platform.system(), "linux")


def load(environ: Mapping[str, str]) -> Settings:
    """This machine's settings, the environment before config.yaml before pip's files; JobError names what is wrong where."""
    file = config_file(environ)
    config = _config(file, bool(environ.get("ORCHESTRATE_CONFIG")))
    cache = environ.get("ORCHESTRATE_CACHE_DIR") or config.cache_dir
    servers: dict[str, Any] = {}
    for name, (variable, default) in SERVERS.items():
        where = variable if environ.get(variable) else f"{file}: {name}"
        servers[name] = _urls(_several(environ.get(variable, "")) or getattr(config, name) or (default,), where)
    routes = _several(environ.get("ORCHESTRATE_LLAMA_CPP_FROM", "")) or config.llama_cpp_from or ("git",)
    if unknown := [route for route in routes if route not in ROUTES]:
        message = f'ORCHESTRATE_LLAMA_CPP_FROM: unknown value "{unknown[0]}"; {yaml_reader.nearest(unknown[0], ROUTES)}'
        raise JobError(message, "correct it, or unset it: then git brings llama.cpp")
    return Settings(
        cache=_path(cache) if cache else platformdirs.user_cache_path(NAME, appauthor=False),
        llama_cpp_from=routes,
        token_hosts=tuple(map(str.lower, _several(environ.get("ORCHESTRATE_TOKEN_HOSTS", "")) or config.token_hosts)),
        memory=_memory(environ, "ORCHESTRATE_MEMORY", config.memory, f"{file}: memory"),
        limits=_limits(environ, config, file),
        wait=_wait(environ, config.wait_seconds or str(WAIT), f"{file}: wait_seconds"),
        index=_index(environ, config, package_config.of_uv(environ, system()), package_config.of_pip(environ, system())),
        **servers,
    )


def config_file(environ: Mapping[str, str]) -> Path:
    """Where config.yaml lies, or would lie."""
    own = environ.get("ORCHESTRATE_CONFIG") or platformdirs.user_config_path(NAME, appauthor=False) / "config.yaml"
    return Path(own).expanduser()


def files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Every file that says something of a machine's settings, whether it is there or not."""
    home, prefix = Path.home(), Path(sys.prefix)
    uv = package_config.uv_config_files(system(), environ, home)
    return (config_file(environ), *uv, *package_config.pip_config_files(system(), environ, home, prefix))


def _memory(environ: Mapping[str, str], variable: str, key: str, where: str) -> int:
    text, said = (environ[variable], variable) if environ.get(variable) else (key, where)
    return units.parse(text, said) if text else 0


def _limits(environ: Mapping[str, str], config: Config, file: Path) -> Limits:
    said = "ORCHESTRATE_LIMIT_MINUTES" if environ.get("ORCHESTRATE_LIMIT_MINUTES") else f"{file}: limit_minutes"
    minutes = environ.get("ORCHESTRATE_LIMIT_MINUTES") or config.limit_minutes or str(DAY)
    if not re.fullmatch(r"[1-9]\d{0,5}", minutes):
        raise JobError(f'{said}: expected a number of minutes, found "{minutes[:20]}"', "1440 is a day")
    memory = _memory(environ, "ORCHESTRATE_LIMIT_MEMORY", config.limit_memory, f"{file}: limit_memory")
    return Limits(memory=memory, seconds=60.0 * int(minutes))


def _wait(environ: Mapping[str, str], key: str, where: str) -> float:
    variable = "ORCHESTRATE_WAIT_SECONDS"
    text, said = (environ[variable], variable) if environ.get(variable) else (key, where)
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII):
        raise JobError(f'{said}: expected a number of seconds, found "{text[:20]}"', "30 is half a minute, 0 is no wait at all")
    return float(text)


def _several(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[\s,]+", text.strip(" ,"))) if text.strip(" ,") else ()


def _config(file: Path, required: bool) -> Config:
    try:
        text = file.read_bytes()
    except FileNotFoundError as error:
        if required:
            raise JobError(f"ORCHESTRATE_CONFIG: {file} does not exist", "correct it, or unset it") from error
        return Config()
    except OSError as error:
        hint = "check its rights, or set ORCHESTRATE_CONFIG to another file"
        raise JobError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}", hint) from error
    if not re.search(rb"^\s*[^#\s]", text.removeprefix(b"\xef\xbb\xbf"), re.MULTILINE):
        return Config()
    reading = yaml_reader.read(text, str(file))
    data = yaml_reader.fit(reading, reading.data, Config)
    yaml_reader.done(reading)
    config = msgspec.convert(data, Config)
    beside = {name: str(_path(value, file.parent)) for name in ("cache_dir", "cert") if (value := getattr(config, name))}
    links = tuple(_link(link, file.parent) for link in config.find_links)
    return msgspec.structs.replace(config, find_links=links, **beside)


def _index(environ: Mapping[str, str], config: Config, uv: Mapping[str, str], pip: Mapping[str, str]) -> Index:
    def first(*values: tuple[str, str]) -> tuple[str, str]:
        return next(((where, value) for where, value in values if value.strip()), ("", ""))

    def variable(name: str) -> tuple[str, str]:
        return name, environ.get(name, "")

    where, urls = first(
        *map(variable, ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")),
        ("config.yaml: index_url", " ".join(config.index_url)),
        ("uv.toml's index", uv.get("index-url", "")),
        ("pip's index-url", pip.get("index-url", "")),
        ("", PYPI),
    )
    both = f"{environ.get('UV_INDEX', '')} {environ.get('UV_EXTRA_INDEX_URL', '')}"
    extra_where, extra = first(
        ("UV_INDEX or UV_EXTRA_INDEX_URL", both),
        variable("PIP_EXTRA_INDEX_URL"),
        ("config.yaml: extra_index_urls", " ".join(config.extra_index_urls)),
        ("uv.toml's indexes", uv.get("extra-index-url", "")),
        ("pip's extra-index-url", pip.get("extra-index-url", "")),
    )
    links = (
        environ.get("UV_FIND_LINKS", "").split(",") if environ.get("UV_FIND_LINKS") else environ.get("PIP_FIND_LINKS", "").split()
    )
    links = links or list(config.find_links) or uv.get("find-links", "").split() or pip.get("find-links", "").split()
    cert_where, cert = first(variable("PIP_CERT"), ("config.yaml: cert", config.cert), ("pip's cert", pip.get("cert", "")))
    if cert:
        check_certificates(_path(cert), cert_where)
    schemes = ("http", "https", "file")
    return Index(
        index_urls=_urls(_several(urls), where, schemes),
        extra_index_urls=_urls(extra.split(), extra_where, schemes),
        find_links=tuple(_link(link.strip(), Path.cwd()) for link in links if link.strip()),
        cert=str(_path(cert)) if cert else None,
    )


def check_certificates(path: Path, where: str) -> None:
    """Raise JobError unless there are certificates (PEM) in a file, or a folder of them."""
    try:
        good = path.is_dir() or b"-----BEGIN " in path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: what can be no path
        message = f"{where}: {path} cannot be read: {(getattr(error, 'strerror', None) or str(error)).lower()}"
        raise JobError(message, "name a file of certificates (PEM), or unset it") from error
    if not good:
        raise JobError(f"{where}: {path} holds no certificate", "name a file of certificates (PEM), which begin with -----BEGIN")


def _path(text: str, base: Path | None = None) -> Path:
    return Path(os.path.abspath((base or Path.cwd()) / os.path.expanduser(text)))


def _link(text: str, base: Path) -> str:
    return text if re.match(r"\w{2,}:", text) else str(_path(text, base))


def _urls(texts: Iterable[str], where: str, schemes: tuple[str, ...] = ("http", "https")) -> tuple[str, ...]:
    found = []
    for text in texts:
        # uv lets an index have a name in front: name=https://...
        bare = re.sub(r"^[\w.-]+=(?=\w+:)", "", text.strip())
        if not re.match(rf"({'|'.join(schemes)})://\S+$", bare) or not _is_url(bare):
            raise _no_url(bare, where, schemes)
        found.append(bare.rstrip("/"))
    return tuple(found)


def _no_url(text: str, where: str, schemes: tuple[str, ...]) -> JobError:
    named = anonymous(text)
    way = "" if named == text else "; in a login, write signs such as / # @ and , with their numbers: %2F %23 %40 %2C"
    message = f'{where}: expected a URL with {" or ".join(schemes)}, found "{named[:100]}"'
    return JobError(message, f"write it such as https://mirror.example{way}")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(parts.scheme == "file" or parts.hostname) and parts.port != 0
    except ValueError:
        return False
