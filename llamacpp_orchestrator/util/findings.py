"""What a check has to say: failures and notes."""

from __future__ import annotations

import msgspec


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong for certain, and what a reader should know."""

    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(failures=self.failures + other.failures, notes=self.notes + other.notes)
