"""What is made of adapters before anything is converted: a scaled copy of one, or the model that comes out of a merge."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from typing import TypeVar

import msgspec

from llamacpp_orchestrator.convert import preflight as convert_preflight
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.lock.records import model_need
from llamacpp_orchestrator.merge import plan as merge_plan
from llamacpp_orchestrator.merge import scaled
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.merge.records import Plan
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.models import view as models_view
from llamacpp_orchestrator.models.adapter_scaling import Scales
from llamacpp_orchestrator.models.selection import HubFile
from llamacpp_orchestrator.models.weight_files import INDEX
from llamacpp_orchestrator.models.weight_files import PICKLE_INDEX
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline import memory
from llamacpp_orchestrator.pipeline import preflight
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.system.interpreter import ask
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util import disk
from llamacpp_orchestrator.util.store import remove

T = TypeVar("T")
SAFE = ".safetensors"  # beside what is merged, while it is made


class Staging(msgspec.Struct, frozen=True):
    """A folder of the cache that is being filled: for which job, out of which views, and where its log is."""

    pinned: PinnedJob
    entry: Path
    log: Path
    views: tuple[Path, ...]
    tell: Tell


class Summed(msgspec.Struct, frozen=True):
    """What a merge has done: weights that an update reaches, and those of them whose stored bits are others now."""

    updated: int
    changed: int


def check_adapter(pinned: PinnedJob, build: Build) -> Scales:
    """Check an output's adapter; its scales with notes on it, OrchestrateError when it cannot be converted."""
    if not build.output.lora:
        return Scales()
    base, mine = build.views
    script = pinned.tree / SCRIPTS["adapter"]
    return adapter.check(mine, base, build.output.lora.name, build.output.model.name, script)


def command(pinned: PinnedJob, build: Build, scales: Scales) -> Command:
    """The command that is really run: a scaled adapter is a copy, of the same name, in another place."""
    if not scales.factors:
        return build.command
    view, copy = map(str, _places(pinned, build, scales))
    return msgspec.structs.replace(build.command, argv=tuple(copy if word == view else word for word in build.command.argv))


def stage(pinned: PinnedJob, build: Build, scales: Scales, log: Path, tell: Tell) -> None:
    """Make the scaled copy of an output's adapter if it needs one that is not there."""
    if not scales.factors:
        return
    view, copy = _places(pinned, build, scales)

    def make(entry: Path) -> None:
        origin = converter_view.folder(pinned, view)
        plan = scaled.plan(origin, scales.factors)
        _lay(plan, copy)
        _by_plan(Staging(pinned, entry, log, (origin, view), tell), plan, copy, f"{view.name} cannot be scaled")

    pinned.store.ensure("views", copy.parent.name, make, lambda _: unhealthy(view, copy), about=f"{view.name}, rescaled")


def unhealthy(view: Path, copy: Path) -> str:
    """The reason why a scaled copy must be made anew; "" is good."""
    missing = [path.name for path in view.iterdir() if not (copy / path.name).is_file()]
    if missing:
        return f"it lacks {missing[0]}"
    try:
        safetensors.check_safetensors(copy / "adapter_model.safetensors")
    except OrchestrateError as error:
        return error.message
    return ""


def _places(pinned: PinnedJob, build: Build, scales: Scales) -> tuple[Path, Path]:
    """The view of an adapter, and its scaled copy: by content, so that the same inputs have the same copy."""
    wanted, name = build.needs[1].wanted, build.needs[1].name
    pin, view = pinned.files(wanted), build.views[1]
    files = sorted((file.path, file.sha256 or file.oid) for file in pin.files)
    translated = sorted(converter_view.of(pinned, view).files.items())
    key = msgspec.json.encode([adapter_scaling.RULE, name, files, sorted(scales.factors.items()), *translated])
    return view, pinned.store.entry("views", hashlib.sha256(key).hexdigest()[:32]) / name


def adapters(pinned: PinnedJob, need: Ingredient) -> tuple[Adapter, ...]:
    """The adapters that are merged into a model, where they are shown."""
    return tuple(Adapter(name=part.name, folder=pinned.view(part), weight=weight) for part, weight in need.merged)


def merge(run: JobRun, key: str, outcomes: Outcomes, tell: Tell) -> Outcome:
    """Merge adapters into a model, and see that the tag can take what comes out; "current" if it was there."""
    return Outcome(make_merged(run.pinned, run.merges[key], run.log(f"merge {key}"), tell))


