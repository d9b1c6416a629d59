"""The environment that reads a source as its own library does; `verify: logits` compares with it, whatever the tag's has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

TITLE = "the environment that `verify: logits` compares with"
# transformers 5 reads what 4 has saved as 4 does: of 60 tiny models that 4.57.6 has saved 56 have the same logits, and where 5 is
# known to be wrong, transformers_logits.py looks. 4 takes what 5 has saved for another model: rope base, rope scaling, experts.
# PEFT applies adapters. Both take any PyTorch from here on.
PACKAGES = ("transformers==5.23.0", "peft==0.21.2", "torch>=2.4")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")  # what these packages take
# An override of one of these is about the machine. Others are about the tag's scripts, which do not run here.
OVERRIDDEN = ("torch", "numpy")


def overrides(lines: Iterable[str]) -> tuple[str, ...]:
    """Those lines of `environment.overrides` that count here."""
    return tuple(line for line in lines if re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0].lower() in OVERRIDDEN)


def upstream() -> str:
    """The sha256 of the requirement lines, in hex."""
    return hashlib.sha256("\n".join(PACKAGES).encode()).hexdigest()
