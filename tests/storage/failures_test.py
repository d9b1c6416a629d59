"""What libraries raise, in our words."""

from __future__ import annotations

import errno

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.storage import failures


def named(name: str, text: str = "words") -> Exception:
    return type(name, (Exception,), {})(text)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left"), OrchestrateError, "is full"),
        (OSError(errno.EROFS, "Read-only"), OrchestrateError, "cannot be written to"),
        (PermissionError("Access Denied"), NetworkError, "refused: Access Denied"),
        (PermissionError("The AWS Access Key Id does not exist: InvalidAccessKeyId"), NetworkError, "asks who you are"),
        (named("NoCredentialsError"), NetworkError, "asks who you are"),
        (FileNotFoundError("The specified bucket does not exist"), NetworkError, "is not there"),
        (NotImplementedError("read only"), JobError, "cannot be written to"),
        (named("EndpointConnectionError"), NetworkError, "could not be reached"),
        (named("FlexibleChecksumError"), IntegrityError, "came back with other bytes"),
        (ConnectionResetError("reset"), NetworkError, "could not be reached"),
        (TimeoutError(), NetworkError, "could not be reached: TimeoutError"),
        (RuntimeError("a\nb"), NetworkError, "could not be used: RuntimeError: a b"),
    ],
)
def test_a_failure(error: Exception, kind: type, words: str) -> None:
    told = failures.told("s3://b/x", error)
    assert type(told) is kind and told.message.startswith("s3://b/x ") and words in told.message
    assert told.hint and "\n" not in told.message


def test_a_cause_counts() -> None:
    outer = OSError("failed")
    outer.__cause__ = named("NoCredentialsError")
    assert "asks who you are" in failures.told("s3://b", outer).message


def test_our_own_words_stay() -> None:
    error = IntegrityError("x")
    assert failures.told("s3://b", error) is error


@pytest.mark.parametrize(
    ("address", "error", "way"),
    [
        ("s3://b/x", ModuleNotFoundError("No module named 'fsspec'", name="fsspec"), "pip install fsspec s3fs"),
        ("gs://b/x", ImportError("Please install gcsfs"), "pip install gcsfs"),
        ("odd://b/x", ValueError("Protocol not known: odd"), "that fsspec knows"),
        ("hdfs://b/x", ImportError("pyarrow is needed"), "pyarrow is needed"),
    ],
)
def test_what_is_not_installed_is_named(address: str, error: Exception, way: str) -> None:
    told = failures.absent(address, error)
    assert told.exit_code == 2 and way in told.hint
