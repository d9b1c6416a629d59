"""What is made of adapters before anything is converted: a scaled copy of one, or the model that comes out of a merge."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.convert import preflight as convert_preflight
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.environment import reference
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.lock.records import model_need
from llamacpp_orchestrator.merge import plan as merge_plan
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.merge.records import Plan
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.models.adapter_scaling import Scales
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline import memory
from llamacpp_orchestrator.pipeline import preflight
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.pipeline.job_run import JobRun
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.system.interpreter import ask
from llamacpp_orchestrator.system.scheduler import Outcome
from llamacpp_orchestrator.system.scheduler import Outcomes
from llamacpp_orchestrator.system.scheduler import Tell
from llamacpp_orchestrator.util import disk

FACTORS = "factors.json"


class Summed(msgspec.Struct, frozen=True):
    """What a merge has done: weights that an update reaches, and those of them whose stored bits are others now."""

    updated: int
    changed: int


def check_adapter(pinned: PinnedJob, build: Build) -> Scales:
    """Check an output's adapter; its scales with notes on it, OrchestrateError when it cannot be converted."""
    if not build.output.lora:
        return Scales()
    base, mine = map(pinned.view, build.needs)
    script = pinned.tree / SCRIPTS["adapter"]
    return adapter.check(mine, base, build.output.lora.name, build.output.model.name, script)


def command(pinned: PinnedJob, build: Build, scales: Scales) -> Command:
    """The command that is really run: a scaled adapter is a copy, of the same name, in another place."""
    if not scales.factors:
        return build.command
    view, copy = map(str, _places(pinned, build, scales))
    return msgspec.structs.replace(build.command, argv=tuple(copy if word == view else word for word in build.command.argv))


def stage(pinned: PinnedJob, build: Build, scales: Scales, run: Callable[[Command], None]) -> None:
    """Make the scaled copy of an output's adapter if it needs one that is not there; `run` runs a script of the environment."""
    if not scales.factors:
        return
    view, copy = _places(pinned, build, scales)

    def make(entry: Path) -> None:
        # In a file, for the names of some thousand tensors are longer than a command line may be.
        (entry / FACTORS).write_text(json.dumps(scales.factors, sort_keys=True), encoding="utf-8")
        origin = converter_view.folder(pinned, view)
        argv = (str(pinned.python), str(inside.path("scale_adapter")), str(origin), str(copy))
        call = Command(argv, cwd=str(entry), env=pinned.script_env)
        run(sandbox.around(call, limits.limits(pinned.context.settings), write=(entry,)))

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
    pin = pinned.files(wanted)
    view = pinned.view(build.needs[1])
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
    dest, base = pinned.merged(need), need.parts[0]
    status = "current" if pinned.store.has("merged", dest.parent.name) else "done"

    def make(entry: Path) -> dict[str, str]:
        plan = merge_plan.plan(pinned.view(base), base.wanted.source, adapters(pinned, need))
        dest.mkdir()
        for name, text in plan.texts.items():
            place(name).write_text(text, encoding="utf-8", newline="\n")
        for name, origin in plan.copies.items():
            shutil.copyfile(origin, place(name))
        if plan.by_peft:
            memory.check_peft(pinned, need, plan.by_peft)
            summed = _by_peft(pinned, need, entry, log, tell)
        else:
            summed = _by_plan(pinned, need, plan, entry, log)
        for path in dest.rglob("*.safetensors"):
            safetensors.check_safetensors(path)
            disk.flush(path)
        return {f"note {number}": note for number, note in enumerate((*plan.notes, *_lost(summed)))}

    def place(name: str) -> Path:
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        return dest / name

    pinned.store.ensure("merged", dest.parent.name, make, about=f"{need.name}, merged for {pinned.tag}")
    for model in pinned.context.job.models:
        if model_need(model) == need:
            convert_preflight.check_model(preflight.subject(pinned, model, dest))
    return status


def _by_plan(pinned: PinnedJob, need: Ingredient, plan: Plan, entry: Path, log: Path) -> Summed:
    question = {"files": msgspec.to_builtins(plan.files), "dest": str(entry / need.name)}
    return _asked(pinned, pinned.python, need, "merge_weights", question, entry, log)


def _by_peft(pinned: PinnedJob, need: Ingredient, entry: Path, log: Path, tell: Tell) -> Summed:
    """Let PEFT merge what the plan has no rule for, in the environment that has it, which is built only then."""
    pin = pinned.lock.reference
    if pin is None:  # what its config did not tell, such as a convolution
        message = f"an adapter of {need.name} can be merged by PEFT alone, and the lock has no environment with PEFT"
        raise OrchestrateError(message, "set `verify: logits` at that model: then the lock has one")
    setup.build_environment(pinned.context, pin, reference.TITLE, log.with_stem(f"{log.stem}-environment"), tell)
    folders = [{"folder": str(adapter.folder), "weight": adapter.weight} for adapter in adapters(pinned, need)]
    question = {"base": str(pinned.view(need.parts[0])), "adapters": folders, "dest": str(entry / need.name)}
    return _asked(pinned, pinned.python_of(pin), need, "merge_by_peft", question, entry, log)


def _asked(
    pinned: PinnedJob, python: Path, need: Ingredient, script: str, question: dict[str, Any], entry: Path, log: Path
) -> Summed:
    most = limits.limits(pinned.context.settings)
    interpreter = Interpreter(
        python=str(python), run=warm_worker.run_alone, env=pinned.script_env, limits=most, scratch=entry, log=log
    )
    seen = [file for part in need.parts for file in (pinned.view(part), *pinned.view(part).rglob("*"))]
    try:
        return ask(interpreter, script, question, Summed, seen)
    except CommandFailed as error:
        why = re.search(rf"^{script}: (.+)", error.tail, re.MULTILINE)
        if why is None:
            raise
        message = f"nothing can be merged into {need.parts[0].name}: {why[1]}"
        raise error.retold(
            message, "is that file damaged, or is the adapter another's? get it again, or train it anew"
        ) from error


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
