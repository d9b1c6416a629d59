"""An address in place of an output folder, such as s3://bucket/prefix: what is one, what is wrong with it, names below it."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

SEPARATOR = "://"
PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*")
# These show an object only once it is whole; everywhere else a file is sent under another name, and renamed.
OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos", "obs", "cos", "r2"))
READ_ONLY = frozenset(("http", "https", "github", "git", "zip", "tar", "data", "reference", "libarchive"))
# What to install for a protocol; for others fsspec itself tells.
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "smb": "smbprotocol",
    **dict.fromkeys(("webdav", "webdavs"), "webdav4"),
}


def is_address(text: str) -> bool:
    """Tell whether a job's `output` is an address, and no folder."""
    return SEPARATOR in text


def protocol(address: str) -> str:
    """What an address begins with."""
    return address.partition(SEPARATOR)[0]


def complaint(address: str) -> str:
    """What is wrong with an address, "" for nothing; the words hold nothing that may be a secret."""
    name, _, rest = address.partition(SEPARATOR)
    if "::" in address or not PROTOCOL.fullmatch(name):
        return "expected a folder, or one address such as s3://bucket/prefix"
    if re.search(r":.*@", rest):
        return "holds a credential; job, lock and receipts are files that one shares"
    if re.search(r"[?#]", rest):
        return "an address has no `?` and no `#`: what may stand there are signatures, and those are secrets"
    if re.search(r"[\s\x00-\x1f\x7f\\]", rest) or ".." in rest.split("/"):
        return "an address has no spaces, no backslashes and no `..`"
    if name in READ_ONLY:
        return f"nothing can be written to {name}{SEPARATOR}"
    if name in ("file", "local") and not rest.startswith("/"):
        return f"expected a whole path after {name}{SEPARATOR}, as in {name}:///srv/models"
    return "" if rest.strip("/") else f"expected a name after {name}{SEPARATOR}"


def key(address: str) -> str:
    """What tells an address from every other, as the name of a folder."""
    return hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:24]


def join(address: str, name: str) -> str:
    """The address of what goes by a name there."""
    return f"{address.rstrip('/')}/{name}"


def is_atomic(address: str) -> bool:
    """Tell whether nobody ever sees half of what is sent to an address."""
    return protocol(address) in OBJECT_STORES


def is_remote(address: str) -> bool:
    """Tell whether somebody else must be asked for what lies at an address."""
    return protocol(address) not in ("file", "local", "memory")


def sending(name: str) -> str:
    """The name of what says, beside a file, that its output is on its way."""
    path = PurePosixPath(name)
    return path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:24]}.sending.json").as_posix()


def draft(name: str, run: str) -> str:
    """The name under which a run sends a file that would else be seen while it is half there."""
    path = PurePosixPath(name)
    return path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:24]}.{run}.part").as_posix()
