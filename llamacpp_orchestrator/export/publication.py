"""What goes to a repository of the hub, and what its model card tells of it: by the job, its lock, receipts and reports."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import llamacpp_orchestrator
from llamacpp_orchestrator.card.facts import CardCommand
from llamacpp_orchestrator.card.facts import CardFile
from llamacpp_orchestrator.card.facts import Facts
from llamacpp_orchestrator.card.facts import Origin
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.export import ollama
from llamacpp_orchestrator.export import quality_report
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job import repositories
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.repositories import Repository
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock import resolve as lock_resolve
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.models.hub_operations import LocalFile
from llamacpp_orchestrator.models.hub_operations import content_file
from llamacpp_orchestrator.models.hub_session import HUB
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.build import is_current
from llamacpp_orchestrator.pipeline.receipt import Receipt
from llamacpp_orchestrator.results import Measure
from llamacpp_orchestrator.results import Quality
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.util.store import text_of
from llamacpp_orchestrator.verify import gguf

README, GENERATION = "README.md", "generation_config.json"
# In an address a name with a password, or a token in place of the name (but `ssh://git@host` tells nothing); tokens of the hub
# and of GitHub by what they begin with.
SECRET = re.compile(
    r"://[^\s/?#@:]*:[^\s/?#@]+@|https?://[^\s/?#@]+@|\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})\b"
)
# Licences of the hub's list under which nothing that is made of a work may be passed on.
NO_DERIVATIVES = re.compile(r"cc-by(-nc)?-nd(-[\d.]+)?")


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """One repository with the outputs that go there; `endpoint` is the hub that may have the user's token, "" for none."""

    repository: Repository
    builds: tuple[Build, ...]
    endpoint: str = ""

    @property
    def id(self) -> str:
        """The repository's id."""
        return self.repository.id

    @property
    def name(self) -> str:
        """The repository's id, with its branch where that is not main."""
        revision = self.repository.publish.revision
        return self.id if revision == "main" else f"{self.id}@{revision}"

    @property
    def models(self) -> tuple[spec.Model, ...]:
        """The models that the outputs are of."""
        return tuple(dict.fromkeys(build.output.model for build in self.builds))

    @property
    def receipts(self) -> tuple[tuple[Build, Receipt], ...]:
        """The outputs that are there with their receipts."""
        read = ((build, pipeline_receipt.read(build.output.path)) for build in self.builds)
        return tuple((build, receipt) for build, receipt in read if receipt)


def publications(pinned: PinnedJob, builds: Iterable[Build]) -> list[Publication]:
    """Every repository of a job, of the outputs as the job makes them."""
    by_path = {build.output.path: build for build in builds}
    settings = pinned.context.settings
    endpoint = next((server for server in settings.huggingface if settings.trusts(server, HUB)), "")
    listed = repositories.repositories(pinned.context.job, pinned.context.file.parent)
    return [
        Publication(repository=one, builds=tuple(map(by_path.__getitem__, paths)), endpoint=endpoint)
        for one in listed
        if (paths := [output.path for output in one.outputs if output.path in by_path])
    ]


def check(pinned: PinnedJob, publication: Publication) -> None:
    """Raise JobError for an output that is not proven: without a receipt, changed since, or not checked as the job asks.

    And for what nobody else should have: a login or a token in what goes there as it is.
    """
    again = f"make it first: {pinned.context.command('run')}"
    publish, base = publication.repository.publish, pinned.context.file.parent
    texts = [fields.folder(text, base) for text in (publish.template, publish.system) if text]
    for path in (pinned.context.file, lock_file.path_for(pinned.context.file), *texts):
        if SECRET.search(text_of(path)):
            way = "take it out, and make it invalid if others have seen the file"
            raise JobError(f"{path.name} holds a login or a token, and whoever reads {publication.id} would have it", way)
    for build in publication.builds:
        if not is_current(build):
            known = pipeline_receipt.read(build.output.path)
            why = "is not what the job makes now" if known else "is not there, or has no receipt"
            raise JobError(f"{build.name} {why}: only what is made and checked is published", again)
    for build, receipt in publication.receipts:
        if missing := unchecked(build.output.model.verify, receipt):
            way = f"check it so, and make it again: {pinned.context.command('run', '--force')}"
            raise JobError(f"{build.name} has not passed the check {missing}, which the job asks for", way)


