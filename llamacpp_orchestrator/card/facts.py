"""What a model card tells of published files: plain facts, as receipts, lock and reports have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class CardFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a repository: `path` there, size in bytes, `bits` per weight (0 where nobody can tell), checks it has passed.

    `ppl` and `kld` are its perplexity and mean KL divergence, `same_top` (%) how often it guesses the same next token as the
    unquantized file: None where they were not measured.
    """

    path: str
    kind: str
    type: str
    size: int
    sha256: str
    bits: float = 0.0
    levels: tuple[str, ...] = ()
    ppl: float | None = None
    kld: float | None = None
    same_top: float | None = None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A model or adapter that files were made from: a hub id at a commit, or the bare name of a folder without one.

    `role` is base, adapter or merged (an adapter that was merged into the base, with its `weight`); `front` is the front matter
    of its own card with all scalars as text, {} without one.
    """

    source: str
    role: str
    commit: str = ""
    weight: float = 1.0
    front: Mapping[str, Any] = {}


class CardCommand(msgspec.Struct, frozen=True, kw_only=True):
    """The command that made a file, as its receipt has it, and what was noted."""

    path: str
    command: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that a card tells: of the files of one repository, what they were made of, how, and how to make them again.

    `relation` to the base is quantized, adapter or merge. `tree` and `environment` are digests; `plot` is the picture's path in
    the repository, "" without one; `chat` tells whether the files have a chat template; `tool` is the version of this program.
    `job` and `lock` are paths in the repository, `measured_on` is the name of the text measured on, `matrix` that of the
    importance matrix; `revision` is the branch that they lie on, `others` are GGUF files there of which nothing is told.
    `embedding` tells of files that turn a text into a vector: they name a pooling, and have no chat template.
    """

    repo: str
    title: str
    relation: str
    files: tuple[CardFile, ...]
    origins: tuple[Origin, ...]
    commands: tuple[CardCommand, ...]
    tag: str
    commit: str
    tree: str
    environment: str
    tool: str
    job: str
    lock: str
    plot: str = ""
    measured_on: str = ""
    chat: bool = False
    matrix: str = ""
    embedding: bool = False
    revision: str = "main"
    others: tuple[str, ...] = ()
