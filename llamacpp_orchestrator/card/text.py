"""The model card of published files: what their receipts, lock and reports tell, in English or Chinese.

Equal facts give equal bytes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.card import front as card_front
from llamacpp_orchestrator.card import markup as card_markup
from llamacpp_orchestrator.card import merge as card_merge
from llamacpp_orchestrator.card.facts import CardFile
from llamacpp_orchestrator.card.facts import Facts
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.pipeline import receipt

LANGUAGES = ("en", "zh")
MODELS = ("model", "quantized")
RANKS = {"model": 0, "quantized": 0, "mmproj": 1, "adapter": 2}
AGREEING = 95.0  # %; below this more than one in twenty next tokens is another
USUAL = "Q4_K_M"  # what llama.cpp, Ollama and the hub take where no type is named
# What llama.cpp does not take for a model (common/download.cpp, gguf_filename_is_model).
BESIDE = re.compile(r"(mmproj|imatrix|mtp-|eagle3-|dflash-|dspark-)[^/]*$")
LATER_SHARD = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")
PICTURE = "photo.jpg"
Words = tuple[str, ...]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One output: a file, all shards of one, whose `name` has no number, or a merged model's folder."""

    name: str
    paths: tuple[str, ...]
    kind: str
    type: str
    size: int
    bits: float
    levels: tuple[str, ...]
    ppl: float | None
    kld: float | None
    same_top: float | None

    @property
    def path(self) -> str:
        """The file that programs are given: they find the other shards by themselves."""
        return self.paths[0]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What measurements say of which file to take: the closest to the unquantized one, the smallest that agrees with it.

    `beaten` has pairs: a file, and one that is not larger and yet closer.
    """

    closest: Row
    smallest: Row | None
    beaten: tuple[tuple[Row, Row], ...]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The commands that run the files, by program; () where it cannot, or where nothing says that it can."""

    llama: tuple[Words, ...]
    ollama: Words = ()
    lm_studio: Words = ()
    adapter: tuple[Words, ...] = ()


def text(facts: Facts, language: str) -> str:
    """The whole card in a language of LANGUAGES: front matter, and our section."""
    made = rows(facts.files)
    shown = {
        "facts": facts,
        "rows": made,
        "choice": choice(made),
        "usage": usage(facts, made),
        "task": card_front.pipeline_tag(facts),
        "checks": checks(made),
        "folders": [origin.source for origin in facts.origins if not origin.commit],
        "verify": verify(facts, made),
        "again": again(facts, made),
        "notes": [(command.path, note) for command in facts.commands for note in command.notes],
        "agreeing": AGREEING,
    }
    body = _environment().get_template(f"{language}.md.j2").render(shown)
    return card_merge.whole(card_front.dump(card_front.keys(facts)), re.sub(r"\n{3,}", "\n\n", body).strip("\n"))


