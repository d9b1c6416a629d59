"""The steps of a run: they bring here what the lock names, and make the outputs of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from llamacpp_orchestrator import build as building
from llamacpp_orchestrator import environment
from llamacpp_orchestrator import hub
from llamacpp_orchestrator import lock as locks
from llamacpp_orchestrator import outputs
from llamacpp_orchestrator import pins
from llamacpp_orchestrator import preflight
from llamacpp_orchestrator import releases
from llamacpp_orchestrator.build import Build
from llamacpp_orchestrator.lock import Lock
from llamacpp_orchestrator.lock import Wanted
from llamacpp_orchestrator.outputs import Bench
from llamacpp_orchestrator.pins import Work
from llamacpp_orchestrator.spec import Output
from llamacpp_orchestrator.steps import Action
from llamacpp_orchestrator.steps import Step
from llamacpp_orchestrator.steps import Tell
from llamacpp_orchestrator.store import MARK
from llamacpp_orchestrator.store import folder_sha256
from llamacpp_orchestrator.store import write_atomically

CONTENT_MARK = "content.sha256"
MARKS = (CONTENT_MARK, MARK)
# What every tag's scripts have taken since b3878: with these and without options, downloads need not wait for the tree.
ALWAYS = {"model": {"f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"}, "adapter": {"f32", "f16", "bf16", "q8_0", "auto"}}


def source_action(work: Work, lock: Lock) -> Action:
    """Get the locked converter tree, and see that it has the types and options that the job asks for."""

    def action(tell: Tell) -> str:
        before = work.store.has("source", lock.llama_cpp.key())
        preflight.check_job(work.job, work.file.name, pins.get_tree(work, lock.llama_cpp, tell))
        return "current" if before else "done"

    return action


def environment_action(work: Work, lock: Lock, log: Path) -> Action:
    """Build the locked environment, or probe the user's own."""

    def action(tell: Tell) -> str:
        if lock.environment is None:
            environment.own(work.folder(str(work.job.environment.path)), work.file)
            return "current"
        pin = lock.environment.pin()
        before = work.store.has("environments", pin.digest())

        def make(dest: Path) -> None:
            if work.settings.index.index_urls:  # none: out of a bundle, with all wheels at hand
                work.online("the Python environment")
            environment.build(pin, work.job.environment.torch, work.settings, dest, log, tell)

        work.store.ensure(
            "environments",
            pin.digest(),
            make,
            environment.unhealthy,
        )
        return "current" if before else "done"

    return action


def binaries_action(work: Work, lock: Lock) -> Action:
    """Fetch and unpack the release archive that fits this machine, and see that its programs start."""

    def action(tell: Tell) -> str:
        choice = pins.choose(work, lock.assets)
        key = binaries_key(choice)
        before = work.store.has("binaries", key)
        tell(f"note: {choice.archive.name}: {choice.reason}")

        def make(dest: Path) -> None:
            if not releases.here(choice, work.store.folder("downloads")):
                work.online(choice.archive.name)
            releases.install(choice, dest, work.store.folder("downloads"), work.settings, tell)
            write_atomically(dest / CONTENT_MARK, folder_sha256(dest))

        path = work.store.ensure("binaries", key, make)
        releases.probe(path, pins.this_host())
        return "current" if before else "done"

    return action