def unchecked(verify: str, receipt: Receipt) -> str:
    """The first level of checks that an output lacks and that a job asks for; "" for none, and where it could not be had."""
    last = check_levels.CONTENT if verify == check_levels.AUTO else verify
    asked = check_levels.LEVELS[: check_levels.LEVELS.index(check_levels.STRUCTURE if receipt.kind == "merged" else last) + 1]
    for level in asked:
        if level in check_levels.EXCUSES and any(note.endswith(check_levels.EXCUSES[level]) for note in receipt.notes):
            return ""
        if level not in receipt.levels:
            return level
    return ""


def files(pinned: PinnedJob, publication: Publication) -> tuple[LocalFile, ...]:
    """All that is sent but for the card: outputs, receipts, matrices, reports, the job with its lock, what Ollama reads."""
    places: dict[Path, str] = {}  # with their digests, "" for those that are small and read now
    for build, receipt in publication.receipts:
        folder = build.output.path.parent
        places |= {folder / file.name: file.sha256 for file in receipt.files}
        places[pipeline_receipt.receipt_path(build.output.path)] = ""
        if build.matrix:
            places[folder / build.matrix.name] = ""
    for quality in qualities(pinned, publication):
        places |= {Path(path): "" for path in (quality.report, quality.plot) if path}
    root, file = fields.folder(pinned.context.job.output, pinned.context.file.parent), pinned.context.file
    listed = [_local(Path(os.path.relpath(path, root)).as_posix(), path, sha256) for path, sha256 in places.items()]
    beside = [_local(path.name, path, "") for path in (file, lock_file.path_for(file))]
    sent = (*listed, *beside, *_for_ollama(pinned, publication))
    reserved = [README] if publication.repository.publish.card != "none" else []
    taken = Counter(path.casefold() for path in (*reserved, *(file.path for file in sent)))
    if twice := next((file.path for file in sent if taken[file.path.casefold()] > 1), ""):
        raise JobError(
            f"{publication.name}: two files would be called {twice} there", "give the job file, or the output, another name"
        )
    return sent


def _local(path: str, file: Path, sha256: str) -> LocalFile:
    return LocalFile(path=path, size=file.stat().st_size, sha256=sha256 or file_sha256(file), file=file)


def _for_ollama(pinned: PinnedJob, publication: Publication) -> Iterator[LocalFile]:
    """What `ollama run hf.co/...` reads of a repository, and cannot find in the file: sampling, and what the job gives."""
    publish, models = publication.repository.publish, publication.models
    kept = [build for build in publication.builds if build.output.kind in ("model", "quantized")]
    for name in ("template", "system") if kept else ():
        if text := getattr(publish, name):
            yield _local(name, fields.folder(text, pinned.context.file.parent), "")
    if kept and len(models) == 1:
        generation = preflight.read_json(small_files(pinned, records.model_need(models[0]).parts[0]) / GENERATION)
        stops = ollama.stops(ollama.ends(generation), metadata(kept[0]))
        params: dict[str, Any] = {name: json.loads(number) for name, number in ollama.parameters(generation).items()}
        params |= {"stop": list(stops)} if stops else {}
        if params:
            yield content_file("params", json.dumps(params, ensure_ascii=False, indent=2).encode() + b"\n")


def small_files(pinned: PinnedJob, part: Ingredient) -> Path:
    """The folder with a part's card and its words on sampling, fetched where it is not here; raises what keeps it from that."""
    pin = pinned.files(part.wanted)
    small = tuple(file for file in pin.files if file.path in (README, GENERATION))
    return lock_resolve.origin(pinned.context, msgspec.structs.replace(pin, files=small), lambda text: None)


def parts(publication: Publication) -> dict[Ingredient, tuple[str, float]]:
    """All models and adapters that the outputs are made of, with their roles and weights."""
    roles: dict[Ingredient, tuple[str, float]] = {}
    for build in publication.builds:
        need = records.model_need(build.output.model)
        roles.setdefault(need.parts[0], ("base", 1.0))
        roles |= {adapter: ("merged", weight) for adapter, weight in need.merged}
        if lora := build.output.lora:
            roles[Ingredient(records.lora_wanted(lora), lora.name)] = ("adapter", 1.0)
    return roles


def origins(pinned: PinnedJob, publication: Publication) -> tuple[Origin, ...]:
    """The same in the words of a card."""
    return tuple(_origin(pinned, part, role, weight) for part, (role, weight) in parts(publication).items())


def _origin(pinned: PinnedJob, part: Ingredient, role: str, weight: float) -> Origin:
    wanted = part.wanted
    return Origin(
        source=fields.folder_name(pinned.context.folder(wanted.source)) if wanted.is_folder else wanted.source,
        commit=pinned.files(wanted).commit,
        role=role,
        weight=weight,
        front=front_matter(text_of(small_files(pinned, part) / README)),
    )


