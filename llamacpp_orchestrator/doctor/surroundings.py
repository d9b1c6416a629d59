"""What this machine's surroundings say to a job: versions, settings in effect, proxies, certificates and the clock."""

from __future__ import annotations

import email.utils
import os
import platform
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from llamacpp_orchestrator import __version__
from llamacpp_orchestrator.doctor import causes
from llamacpp_orchestrator.doctor.grouping import CLOCK
from llamacpp_orchestrator.doctor.records import Line
from llamacpp_orchestrator.doctor.records import Probe
from llamacpp_orchestrator.doctor.records import problem
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import download
from llamacpp_orchestrator.util.background import load

# Variables that a job or a program that it starts obeys.
OBEYED = re.compile(
    r"(?i)(ORCHESTRATE|HF|HUGGINGFACE|UV|PIP|SSL_CERT|GIT_SSL)_\w+|\w+_CA_BUNDLE|\w+_PROXY|(GH|GITHUB)_TOKEN|LANG|LC_ALL|TMPDIR"
    r"|XDG_CACHE_HOME|NETRC|CUDA_VISIBLE_DEVICES"
)
SECRET = re.compile(r"(?i)TOKEN(?!_HOSTS)|KEY|PASS|SECRET|AUTH|CREDENTIAL")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO")
CLOCK_SECONDS = 300
PORTS = {"http": 80, "https": 443}


def versions() -> str:
    """What we are, and what we run on."""
    return f"{__version__}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}"


def settings_said(settings: Settings) -> str:
    """The places that are in effect, whoever has set them, without a login."""
    index = settings.index
    places = {
        "converter tree by": (" or ".join(settings.llama_cpp_from),),
        "GitHub": settings.github,
        "its API": settings.github_api,
        "hub": settings.huggingface,
        "packages": (*index.index_urls, *index.extra_index_urls, *index.find_links),
        "PyTorch": settings.torch_index,
    }
    return "; ".join(f"{name} {' '.join(map(anonymous, urls))}" for name, urls in places.items())


def variables(environ: Mapping[str, str]) -> str:
    """The variables that are set and obeyed: what is secret only by name, addresses without a login."""
    names = sorted(name for name in environ if OBEYED.fullmatch(name) and environ[name])
    return ", ".join(f"{name} (set)" if SECRET.search(name) else f"{name}={_plain(environ[name])}" for name in names) or "none"


def _plain(text: str) -> str:
    return " ".join(anonymous(word) for word in text.split())


def proxies() -> dict[str, str]:
    """Scheme or "all" → the proxy for it, of the variables and on Windows and macOS of the system."""
    import urllib.request

    return {scheme: url for scheme, url in urllib.request.getproxies().items() if scheme in ("http", "https", "all") and url}


def proxy_of(url: str) -> str:
    """The proxy, without its login, by which a URL is asked; "" where none is."""
    from requests.utils import get_environ_proxies
    from requests.utils import select_proxy

    if not url.startswith("http"):
        return ""
    return anonymous(select_proxy(url, get_environ_proxies(url)) or "")


def proxies_said() -> tuple[Line, ...]:
    """Each proxy in effect, and whether anything listens there."""
    lines = []
    spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    beside = f", not for {_plain(spared)}" if spared else ""
    for proxy, schemes in _by_proxy(proxies()).items():
        said = f"{anonymous(proxy)} for {', '.join(schemes)}{beside}"
        try:
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            place = (parts.hostname or "", parts.port or PORTS.get(parts.scheme, 1080))
            with socket.create_connection(place, download.GREETING[0]):
                lines.append(Line(name="proxy", ok=True, said=said, place=anonymous(proxy)))
        except (OSError, ValueError) as error:
            why = f"the proxy {said} does not answer: {str(getattr(error, 'strerror', '') or error).lower()}"
            remedy = causes.remedy("proxy", "", "")
            lines.append(problem("proxy", "proxy", why, remedy, needed=False, place=anonymous(proxy)))
    return tuple(lines) or (Line(name="proxy", ok=True, said="none is set"),)


def _by_proxy(found: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for scheme, proxy in sorted(found.items()):
        grouped.setdefault(proxy, []).append(scheme)
    return grouped


def certificates_said(settings: Settings, environ: Mapping[str, str]) -> tuple[Line, ...]:
    """Which certificates are trusted, where something else than the usual is set, and whether those files are there."""
    named = {name: environ[name] for name in CERTIFICATES if environ.get(name)}
    if settings.index.cert and "PIP_CERT" not in named:
        named["cert"] = settings.index.cert
    said = ", ".join(f"{name}={path}" for name, path in named.items()) or "the usual ones"
    gone = tuple(f"{name} names {path}, which cannot be read" for name, path in named.items() if not _readable(Path(path)))
    remedy = "name a file of certificates (PEM) that is there, or unset it"
    lines = tuple(problem("certificates", "certificate", what, remedy) for what in gone)
    return lines or (Line(name="certificates", ok=True, said=said),)


def _readable(path: Path) -> bool:
    try:
        return os.access(path.expanduser(), os.R_OK)
    except (OSError, ValueError):
        return False


def offset(url: str) -> float | None:
    """How many seconds this machine's clock is ahead of a server's; None where that tells no time.

    Only the time of an answer is looked at, so its certificate need not be: with a wrong clock none can be trusted.
    """
    load("requests")
    import requests
    import urllib3

    def nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request  # without it, ~/.netrc would be asked for a login

    with requests.Session() as session:
        try:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            session.verify, session.auth, session.headers["Cache-Control"] = False, nobody, "no-cache"
            answer = session.head(anonymous(url), timeout=download.GREETING)
            told = email.utils.parsedate_to_datetime(answer.headers.get("Date", ""))
            return time.time() - told.timestamp() - float(answer.headers.get("Age", "0"))
        except (OSError, ValueError, TypeError, urllib3.exceptions.HTTPError):
            return None


def clock(offsets: Iterable[float | None]) -> Line:
    """Whether this machine's clock goes right, by how far it is ahead of those of some servers."""
    told = [seconds for seconds in offsets if seconds is not None]
    if not told:
        return Line(name="clock", ok=True, said="no server told the time", needed=False)
    ahead = statistics.median(told)
    if abs(ahead) <= CLOCK_SECONDS:
        return Line(name="clock", ok=True, said="agrees with the servers'", needed=False)
    what = f"it is {_long(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the servers'"
    return problem("clock", "clock", what, CLOCK, needed=False)


def _long(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def probes(settings: Settings) -> Iterator[Probe]:
    """The questions about the surroundings that hold for every job."""
    yield Probe(name="orchestrate", ask=versions)
    yield Probe(name="settings", ask=lambda: settings_said(settings))
    # For who reads a report: in effect is what the line before says.
    yield Probe(name="variables", ask=lambda: (Line(name="variables", ok=True, said=variables(os.environ), within="settings"),))
    yield Probe(name="proxy", ask=proxies_said, needed=False)
    yield Probe(name="certificates", ask=lambda: certificates_said(settings, os.environ))