def binaries_key(choice: releases.Choice) -> str:
    """The store key of an installed choice: a digest over its archives."""
    parts = [
        choice.archive.sha256 or choice.archive.name,
        (choice.runtime.sha256 or choice.runtime.name) if choice.runtime else "",
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def altered_binaries(work: Work, lock: Lock) -> list[str]:
    """Whether the installed programs are still what their archives held, whose digests were checked."""
    folder = work.store.entry("binaries", binaries_key(pins.choose(work, lock.assets)))
    mark = folder / CONTENT_MARK
    if not mark.is_file() or mark.read_text(encoding="utf-8") == folder_sha256(folder, lambda name: name not in MARKS):
        return []
    return [f"the release's programs in {folder} were changed after they were unpacked"]


def tool(work: Work, lock: Lock, name: str) -> Path:
    """An installed program of the release, by name."""
    return releases.find_tool(
        work.store.entry("binaries", binaries_key(pins.choose(work, lock.assets))), name, pins.this_host().system
    )


def fetch_action(work: Work, lock: Lock, wanted: Wanted, name: str) -> Action:
    """Bring the files of a model or adapter here, examine them, and make the view that a converter is shown."""

    def action(tell: Tell) -> str:
        pin = lock.files(wanted)
        view = building.view(work, pin, name)
        sizes = {file.path: file.size for file in pin.files}

        def unhealthy(entry: Path) -> str:
            whole = all(
                (entry / name / path).is_file() and (entry / name / path).stat().st_size == size for path, size in sizes.items()
            )
            return "" if whole else "files behind the view have gone"

        before = view.exists() and not unhealthy(view.parent)
        if before:
            _check(work, lock, wanted, view, tell)

        def show(entry: Path) -> None:
            def look(folder: Path, files: tuple[hub.HubFile, ...]) -> None:
                # The view grows as files arrive; what is in it is all that this tag will see of the model.
                hub.make_view((file for file in files if not (entry / name / file.path).exists()), folder, entry / name)
                _check(work, lock, wanted, entry / name, tell)

            pins.origin(work, pin, tell, look)

        work.store.ensure("views", view.parent.name, show, unhealthy)
        return "current" if before else "done"

    return action


def _check(work: Work, lock: Lock, wanted: Wanted, view: Path, tell: Tell) -> None:
    for model in work.job.models if wanted.kind == "model" else ():
        if locks.base_wanted(model) == wanted:
            preflight.check_model(
                preflight.Subject(
                    tree=pins.get_tree(work, lock.llama_cpp, tell),
                    tag=lock.llama_cpp.tag,
                    folder=view,
                    source=wanted.source,
                    args=model.args,
                    weights=wanted.weights,
                    trees=work.store.folder("source"),
                )
            )


def verb(build: Build) -> str:
    """What is done to make an output, as its step is called."""
    return "quantize" if build.of else "convert"


def of_run(bench: Bench, stale: list[Build], ended: frozenset[str]) -> list[Step]:
    """All that must be done to make some outputs; a step in `ended` has been done while the job was resolved."""
    work, lock = bench.work, bench.lock
    made = [] if "source" in ended else [Step(name="source", action=source_action(work, lock))]
    made += [
        Step(
            name="environment",
            action=environment_action(work, lock, bench.log("environment")),
            log=bench.log("environment"),
        )
    ]
    quantizing = [build for build in stale if build.of]
    if quantizing:
        made.append(Step(name="binaries", action=binaries_action(work, lock)))
    here = {step.name for step in made} | {build.name for build in stale}
    names = locks.names(work.job)
    after = () if "source" in ended or _ordinary(stale) else ("source",)
    for (wanted, name), step in _fetched(stale, names).items():
        made.append(Step(name=step, action=fetch_action(work, lock, wanted, name), needs=after))
    for build in stale:
        log = bench.log(f"{verb(build)} {build.name}")
        if build.of:
            of = next((f"verify {other.name}" for other in stale if other.output == build.of), None)
            needs: Iterable[str] = ("binaries", *([of] if of else []))
            action = outputs.quantize_action(bench, build, functools.partial(tool, work, lock, "llama-quantize"))
        else:
            fetched = _fetched([build], names).values()
            needs = ("environment", *(["source"] if "source" in here else []), *fetched)
            action = outputs.convert_action(bench, build)
        step = f"{verb(build)} {build.name}"
        made.append(Step(name=step, action=action, needs=tuple(needs), heavy=True, log=log))
        made.append(Step(name=f"verify {build.name}", action=outputs.verify_action(bench, build), needs=(step,), log=log))
    return made


def _fetched(stale: list[Build], names: dict[Wanted, str]) -> dict[tuple[Wanted, str], str]:
    pairs = dict.fromkeys(need for build in stale for need in build.needs)
    first = dict(reversed(pairs))
    return {(wanted, name): f"fetch {names[wanted]}" + ("" if first[wanted] == name else f" as {name}") for wanted, name in pairs}


def _ordinary(stale: list[Build]) -> bool:
    def usual(output: Output) -> bool:
        return output.type in ALWAYS[output.kind] and not (output.lora or output.model).args

    return all(usual(build.output) for build in stale if not build.of)
