"""The pin of a converter tree: a tag with its commit or package, and the digest of its content."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Commit = Annotated[str, Meta(pattern="^([0-9a-f]{40})?$")]
Time = Annotated[str, Meta(pattern="^(\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\dZ)?$")]  # ISO 8601, UTC
Package = Annotated[str, Meta(pattern="^([\\w-]+==[\\d.]+ sha256:[0-9a-f]{64})?$")]


class SourcePin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """llama.cpp: the tag, what it points at (a commit, or the package that carries it) and the digest of the converter tree.

    `release` is what the job names where that is a release (vX.Y.Z, or `latest`), whose build `tag` then is.
    `time` is that of the commit, or of the package's upload, "" where nobody tells: the environment is resolved as of then.
    """

    tag: str
    release: str = ""
    repo: str
    tree: Sha256
    commit: Commit = ""
    package: Package = ""
    time: Time = ""

    def named(self) -> str:
        """The tag as the job names it."""
        return self.release or self.tag

    def key(self) -> str:
        """The name of its entry in the store."""
        return self.commit or f"package-{self.tag}"
