"""From finished outputs to repositories of the hub: what is proven goes there with its proof, in one commit for each."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llamacpp_orchestrator.card import front as card_front
from llamacpp_orchestrator.card import merge as card_merge
from llamacpp_orchestrator.card import text as card_text
from llamacpp_orchestrator.card.facts import Origin
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.export import CarryOut
from llamacpp_orchestrator.export import publication
from llamacpp_orchestrator.export.publication import Publication
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import hub_upload
from llamacpp_orchestrator.models.hub_operations import LocalFile
from llamacpp_orchestrator.models.hub_session import Place
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.results import PlannedStep
from llamacpp_orchestrator.results import Published
from llamacpp_orchestrator.system.disk import Need
from llamacpp_orchestrator.system.scheduler import NOTE
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Step
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.system.scheduler import performing
from llamacpp_orchestrator.util.background import load

KEY = "publish"
PLACE = re.compile(r"(?:^|[=\s,])(?:~[/\\]|/(?!/)|[A-Za-z]:[/\\]|file:|\\\\)")  # how a folder or file of some machine begins
VAGUE = ("other", "unknown")  # of a licence: to be read by whoever passes on what is made of the work

UNSEEN = (401, 403, 404)  # of a repository that is gone, or that this token may not see


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """All that is published in one run, by repository and branch."""

    pinned: PinnedJob
    options: Options
    publications: Mapping[str, Publication]


def check_job(contexts: Iterable[Context]) -> None:
    """Raise JobError where it is asked to publish and no job says where, or no server may be asked."""
    for context in contexts:
        check_place(context)
        context.online("the hub, to publish on,")


def check_place(context: Context) -> None:
    """Raise JobError where a job does not say where its outputs are published."""
    if not any(model.publish for model in context.job.models):
        way = "add it to the job, or to some of its models: `publish: your-name/{name}-GGUF`"
        raise JobError(f"{context.file.name} does not say where its outputs are published", way)


def find(pinned: PinnedJob, builds: Iterable[Build]) -> list[Publication]:
    """Every repository that a job publishes to."""
    return publication.publications(pinned, builds)


def check(items: Iterable[Publication], force: bool) -> None:
    """Raise JobError where no hub may be asked, or none may have a token, or there is no token."""
    load("huggingface_hub.hf_api")
    from huggingface_hub import constants
    from huggingface_hub import get_token

    for item in items:
        if constants.HF_HUB_OFFLINE:
            raise JobError(f"{item.id}: nothing can be sent there while HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
        if not item.endpoint:
            way = "unset HF_ENDPOINT, or name the host of a hub of your own in ORCHESTRATE_TOKEN_HOSTS"
            raise JobError(f"{item.id}: HF_ENDPOINT names a mirror, and your token is for the hub alone", way)
        if not get_token():
            way = f"log in with `hf auth login`, or set HF_TOKEN: {anonymous(item.endpoint)}/settings/tokens makes one"
            raise JobError(f"{item.id}: the hub takes nothing without a token that may write there", way)


def needs(pinned: PinnedJob, items: Iterable[Publication], force: bool) -> tuple[Need, ...]:
    """Nothing is written to a disk."""
    return ()


def reads(pinned: PinnedJob, items: Iterable[Publication], options: Options) -> Iterator[Build]:
    """All that is published."""
    return (build for item in items for build in item.builds)


def writes(items: Iterable[Publication]) -> tuple[Path, ...]:
    """Nothing is written beside the outputs."""
    return ()


def planned(pinned: PinnedJob, items: Iterable[Publication], current: frozenset[Path], force: bool) -> Iterator[PlannedStep]:
    """The repositories that a run would send to."""
    for item in items:
        yield PlannedStep(name=f"publish {item.name}", status="run", detail=f"{len(item.builds)} outputs")


def export(run: JobRun, items: Iterable[Publication], options: Options, carry_out: CarryOut) -> list[Event]:
    """Send what is not there yet, one repository after the other."""
    publications = {item.name: item for item in items}
    steps = [Step(kind=KEY, key=key, heavy=True) for key in publications]
    sending = Sending(pinned=run.pinned, options=options, publications=publications)
    return carry_out(steps, performing({KEY: _publish}, sending), 1)


def results(pinned: PinnedJob, items: Iterable[Publication], events: Iterable[Event]) -> tuple[Published, ...]:
    """What a run says of the repositories."""
    return tuple(event.outcome.value for event in events if event.outcome and isinstance(event.outcome.value, Published))


def _publish(sending: Sending, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    pinned, options, item = sending.pinned, sending.options, sending.publications[key]
    publication.check(pinned, item)
    sources = publication.origins(pinned, item)
    if not options.yes and (reasons := objections(pinned, item, sources, tell)):
        hint = "where you may pass it on all the same, run the same command with --yes"
        raise OrchestrateError(f"{item.id} was not published: {'; '.join(reasons)}", hint)
    for note in notes(pinned, sources):
        tell(f"{NOTE}{item.id}: {note}")
    publish, files = item.repository.publish, publication.files(pinned, item)
    place = Place(endpoint=item.endpoint, repo_id=item.id, revision=publish.revision, trusted=True)
    upload = hub_upload.Upload(
        place=place,
        files=files,
        title=f"Add files made with llama.cpp {pinned.tag}",
        card=_card(pinned, item, sources, files, tell),
        create=options.create,
        private=publish.private,
    )
    sent = hub_upload.send(upload, tell)
    status = "published" if sent.paths else "current"
    url = f"{place.shown}/{item.id}"
    done = Published(repo=item.id, url=url, revision=publish.revision, commit=sent.commit, status=status, files=sent.paths)
    return Outcome("done" if sent.paths else "current", done)


def _card(
    pinned: PinnedJob, item: Publication, sources: tuple[Origin, ...], files: tuple[LocalFile, ...], tell: Tell
) -> Callable[[str, Collection[str]], str] | None:
    """How a README is made of the one that is there and of all paths there; None where the job wants no card."""
    if item.repository.publish.card == "none":
        return None
    facts = publication.facts(pinned, item, sources)

    def card(existing: str, paths: Collection[str]) -> str:
        others = tuple(sorted(path for path in set(paths) - {file.path for file in files} if path.endswith(".gguf")))
        if others:
            tell(f"{NOTE}{item.id} also holds {quoted(', '.join(others))}: not made by this job, nor told of in its card")
        text = card_text.text(msgspec.structs.replace(facts, others=others), item.repository.publish.card)
        return card_merge.merged(existing, text) if existing else text

    return card


def objections(pinned: PinnedJob, item: Publication, sources: Iterable[Origin], tell: Tell) -> list[str]:
    """Why what is made of the sources may not be passed on."""
    reasons = []
    for source in sources:
        barred = ""
        try:
            barred = hub.barred(source.source, source.commit, pinned.context.settings, tell) if source.commit else ""
        except NetworkError as error:
            if error.status not in UNSEEN:
                raise
            reasons.append(
                f"{source.source} is there no more, or not for you, so that nobody can tell whether it is private or gated"
            )
        if barred == "gated":
            reasons.append(f"{source.source} is gated: its owner wants to know who gets it")
        if barred == "private" and not item.repository.publish.private:
            reasons.append(f"{source.source} is private, and {item.id} would not be (`private: true`)")
        licences = (*card_front.licences(source), card_front.licence_name(source))
        if licence := next(filter(publication.NO_DERIVATIVES.fullmatch, licences), ""):
            reasons.append(f"the licence of {source.source} ({licence}) forbids to pass on what is made of it")
    return reasons


def notes(pinned: PinnedJob, sources: Iterable[Origin]) -> list[str]:
    """What whoever publishes should look at."""
    lines = []
    for source in sources:
        if set(card_front.licences(source)) <= set(VAGUE):
            address = source.front.get("license_link", "")
            lines.append(f"{source.source} names no licence that is known here: read {quoted(address) or 'its own page'} first")
    texts = _texts(msgspec.to_builtins(pinned.context.job))
    if listed := [text for text in texts if PLACE.search(text)]:
        lines.append(
            f"{pinned.context.file.name} goes there as it is, and names places on this machine: {quoted(', '.join(listed))}"
        )
    return lines


def _texts(value: object) -> Iterator[str]:
    """All texts in plain data."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _texts(inner)