def make_merged(pinned: PinnedJob, need: Ingredient, log: Path, tell: Tell) -> str:
    """Make the folder of a merged model where it is not there, whole and on the disk; "current" if it was."""
    dest, views = pinned.merged(need), tuple(map(pinned.view, need.parts))
    status = "current" if pinned.has_merged(need) else "done"

    def make(entry: Path) -> dict[str, str]:
        staging, what = Staging(pinned, entry, log, views, tell), f"nothing can be merged into {need.parts[0].name}"
        base = _safe(staging, what)
        plan = merge_plan.plan(base, need.wanted.source, adapters(pinned, need))
        _lay(plan, dest)
        if plan.by_peft:
            memory.check_peft(pinned, need, plan.by_peft)
            summed = _by_peft(staging, {"base": str(base), "dest": str(dest)}, adapters(pinned, need), what)
        else:
            summed = _by_plan(staging, plan, dest, what)
        for path in dest.rglob("*.safetensors"):
            safetensors.check_safetensors(path)
            disk.flush(path)
        remove(entry / SAFE)
        return {f"note {number}": note for number, note in enumerate((*plan.notes, *_lost(summed)))}

    pinned.store.ensure("merged", pinned.merged_key(need), make, about=f"{need.name}, merged for {pinned.tag}")
    for model in pinned.context.job.models:
        if model_need(model) == need:
            convert_preflight.check_model(preflight.subject(pinned, model, dest))
    return status


def _lay(plan: Plan, dest: Path) -> None:
    """Put the small files of a plan into a new folder."""
    dest.mkdir()
    for name in (*plan.texts, *plan.copies):
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in plan.texts.items():
        (dest / name).write_text(text, encoding="utf-8", newline="\n")
    for name, origin in plan.copies.items():
        shutil.copyfile(origin, dest / name)


def _safe(staging: Staging, what: str) -> Path:
    """The base as a merge reads it: its view, or where that has pickles alone (which its user trusts) the same as safetensors."""
    view = staging.views[0]
    pickles = sorted(str(path) for path in view.glob("pytorch_model*.bin"))
    if not pickles or any(view.glob("model*.safetensors")):
        return view
    copy, left_out = staging.entry / SAFE / view.name, {PICKLE_INDEX, *(Path(path).name for path in pickles)}
    names = [path.relative_to(view).as_posix() for path in sorted(view.rglob("*")) if path.is_file()]
    models_view.make_view((HubFile(path=name, size=0) for name in names if name not in left_out), view, copy)
    question = {"files": pickles, "dest": str(copy)}
    places = _asked(staging, staging.pinned.python, "pickled_weights", question, dict[str, str], what)
    if len(pickles) > 1:
        (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return copy


def _by_plan(staging: Staging, plan: Plan, dest: Path, what: str) -> Summed:
    question = {"files": msgspec.to_builtins(plan.files), "dest": str(dest)}
    return _asked(staging, staging.pinned.python, "merge_weights", question, Summed, what)


def _by_peft(staging: Staging, question: dict[str, Any], adapters: Iterable[Adapter], what: str) -> Summed:
    """Let PEFT merge what the plan has no rule for, in the environment that has it, which is built only then."""
    pinned, pin = staging.pinned, staging.pinned.lock.reference
    if pin is None:  # what its config did not tell, such as a convolution
        message = f"{what}: it is for PEFT itself to merge, and the lock has no environment with PEFT"
        raise OrchestrateError(message, "set `verify: logits` for that model: then the lock has one")
    log = staging.log.with_stem(f"{staging.log.stem}-environment")
    setup.build_environment(pinned.context, pin, reference.TITLE, log, staging.tell)
    question["adapters"] = [{"folder": str(adapter.folder), "weight": adapter.weight} for adapter in adapters]
    return _asked(staging, pinned.python_of(pin), "merge_by_peft", question, Summed, what)


def _asked(staging: Staging, python: Path, script: str, question: dict[str, Any], answer: type[T], what: str) -> T:
    most, env = limits.limits(staging.pinned.context.settings), staging.pinned.script_env
    interpreter = Interpreter(
        python=str(python),
        run=warm_worker.run_alone,
        env=env,
        limits=most,
        scratch=staging.entry,
        log=staging.log,
        tell=staging.tell,
    )
    try:
        return ask(interpreter, script, question, answer, [file for view in staging.views for file in (view, *view.rglob("*"))])
    except CommandFailed as error:
        why = re.search(rf"^{script}: (.+)", error.tail, re.MULTILINE)
        if why is None:
            raise
        way = "is that file damaged, or is the adapter another's? get it again, or train it anew"
        raise error.retold(f"{what}: {why[1]}", way) from error


def _lost(summed: Summed) -> tuple[str, ...]:
    """A note on an update that is too small for the type of the base: most of the weights are as they were."""
    if summed.changed * 2 >= summed.updated:
        return ()
    share = 100 * (1 - summed.changed / summed.updated)
    return (
        f"{share:.1f} % of the weights that the adapters reach have not changed: their updates are too small for the type of the"
        " base; a base that is saved in float32 keeps them",
    )


ACTIONS = {"merge": merge}
