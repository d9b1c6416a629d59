"""What libraries of stores raise, in our words: who refused what, what that likely means, and what to do."""

from __future__ import annotations

import errno

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.storage import address as storage_address

CREDENTIALS = frozenset(
    """
    NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError UnauthorizedSSOTokenError
    DefaultCredentialsError RefreshError ClientAuthenticationError AuthenticationException PasswordRequiredException
    ProfileNotFound SSHException
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)
UNREACHED = frozenset(
    """
    EndpointConnectionError ConnectTimeoutError ReadTimeoutError ConnectionClosedError ClientConnectorError
    ClientConnectorDNSError ServerDisconnectedError ServerTimeoutError HTTPClientError gaierror TimeoutError
    NoValidConnectionsError ServiceRequestError ProxyConnectionError SSLError FSTimeoutError
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)
UNKNOWN = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthFailure")  # what s3 says of a wrong key
ALTERED = frozenset(("FlexibleChecksumError", "ChecksumError", "ChecksumMismatch", "DataCorruption"))  # as libraries see it
REFUSED = {
    errno.ENOSPC: ("is full", "make room there, or set another `output`"),
    getattr(errno, "EDQUOT", errno.ENOSPC): ("is full for you", "make room there, or set another `output`"),
    errno.EROFS: ("cannot be written to", "set another `output`"),
}
LOGIN = "log in as its library does it (for s3: AWS_PROFILE, AWS_ACCESS_KEY_ID, ~/.aws); see docs/storage.md"
ALTERS = "run the same command again; if it happens again, what lies between here and there alters bytes"
AGAIN = "is the network there? run the same command again: it goes on where it was"


def absent(address: str, error: Exception) -> JobError:
    """Why a protocol cannot be used on this machine, and what to install."""
    name = storage_address.protocol(address)
    package = storage_address.PACKAGES.get(name, "")
    if isinstance(error, ModuleNotFoundError) and error.name == "fsspec":
        also = f" {package}" if package else ""
        return JobError(f"output: {address} needs fsspec, which is not installed", f"install it: pip install fsspec{also}")
    if isinstance(error, ValueError):
        way = "write one that fsspec knows, such as s3://, gs://, az://, sftp:// or file:///"
        return JobError(f"output: nothing here knows the protocol {name}{storage_address.SEPARATOR}", way)
    way = f"install it: pip install {package}" if package else quoted(error)
    return JobError(f"output: {address} needs a package that is not installed{f', {package}' if package else ''}", way)


def told(address: str, error: Exception) -> OrchestrateError:
    """A failure at an address in our words."""
    if isinstance(error, OrchestrateError):
        return error
    kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    words = quoted(" ".join(str(error).split())) or type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    if number in REFUSED:
        what, way = REFUSED[number]
        return OrchestrateError(f"{address} {what}: {words}", way)
    if kinds & CREDENTIALS or any(code in words for code in UNKNOWN):
        return NetworkError(f"{address} asks who you are: {words}", LOGIN)
    if isinstance(error, PermissionError):
        return NetworkError(f"{address} refused: {words}", "may you read and write there? set another `output` otherwise")
    if isinstance(error, FileNotFoundError):
        return NetworkError(f"{address} is not there: {words}", "is the bucket or server right? orchestrate makes none")
    if isinstance(error, NotImplementedError):
        return JobError(f"{address} cannot be written to: {words}", "set another `output`")
    if kinds & ALTERED:
        return IntegrityError(f"{address} came back with other bytes: {words}", ALTERS)
    if kinds & UNREACHED or isinstance(error, ConnectionError):
        return NetworkError(f"{address} could not be reached: {type(error).__name__}: {words}", AGAIN)
    return NetworkError(f"{address} could not be used: {type(error).__name__}: {words}", AGAIN)


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def other_bytes(address: str, expected: str, there: str) -> IntegrityError:
    """That what was read back is not what was sent."""
    return IntegrityError(f"{address} has {there}, and {expected} was sent", ALTERS)
