"""Why something failed, in one word: by number and type of the failure first, by its words last; and what helps against it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from llamacpp_orchestrator.errors import FULL
from llamacpp_orchestrator.errors import NO_LOCKS
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table

UNREACHED = ("dns", "refused", "timeout", "unreachable")
REPORT = "if this makes no sense to you, report it with the output of `orchestrate doctor --json`"
PEM = "name the file of its authority's certificates (PEM) in SSL_CERT_FILE, which all parts of a job read"
BY_ERRNO = {
    errno.EROFS: "read-only",
    errno.EACCES: "rights",
    errno.EPERM: "rights",
    errno.ENOSPC: "space",
    getattr(errno, "EDQUOT", errno.ENOSPC): "space",
    errno.ENOTDIR: "path",
    errno.ENAMETOOLONG: "path",
    errno.EIO: "disk",
    errno.ENOLCK: "locks",
    errno.EOPNOTSUPP: "locks",
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ECONNRESET: "cut",
}
# Names of types of requests, urllib3, httpx and Python, the one that says most first.
BY_TYPE = (
    ("proxy", ("ProxyError",)),
    ("socks", ("InvalidSchema", "InvalidProxyURL")),
    ("certificate", ("SSLError", "SSLCertVerificationError")),
    ("dns", ("NameResolutionError", "gaierror")),
    ("timeout", ("ConnectTimeout", "ConnectTimeoutError", "ReadTimeout", "ReadTimeoutError", "TimeoutException")),
)
BY_STATUS = {401: "login", 403: "forbidden", 404: "missing", 407: "proxy", 429: "limit"}


def of(error: BaseException) -> str:
    """The cause of a failure: dns, refused, proxy, certificate, login, read-only, ...; "" where nothing tells."""
    chain = list(_chain(error))
    names = {base.__name__ for link in chain for base in type(link).__mro__}
    words = " ".join(str(link) for link in chain)
    by_type = next((cause for cause, types in BY_TYPE if names.intersection(types)), "")
    by_errno = next((BY_ERRNO[link.errno] for link in chain if isinstance(link, OSError) and link.errno in BY_ERRNO), "")
    status = next((number for link in chain if (number := getattr(link, "status", 0)) and isinstance(number, int)), 0)
    by_words, _ = matched(words, (*table("util", "connections"), *table("doctor", "causes")))
    # git's failure to reach a server is kept with a number of 500 and more, of which the words know more.
    cause = by_type or by_errno or BY_STATUS.get(status) or by_words or ("server" if status >= 500 else "")
    return by_words if cause == "certificate" and by_words == "expired" else cause


def _chain(error: BaseException | None, depth: int = 8) -> Iterator[BaseException]:
    """A failure and those it came from; requests and urllib3 hold theirs in `args` and in `reason`."""
    if error is None or not depth:
        return
    yield error
    inner = [*getattr(error, "args", ()), getattr(error, "reason", None), error.__cause__ or error.__context__]
    for link in inner:
        if isinstance(link, BaseException):
            yield from _chain(link, depth - 1)


def remedy(cause: str, setting: str, hint: str) -> str:
    """What helps against a cause; `setting` could name another place, `hint` is what the failure itself advises."""
    elsewhere = f"set {setting}" if setting else ""
    proxy = "where a proxy leads out of this network, set HTTPS_PROXY"
    known = {
        "dns": f"check the spelling of the address and this machine's name service (DNS); {proxy}",
        "refused": _joined(elsewhere, proxy),
        "timeout": _joined(elsewhere, proxy),
        "unreachable": _joined(elsewhere, proxy),
        "cut": _joined("try again", elsewhere),
        "proxy": "correct HTTPS_PROXY and HTTP_PROXY (with the login that it asks for), or list the server in NO_PROXY",
        "socks": "reinstall llamacpp-orchestrator: packages for SOCKS proxies are missing; or name an HTTP proxy",
        "certificate": PEM,
        "expired": "see whether this machine's clock is right; if it is, the server's certificate has run out",
        "login": f"put your login into the address (https://user:password@host/...){f': {setting}' if setting else ''}",
        "forbidden": _joined("this server, or a filter in between, refuses this program or you: ask who runs it", elsewhere),
        "server": _joined("wait some minutes", elsewhere),
        "space": FULL,
        "locks": NO_LOCKS,
    }
    # The hub and the job's own words know more of a refusal than its number does.
    if cause in ("login", "forbidden", "missing", "limit", "space", "") and hint:
        return hint
    return known.get(cause) or hint or elsewhere


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))