@functools.cache
def _environment() -> Any:
    """The templates' environment: whatever is no markup of ours is escaped, in every place, without being asked to."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,  # so that macros give Markup
        finalize=lambda value: value if isinstance(value, Markup) else card_markup.text(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(card_markup, name) for name in ("code", "shell", "target", "size")}
    environment.globals |= {"page": card_markup.page, "licences": card_front.licences}
    return environment


def rows(files: Iterable[CardFile]) -> list[Row]:
    """The outputs: models from large to small, then projectors and adapters."""
    outputs = dict[str, list[CardFile]]()
    for file in files:
        name = receipt.SHARD.sub("", file.path) if file.kind != "merged" else file.path.rpartition("/")[0]
        outputs.setdefault(name, []).append(file)
    made = [_row(name, shards) for name, shards in outputs.items()]
    return sorted(made, key=lambda row: (RANKS.get(row.kind, len(RANKS)), -row.size, row.path))


def _row(name: str, shards: Sequence[CardFile]) -> Row:
    first, *_ = shards = sorted(shards, key=lambda file: file.path)
    return Row(
        name=name,
        paths=tuple(file.path for file in shards),
        kind=first.kind,
        type=first.type,
        size=sum(file.size for file in shards),
        bits=first.bits,
        levels=first.levels,
        ppl=first.ppl,
        kld=first.kld,
        same_top=first.same_top,
    )


def choice(outputs: Iterable[Row]) -> Choice | None:
    """What the measured divergences support; None where fewer than two files have one, or not all from the same file."""
    outputs = list(outputs)
    measured = [(row.kld, row) for row in outputs if row.kld is not None]
    unquantized = [row for row in outputs if row.kld is None and row.ppl is not None]
    if len(measured) < 2 or len(unquantized) > 1:
        return None
    agreeing = [row for _, row in measured if row.same_top is not None and row.same_top >= AGREEING]
    beaten = []
    for kld, row in measured:
        better = [(other, one) for other, one in measured if other < kld and one.size <= row.size]
        beaten += [(row, min(better, key=lambda pair: (pair[0], pair[1].size))[1])] if better else []
    return Choice(
        closest=min(measured, key=lambda pair: (pair[0], pair[1].size))[1],
        smallest=min(agreeing, key=lambda row: row.size, default=None),
        beaten=tuple(beaten),
    )


def example(outputs: Sequence[Row]) -> Row | None:
    """The file that commands name: of the usual type where there is one, else the first that is quantized, else the first."""
    quantized = [row for row in outputs if row.kind == "quantized"]
    usual = [row for row in quantized if row.type.upper() == USUAL]
    return next(iter([*usual, *quantized, *(row for row in outputs if row.kind in RANKS)]), None)


def is_found_by_type(facts: Facts, row: Row) -> bool:
    """Tell whether `REPO:TYPE` leads to a file: llama.cpp takes the first in whose path the type stands before a . or -."""
    pattern = re.compile(re.escape(row.type) + "[.-]", re.IGNORECASE)
    paths = sorted((*(file.path for file in facts.files if file.path.endswith(".gguf")), *facts.others))
    models = (path for path in paths if not BESIDE.search(path) and not LATER_SHARD.search(path))
    return next(filter(pattern.search, models), "") == row.path


def usage(facts: Facts, outputs: Sequence[Row]) -> Usage:
    """How the files are run, from the hub where that works: no program but `hf` takes another branch than main."""
    row = example([row for row in outputs if row.kind in MODELS])
    adapters = [output.path for output in outputs if output.kind == "adapter"][:1]
    if row is None:
        programs = ("llama-cli", "llama-server")
        alone = [(program, "-m", "BASE.gguf", "--lora", path) for path in adapters for program in programs]
        return Usage(llama=(), adapter=(*(_fetch(facts, path) for path in adapters), *alone))
    on_main, by_type, upper = facts.revision == "main", is_found_by_type(facts, row), row.type.upper()
    named = ("-hf", f"{facts.repo}:{upper}") if by_type else ("-hf", facts.repo, "-hff", row.path)
    place = named if on_main else ("-m", row.path)
    llama = tuple(_llama(facts, place))
    talking = on_main and llama[0][0] in ("llama-cli", "llama-completion")
    ollama = ("ollama", "run", f"hf.co/{facts.repo}:{upper if by_type else row.path}")
    studio = ("lms", "get", f"https://huggingface.co/{facts.repo}{f'@{upper}' if by_type else ''}")
    return Usage(
        llama=llama if on_main else (_fetch(facts, *row.paths), *llama),
        ollama=ollama if talking and len(row.paths) == 1 else (),  # Ollama takes no split files from the hub
        lm_studio=studio if talking else (),
        adapter=tuple(words for path in adapters for words in (_fetch(facts, path), ("llama-cli", *place, "--lora", path))),
    )


def _fetch(facts: Facts, *paths: str) -> Words:
    branch = () if facts.revision == "main" else ("--revision", facts.revision)
    return ("hf", "download", facts.repo, *paths, *branch, "--local-dir", ".")


def _llama(facts: Facts, place: Words) -> Iterable[Words]:
    """The commands of llama.cpp's programs for a task; a projector is fetched with its model."""
    task, projected = card_front.pipeline_tag(facts), any(file.kind == "mmproj" for file in facts.files)
    if task in card_front.EMBEDDING:
        yield ("llama-embedding", *place, "-p", "Hello, world")
        yield ("llama-server", *place, "--embeddings")
    elif task == "text-ranking":
        yield ("llama-server", *place, "--rerank")
    elif facts.chat or projected:
        yield ("llama-cli", *place, *(("--image", PICTURE) if projected and "image" in task else ()))
        yield ("llama-server", *place)
    else:
        yield ("llama-completion", *place, "-p", "Once upon a time")
        yield ("llama-server", *place)


def checks(outputs: Iterable[Row]) -> list[tuple[str, tuple[str, ...]]]:
    """The levels that files have passed, each with the paths of those files; () for all of them."""
    outputs = list(outputs)
    passed = {level: tuple(row.name for row in outputs if level in row.levels) for level in check_levels.LEVELS}
    return [(level, () if len(names) == len(outputs) else names) for level, names in passed.items() if names]


def verify(facts: Facts, outputs: Sequence[Row]) -> tuple[Words, ...]:
    """How to check a file, once downloaded, by its receipt; () where there is no file."""
    row = example(outputs)
    if row is None:
        return ()
    return _fetch(facts, *row.paths, _receipt(row)), ("orchestrate", "verify", row.path)


def again(facts: Facts, outputs: Sequence[Row]) -> tuple[Words, ...]:
    """How to make a file again by its receipt, the job and the lock; () where these are not in the repository."""
    row = example(outputs)
    if row is None or not facts.job:
        return ()
    return (
        _fetch(facts, facts.job, facts.lock, _receipt(row)),
        ("orchestrate", "reproduce", _receipt(row), "--job", facts.job),
    )


def _receipt(row: Row) -> str:
    return receipt.receipt_path(Path(row.name)).as_posix()
