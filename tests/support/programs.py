"""Programs that a test runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def installed(name: str) -> Path:
    """A program that lies beside the interpreter that runs the tests."""
    return Path(sys.executable).with_name(name + (".exe" if os.name == "nt" else ""))
