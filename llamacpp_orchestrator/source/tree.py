"""llama.cpp's converter tree: which files belong to it, and one digest over them, whichever route they came by."""

from __future__ import annotations

import datetime
from pathlib import Path

from llamacpp_orchestrator.util.hashing import folder_sha256

SCRIPTS = {"model": "convert_hf_to_gguf.py", "adapter": "convert_lora_to_gguf.py"}

FOLDERS = ("conversion/", "requirements/", "models/templates/", "gguf-py/gguf/")
FILES = frozenset(
    (
        "convert_hf_to_gguf.py",
        "convert_lora_to_gguf.py",
        "requirements.txt",
        "gguf-py/pyproject.toml",
        "models/ggml-vocab-gpt-neox.gguf",
        "models/ggml-vocab-llama-spm.gguf",
        "LICENSE",
    )
)
PATTERNS = (*(f"/{folder}" for folder in FOLDERS), *(f"/{file}" for file in sorted(FILES)))


def wanted(path: str) -> bool:
    """Whether a file of llama.cpp (a path with slashes) is one that the two scripts may read."""
    return (path in FILES or path.startswith(FOLDERS)) and "__pycache__" not in path and ".." not in path.split("/")


def whole(path: str) -> bool:
    """The same for a build of the programs: all of llama.cpp, and nothing of git's own."""
    return not path.startswith(".git/")


def tree_digest(root: Path) -> str:
    """The sha256 over the sorted paths and contents of a converter tree."""
    return folder_sha256(root, wanted)


def utc(seconds: float) -> str:
    """A time in seconds since 1970 as uv and locks write it: ISO 8601, UTC."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
