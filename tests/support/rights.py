"""Rights of a user who is not root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

NOBODY = 65534


@contextmanager
def somebody() -> Iterator[None]:
    """Have no more rights than others, for a while; root may do everything."""
    mine = os.geteuid() == 0
    if mine:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if mine:
            os.setresuid(0, 0, 0)