def front_matter(card: str) -> dict[str, Any]:
    """The front matter of a card with all scalars as text, so that a language `no` is no false; {} where there is none."""
    import yaml

    front = ollama.FRONT.match(card.removeprefix("\ufeff").replace("\r\n", "\n"))
    try:
        content = yaml.load(front[1].replace("\t", "  "), yaml.BaseLoader) if front else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def facts(pinned: PinnedJob, publication: Publication, sources: tuple[Origin, ...]) -> Facts:
    """What the card of a repository tells."""
    models, receipts = publication.models, publication.receipts
    adapters = [build.output.lora.name for build in publication.builds if build.output.lora]
    alone = len(adapters) == len(publication.builds)
    versions, root = receipts[0][1].versions, fields.folder(pinned.context.job.output, pinned.context.file.parent)
    measured = qualities(pinned, publication)
    plots = [Path(os.path.relpath(quality.plot, root)).as_posix() for quality in measured if quality.plot]
    texts = [report.text for quality in measured if (report := quality_report.read(Path(quality.report)))]
    rows = {
        Path(os.path.normpath(Path(quality.report).parent / row.file)): row
        for quality in measured
        for row in (quality.unquantized, *quality.types)
    }
    headers = {
        build.name: gguf.contents([build.output.path.parent / file.name for file in receipt.files])
        for build, receipt in receipts
        if build.output.kind != "merged"
    }
    keys = {key for contents in headers.values() for key in contents.metadata}
    chat = "tokenizer.chat_template" in keys
    return Facts(
        repo=publication.id,
        title=", ".join(dict.fromkeys(adapters if alone else [model.name for model in models])),
        relation="adapter" if alone else "merge" if any(model.merge for model in models) else "quantized",
        files=tuple(row for build, receipt in receipts for row in _rows(root, build, receipt, headers.get(build.name), rows)),
        origins=sources,
        commands=tuple(CardCommand(path=build.name, command=receipt.command, notes=receipt.notes) for build, receipt in receipts),
        tag=versions.tag,
        commit=versions.commit,
        tree=versions.tree,
        environment=versions.environment,
        tool=llamacpp_orchestrator.__version__,
        job=pinned.context.file.name,
        lock=lock_file.path_for(pinned.context.file).name,
        plot=next(iter(plots), ""),
        measured_on=", ".join(dict.fromkeys(texts)),
        chat=chat,
        embedding=not chat and any(key.endswith(".pooling_type") for key in keys),
        revision=publication.repository.publish.revision,
        matrix=next((build.matrix.name for build, _ in receipts if build.matrix), ""),
    )


def qualities(pinned: PinnedJob, publication: Publication) -> list[Quality]:
    """What was measured of the models whose files are sent, and still holds."""
    jobs = quality_report.find(pinned, (build for build in pipeline_build.builds(pinned) if not build.output.temporary))
    sent = {build.output.path for build in publication.builds}
    names = [job for job in jobs if sent & {build.output.path for build in (job.base, *job.compared)}]
    return [
        quality for job in names if (done := quality_report.finished(job)) and (quality := quality_report.result(pinned, done))
    ]


def _rows(
    root: Path, build: Build, receipt: Receipt, contents: gguf.Contents | None, measures: Mapping[Path, Measure]
) -> Iterator[CardFile]:
    folder = build.output.path.parent
    paths = [folder / file.name for file in receipt.files]
    whole = sum(file.size for file in receipt.files)
    bits = gguf.bits_per_weight(contents, whole) if contents and build.output.kind != "adapter" else 0.0
    row = measures.get(paths[0])  # of a file of the same bytes alone: a report goes by their digests
    for path, file in zip(paths, receipt.files, strict=True):
        yield CardFile(
            path=Path(os.path.relpath(path, root)).as_posix(),
            kind=build.output.kind,
            type=build.output.type,
            size=file.size,
            sha256=file.sha256,
            bits=bits,
            levels=receipt.levels,
            ppl=row.ppl if row else None,
            kld=row.kld if row else None,
            same_top=row.same_top if row else None,
        )


def metadata(build: Build) -> Mapping[str, Any]:
    """What the header of an output says."""
    receipt = pipeline_receipt.read(build.output.path)
    first = [build.output.path.parent / file.name for file in receipt.files[:1]] if receipt else []
    return gguf.contents(first).metadata
