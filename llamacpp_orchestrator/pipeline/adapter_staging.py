"""The check of an output's adapter once its files are here, and the scaled copy that is converted in its stead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.models.adapter_scaling import Scales
from llamacpp_orchestrator.pipeline import converter_view
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.source.tree import SCRIPTS
from llamacpp_orchestrator.system import limits
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command

FACTORS = "factors.json"


def check_adapter(pinned: PinnedJob, build: Build) -> Scales:
    """Check an output's adapter; its scales with notes on it, OrchestrateError when it cannot be converted."""
    if not build.output.lora:
        return Scales()
    base, mine = (pinned.view(wanted, name) for wanted, name in build.needs)
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
    wanted, name = build.needs[1]
    pin = pinned.files(wanted)
    view = pinned.view(wanted, name)
    files = sorted((file.path, file.sha256 or file.oid) for file in pin.files)
    translated = sorted(converter_view.of(pinned, view).files.items())
    key = msgspec.json.encode([adapter_scaling.RULE, name, files, sorted(scales.factors.items()), *translated])
    return view, pinned.store.entry("views", hashlib.sha256(key).hexdigest()[:32]) / name
