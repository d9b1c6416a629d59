"""What is an address, and what is wrong with one."""

from __future__ import annotations

import pytest

from llamacpp_orchestrator.storage import address


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/prefix",
        "s3://bucket",
        "gs://bucket/a/b/",
        "az://container/x",
        "abfs://container@account.dfs.core.windows.net/x",
        "sftp://me@host:22/srv/models",
        "file:///srv/models",
        "file:///C:/models",
        "memory://x",
    ],
)
def test_an_address(text: str) -> None:
    assert address.is_address(text) and not address.complaint(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://KEY:se/cret@bucket/x", "holds a credential"),
        ("sftp://me:secret@host/x", "holds a credential"),
        ("az://container/x?sig=secret", "signatures"),
        ("s3://bucket/x#secret", "signatures"),
        ("simplecache::s3://bucket/x", "one address"),
        ("S3://bucket/x", "one address"),
        ("://bucket", "one address"),
        ("https://host/x", "nothing can be written"),
        ("file://models", "a whole path"),
        ("s3://", "a name after s3://"),
        ("s3:///", "a name after s3://"),
        ("s3://bucket/../x", "no `..`"),
        ("s3://bucket/a b", "no spaces"),
    ],
)
def test_what_is_none(text: str, words: str) -> None:
    said = address.complaint(text)
    assert words in said and not any(secret in said for secret in ("cret@", "=secret", "#secret"))


@pytest.mark.parametrize("text", ["dist", "./dist", "C:\\dist", "C:/dist", "/srv/dist", "~/dist", "a:b"])
def test_a_folder_is_no_address(text: str) -> None:
    assert not address.is_address(text)


def test_one_place_has_one_key_however_it_ends() -> None:
    assert address.key("s3://bucket/x") == address.key("s3://bucket/x/") != address.key("s3://bucket/y")


def test_what_is_sent_under_another_name_lies_beside_its_place() -> None:
    assert address.sending("a/b.gguf").startswith("a/.") and address.draft("a/b.gguf", "r").startswith("a/.")
    assert address.draft("b.gguf", "one") != address.draft("b.gguf", "two")
    assert max(len(address.draft("x" * 250, "12345678")), len(address.sending("x" * 250))) < 60


@pytest.mark.parametrize(
    ("text", "atomic", "remote"), [("s3://b/x", True, True), ("sftp://h/x", False, True), ("file:///x", False, False)]
)
def test_how_a_store_is_written_to(text: str, atomic: bool, remote: bool) -> None:
    assert (address.is_atomic(text), address.is_remote(text)) == (atomic, remote)
