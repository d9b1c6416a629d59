"""The environment as libraries will read it: put right once, at the start, or named as wrong before anything is asked."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from collections.abc import MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.system.settings import VARIABLES
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.system.settings import check_certificates
from llamacpp_orchestrator.system.settings import system
from llamacpp_orchestrator.util.store import write_atomically
from llamacpp_orchestrator.util.yaml_reader import nearest

# What huggingface_hub, uv, pip, git and requests read by themselves, and what is ours.
READ = re.compile(r"(?i)(ORCHESTRATE|HF|HUGGINGFACE|UV|PIP)_.*|GITHUB_TOKEN|GH_TOKEN|XDG_\w+_(HOME|DIRS)|(\w+)_PROXY")
OURS = "ORCHESTRATE_"
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT")
# Where a network stack looks for certificates: uv, the hub's client and git (which we tell); requests and older hub clients.
STACKS = (("SSL_CERT_FILE",), ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "UV_HTTP_CONNECT_TIMEOUT")
COUNTS = ("UV_CONCURRENT_DOWNLOADS", "UV_CONCURRENT_BUILDS", "UV_CONCURRENT_INSTALLS")
SWITCHES = ("UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_OFFLINE", "UV_NO_CACHE", "UV_MANAGED_PYTHON", "UV_NO_MANAGED_PYTHON")
ON_OR_OFF = frozenset(["1", "0", "true", "false", "yes", "no", "on", "off", "t", "f", "y", "n"])  # as uv reads them
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN", "GH_TOKEN")


def readable(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without blanks around its values, and without empty ones; JobError names what no library can use."""
    values = {}
    for name, value in environ.items():
        if not READ.fullmatch(name) and name not in CERTIFICATES:
            values[name] = value
        elif text := _text(name, value):
            values[name] = text
    for name in [name for name in environ if name.upper() in PROXIES]:
        if name in values:
            values[name] = _proxy(name, values[name])
        elif name.islower():
            values.pop(name.upper(), None)  # an empty one in small letters takes back the one in capitals
    for name in (*SECONDS, *COUNTS):
        if name in values and not re.fullmatch(r"[1-9]\d{0,8}", values[name]):
            what = "seconds, a whole number such as 60" if name in SECONDS else "a whole number such as 4"
            raise JobError(f'{name}: expected {what}, found "{values[name][:20]}"', "correct it, or unset it")
    for name in SWITCHES:
        if name in values and values[name].lower() not in ON_OR_OFF:
            raise JobError(f'{name}: expected 1 or 0, found "{values[name][:20]}"', "correct it, or unset it")
    for name in TOKENS:
        if name in values and not re.fullmatch("[!-~]+", values[name]):
            raise JobError(f"{name}: no token looks like this: it has blanks or letters of another alphabet", "copy it again")
    for name in CERTIFICATES:
        if name in values:
            check_certificates(Path(values[name]).expanduser(), name)
    return values


def _text(name: str, value: str) -> str:
    text = value.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        raise JobError(f"{name}: its value stands in quotes, which belong to it so", "write it without the quotes")
    return text


def _proxy(name: str, text: str) -> str:
    # Desktops and VPN clients write socks://, by which they mean SOCKS 5; without a scheme a proxy is one of HTTP.
    url = re.sub("(?i)^socks://", "socks5h://", text) if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        good = parts.scheme.lower() in PROXY_SCHEMES and parts.hostname and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:
        good = False
    if not good:
        known = ", ".join(f"{scheme}://" for scheme in PROXY_SCHEMES)
        message = f'{name}: "{anonymous(text)[:100]}" is not the address of a proxy'
        raise JobError(message, f"write it such as http://proxy.example:3128 (it may begin with {known}), or unset it")
    return url


def settle(environ: MutableMapping[str, str]) -> list[str]:
    """Make an environment `readable`; where nobody has a home folder, one in the cache stands for it. Raises JobError.

    Answers notes on variables that are taken out, as they look like ours and mean nothing.
    """
    values = readable(environ)
    strangers = [name for name in values if name.upper().startswith(OURS) and name not in VARIABLES]
    for name in strangers:
        del values[name]
    if not has_home(values):
        cache = values.get("ORCHESTRATE_CACHE_DIR", "")
        if not cache:
            message = "there is no home folder: HOME is not set, and the system knows no user of this number"
            raise JobError(message, "set ORCHESTRATE_CACHE_DIR to a folder that you may write to, or set HOME")
        values["HOME"] = str(Path(cache).expanduser().absolute() / "home")
        values.setdefault("USER", "nobody")  # torch and others ask for a name, and the system has none
    for name in environ.keys() - values.keys():
        del environ[name]
    environ.update(values)
    known = [variable.removeprefix(OURS) for variable in VARIABLES]
    return [f"{quoted(name)} means nothing here; after {OURS}, {nearest(name[len(OURS) :], known)}" for name in strangers]


def has_home(environ: Mapping[str, str]) -> bool:
    """Tell whether there is a home folder."""
    if system() == "windows":
        return bool(environ.get("USERPROFILE") or environ.get("HOMEPATH"))
    if environ.get("HOME"):
        return True
    import pwd

    try:
        return bool(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return False


def share_certificates(environ: MutableMapping[str, str], settings: Settings) -> None:
    """Let every network stack trust the certificates that are set for one of them, besides those that it knows by itself."""
    values = [environ[name] for name in ("PIP_CERT", *CERTIFICATES) if name in environ]
    chosen = next(iter(values), settings.index.cert)
    if not chosen or not Path(chosen).is_file():
        return
    for names in STACKS:
        if not any(name in environ for name in names):
            environ[names[0]] = str(_with_public(Path(chosen), settings.cache))


def _with_public(certificates: Path, cache: Path) -> Path:
    import certifi

    text = Path(certifi.where()).read_bytes() + b"\n" + certificates.read_bytes()
    file = cache / "home" / f"certificates-{hashlib.sha256(text).hexdigest()[:16]}.pem"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.decode(errors="replace"))
    return file
