"""A tag of llama.cpp as it is written, and what it says by itself."""

from __future__ import annotations

import re

import msgspec

LATEST = "latest"
# Builds; releases, which name the build that has their programs; the newest release; commits; and the tags of 2023.
PATTERN = r"b\d{1,7}|v\d{1,4}(?:\.\d{1,6}){1,3}|latest|[0-9a-f]{40}|master-[0-9a-f]{7,40}"


class Tag(msgspec.Struct, frozen=True):
    """A build (bNNNN), a release (vX.Y.Z, or `latest`), a commit, or a tag from before there were builds (master-HEX)."""

    text: str

    @property
    def is_valid(self) -> bool:
        """Whether it is written as one of these; anything else never reaches git."""
        return bool(re.fullmatch(PATTERN, self.text, re.ASCII))

    @property
    def build(self) -> int | None:
        """N of bN, None for the others."""
        number = re.fullmatch(r"b(\d{1,7})", self.text, re.ASCII)
        return int(number[1]) if number else None

    @property
    def commit(self) -> str:
        """The commit, where it is one (40 hex digits); else ""."""
        return self.text if re.fullmatch(r"[0-9a-f]{40}", self.text) else ""

    @property
    def is_release(self) -> bool:
        """Whether only its release says which build is meant."""
        return self.is_valid and (self.text == LATEST or self.text.startswith("v"))

    @property
    def is_dated(self) -> bool:
        """Whether it is older than all builds."""
        return self.is_valid and self.text.startswith("master-")
