"""One word for why something failed, whoever says it, and what helps against it."""

from __future__ import annotations

import errno
import socket

import httpx2
import pytest
import requests

from llamacpp_orchestrator.doctor import causes
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError


def after(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EROFS, "any words"), "read-only"),
        (PermissionError(errno.EACCES, "any words"), "rights"),
        (after(NetworkError("x"), requests.exceptions.ProxyError("Connection refused")), "proxy"),
        (after(NetworkError("x"), requests.exceptions.SSLError("self-signed certificate")), "certificate"),
        (after(NetworkError("x"), requests.exceptions.SSLError("certificate has expired")), "expired"),
        (after(NetworkError("x"), requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")), "socks"),
        (after(NetworkError("x"), httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")), "certificate"),
        (after(NetworkError("x"), httpx2.ConnectError("[Errno 111] Connection refused")), "refused"),
        (after(NetworkError("x"), socket.gaierror(-2, "Name or service not known")), "dns"),
        (NetworkError("x", "", 401), "login"),
        (NetworkError("x", "", 403), "forbidden"),
        (NetworkError("x", "", 404), "missing"),
        (NetworkError("x", "", 429), "limit"),
        (NetworkError("it broke", "", 502), "server"),
        (NetworkError("fatal: unable to access 'x': Could not resolve host: github.com", "", 503), "dns"),
        (NetworkError("fatal: SSL certificate problem: unable to get local issuer certificate"), "certificate"),
        (CommandFailed("uv: invalid peer certificate: UnknownIssuer", code=2), "certificate"),
        (CommandFailed("uv: numpy was not found ... (403 Forbidden)", code=2), "forbidden"),
        (CommandFailed("uv: dns error: failed to lookup address information", code=2), "dns"),
        (CommandFailed("uv: tunnel error: unsuccessful", code=2), "proxy"),
        (OrchestrateError("/x: need 5 GB, have 1 GB: the disk cannot hold this job"), "space"),
        (OrchestrateError("something that nobody knows"), ""),
    ],
)
def test_why(error: Exception, cause: str) -> None:
    assert causes.of(error) == cause


@pytest.mark.parametrize(
    ("cause", "hint", "advice"),
    [
        ("refused", "", "set HF_ENDPOINT"),
        ("dns", "set a mirror", "name service"),
        ("proxy", "set a mirror", "NO_PROXY"),
        ("certificate", "set a mirror", "SSL_CERT_FILE"),
        ("expired", "", "clock"),
        ("login", "", "https://user:password@host/...): HF_ENDPOINT"),
        ("login", "log in", "log in"),
        ("", "look there", "look there"),
        ("", "", "set HF_ENDPOINT"),
    ],
)
def test_what_helps(cause: str, hint: str, advice: str) -> None:
    remedy = causes.remedy(cause, "HF_ENDPOINT", hint)
    assert advice in remedy
    if cause in ("proxy", "certificate", "dns"):
        assert "mirror" not in remedy and "HF_ENDPOINT" not in remedy
