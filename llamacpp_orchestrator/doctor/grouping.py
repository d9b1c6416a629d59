"""What fails for one cause, told once: no network, names that are not found, a proxy, certificates, the clock."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from llamacpp_orchestrator.doctor import causes
from llamacpp_orchestrator.doctor.records import Line
from llamacpp_orchestrator.doctor.records import problem

NO_NETWORK = (
    "connect it; where a proxy leads out, set HTTPS_PROXY; for a machine that has none: `orchestrate bundle` on another machine"
)
DNS = "check this machine's name service (DNS); where a proxy leads out of this network, set HTTPS_PROXY"
CLOCK = "set this machine's clock: certificates and tokens are refused with a wrong one"


def grouped(lines: Iterable[Line], proxy_of: Callable[[str], str]) -> list[Line]:
    """The same lines, with those of one cause `within` one that says it; `proxy_of` a URL is the place of its proxy, or ""."""
    told = list(lines)
    dead = {line.place for line in told if line.name == "proxy" and not line.ok}
    behind = [line for line in _failed(told, (*causes.UNREACHED, "proxy")) if proxy_of(line.place) in dead]
    told = _within(told, "proxy", behind)
    if not dead:
        said = "the proxy does not let through what is asked of {hosts}"
        told = _headed(told, "proxy", "proxy", _failed(told, ("proxy",)), said, causes.remedy("proxy", "", ""))
    servers = [line for line in told if line.place and line.name != "proxy" and not line.within]
    unreached = _failed(told, causes.UNREACHED)
    if len(unreached) == len(servers) and len(_hosts(servers)) > 1:
        told = _headed(told, "network", "network", unreached, "there seems to be no network: none of {hosts} answers", NO_NETWORK)
    said = "this machine cannot find the addresses of {hosts}"
    told = _headed(told, "dns", "dns", _failed(told, ("dns",)), said, DNS)
    doubted = _failed(told, ("certificate", "expired"))
    if any(line.name == "clock" and not line.ok for line in told):
        return _within(told, "clock", doubted)
    said = "the certificates of {hosts} are not trusted here: does a company's proxy or a virus scanner stand between?"
    return _headed(told, "certificates", "certificate", doubted, said, causes.PEM)


def _failed(lines: Iterable[Line], kinds: tuple[str, ...]) -> list[Line]:
    servers = [line for line in lines if line.place and line.name != "proxy"]
    return [line for line in servers if not line.ok and not line.within and line.cause in kinds]


def _hosts(lines: Iterable[Line]) -> list[str]:
    return list(dict.fromkeys(urlsplit(line.place).netloc or line.place for line in lines))


def _within(lines: list[Line], head: str, members: list[Line]) -> list[Line]:
    kept = {id(line) for line in members}
    return [msgspec.structs.replace(line, within=head) if id(line) in kept else line for line in lines]


def _headed(lines: list[Line], name: str, cause: str, members: list[Line], said: str, remedy: str) -> list[Line]:
    """Put one line before all others for members of several hosts; one host alone speaks for itself."""
    hosts = _hosts(members)
    if len(hosts) < 2:
        return lines
    served = {line.name for line in lines if line.ok}
    needed = any(line.needed and line.name not in served for line in members)
    words = f"{said.format(hosts=', '.join(hosts))} ({members[0].said.removesuffix(f'; {members[0].remedy}')})"
    return [*_within(lines, name, members), problem(name, cause, words, remedy, needed)]
