"""The repositories of the hub that a job's outputs are published to, and which outputs go to which."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.job.spec import Job
from llamacpp_orchestrator.job.spec import Publish
from llamacpp_orchestrator.util import yaml_reader
from llamacpp_orchestrator.util.yaml_reader import Reading

OF_REPOSITORY = ("private", "card", "system", "template")  # what models that share a repository must agree upon


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """One repository: its id, how the job says it is published, and the outputs that go there, in the job's order."""

    id: str
    publish: Publish
    outputs: tuple[Output, ...]


def repositories(job: Job, base: Path) -> list[Repository]:
    """Every repository of a job with the outputs that are sent there."""
    known: dict[tuple[str, str], Repository] = {}
    for _, output in layout.placed(job, base):
        publish = output.model.publish
        if publish is None or output.temporary or not is_sent(publish, output):
            continue
        name = repository_of(publish, output)
        key = name.casefold(), publish.revision
        before = known.get(key, Repository(id=name, publish=publish, outputs=()))
        known[key] = msgspec.structs.replace(before, outputs=(*before.outputs, output))
    return list(known.values())


def repository_of(publish: Publish, output: Output) -> str:
    """The id of the repository that an output goes to: that of its model, or an adapter's own."""
    name = publish.repo.replace("{name}", output.model.name)
    if output.lora and publish.adapters == "apart":
        return f"{name.split('/')[0]}/{output.model.name}-{output.lora.name}-LoRA-GGUF"
    return name


def is_sent(publish: Publish, output: Output) -> bool:
    """Tell whether an output is published: all GGUF files by default, a merged model in safetensors only where it is named."""
    if not publish.files:
        return output.kind != "merged"
    return any(matches(pattern, output) for pattern in publish.files)


def matches(pattern: str, output: Output) -> bool:
    """Tell whether a word of `publish.files` means an output: by its type, or by its file name."""
    name = output.path.parent.name if output.kind == "merged" else output.path.name
    return pattern.casefold() == output.type.casefold() or fnmatch.fnmatch(name.casefold(), pattern.casefold())


def check(job: Job, base: Path, reading: Reading) -> None:
    """Complain of what cannot be published as a job says it."""
    for where, publish, outputs in _publishing(job, base, reading):
        for number, pattern in enumerate(publish.files):
            if not any(matches(pattern, output) for output in outputs):
                known = ", ".join(dict.fromkeys(output.path.name for output in outputs))
                complaint = f'"{yaml_reader.shown(pattern)}" means none of its outputs'
                yaml_reader.say(reading, f"{where}.files[{number}]", complaint, f"they are: {known}")
        for name in dict.fromkeys(repository_of(publish, output) for output in outputs if is_sent(publish, output)):
            if complaint := fields.source(name):
                hint = "the hub takes letters, digits, - _ and . there, 96 in all: set `repo` without {name}, or `name`"
                yaml_reader.say(reading, f"{where}.repo", complaint, hint)
    for repository in repositories(job, base):
        others = {id(output.model): output.model.publish for output in repository.outputs}
        for key in OF_REPOSITORY:
            if len({getattr(publish, key) for publish in others.values()}) > 1:
                complaint = f"models that go to {repository.id} say different things of `{key}`"
                index = max(number for number, model in enumerate(job.models) if id(model) in others)
                yaml_reader.say(reading, f"models[{index}].publish.{key}", complaint, "say the same, or write {name} into `repo`")


def _publishing(job: Job, base: Path, reading: Reading) -> Iterator[tuple[str, Publish, list[Output]]]:
    """Each `publish` of the job file with its place there and the outputs that it speaks of."""
    outputs = [output for _, output in layout.placed(job, base) if not output.temporary]
    by_place: dict[str, tuple[Publish, list[Output]]] = {}
    for index, model in enumerate(job.models):
        if model.publish:
            own = f"models[{index}].publish"
            where = own if any(line.startswith(own) for line in reading.lines) else "publish"
            of_model = [output for output in outputs if output.model is model]
            by_place.setdefault(where, (model.publish, []))[1].extend(of_model)
    return ((where, publish, listed) for where, (publish, listed) in by_place.items())
