"""Real converter trees out of packages, and the repository in which tags lead to them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pypi_simple import PyPISimple

from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.source import tree as source_tree
from llamacpp_orchestrator.system import settings
from llamacpp_orchestrator.util import archive
from llamacpp_orchestrator.util import download
from tests.support.stage.github import git

# Enough for a tree to pass as upstream's.
SMALL = {
    "convert_hf_to_gguf.py": "print(1)\n",
    "convert_lora_to_gguf.py": "print(2)\n",
    "conversion/base.py": "base = 1\n",
    "LICENSE": "MIT\n",
}


def checkout(tag: str, dest: Path) -> None:
    """Put a tag's tree into an empty folder; "0.3.1" and the like are those that llama-cpp-python carried then."""
    known = settings.load(os.environ)
    if tag.startswith("b"):
        pypi.checkout("", tag, pypi.find(tag, known)[0], dest, known, lambda text: None)
    else:
        packed = dest.with_name(f"{dest.name}.tar.gz")
        url, digest = sdist("llama-cpp-python", tag, known.index.index_urls[0])
        download.fetch(url, packed, sha256=digest)
        archive.unpack(packed, dest, strip=3, keep=source_tree.wanted)


def sdist(package: str, version: str, index: str) -> tuple[str, str]:
    """URL and digest of a source package."""
    with PyPISimple(index) as client:
        found = [
            each for each in client.get_project_page(package).packages if each.version == version and each.package_type == "sdist"
        ]
    return found[0].url, found[0].digests["sha256"]


def history(root: Path, trees: Mapping[str, tuple[Path, str]]) -> None:
    """Make a repository like upstream's below a folder, with a tree under each tag, made at a time."""
    place = root / "ggml-org" / "llama.cpp"
    place.mkdir(parents=True)
    git("init", "-q", "-b", "master", at=place)
    git("config", "uploadpack.allowFilter", "true", at=place)
    for tag, (tree, time) in trees.items():
        for old in place.iterdir():
            if old.name != ".git":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copytree(tree, place, dirs_exist_ok=True)
        for words in (("add", "-A"), ("commit", "-q", "-m", tag), ("tag", tag)):
            git(*words, at=place, GIT_COMMITTER_DATE=time)


def commit(root: Path, texts: dict[str, str], *tag: str) -> str:
    """Commit files under a tag, and answer the commit."""
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    for words in (("add", "-A"), ("commit", "-q", "--allow-empty", "-m", "one"), ("tag", *tag)):
        git(*words, at=root)
    return git("rev-parse", "HEAD", at=root).strip()
