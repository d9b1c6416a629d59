"""Bytes as people read and write them."""

from __future__ import annotations

import re

from llamacpp_orchestrator.errors import JobError

POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count(text: str, where: str) -> int:
    """A number of things that somebody has written down; JobError that names the place for anything else."""
    if not re.fullmatch(r"[1-9]\d{0,5}", text, re.ASCII):
        raise JobError(f'{where}: expected a number from 1 on, found "{text[:60]}"', "write it in digits alone, such as 4")
    return int(text)


def parse(text: str, where: str) -> int:
    """The bytes that somebody has written down, such as 8G or 7.5GiB; JobError that names the place for anything else."""
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT])(I?)B?\s*", text.upper())
    count = int(float(found[1]) * (1024 if found[3] else 1000) ** POWERS[found[2]]) if found else 0
    if not count:
        raise JobError(f'{where}: expected a size, found "{text[:100]}"', "write a number with its unit: 8G, 7.5GiB, 900M")
    return count
