"""What can be told of a merge before the base's weights are here: by configs, the index, and the adapters' own headers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import base_files
from llamacpp_orchestrator.merge import kinds
from llamacpp_orchestrator.merge import names
from llamacpp_orchestrator.merge.adapter_parts import Parts
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models.safetensors import read_json
from llamacpp_orchestrator.models.weight_files import INDEX


def check(base: Path, base_name: str, adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Notes on adapters that may be merged into the base whose small files lie in a folder.

    Raises OrchestrateError for what is wrong by these files: kinds that cannot be merged, another base, damaged adapters.
    """
    config = read_json(base / "config.json")
    every = [adapter_parts.read(one) for one in adapters]
    notes: list[str] = []
    for parts in every:
        kinds.refuse(parts)
        kinds.check_base(config, base_name, str(parts.config.get("base_model_name_or_path") or ""))
        notes += kinds.notes(parts, config, base_name)
        if reason := kinds.unplanned(parts):
            notes.append(f"{reason}: PEFT merges it itself, with the whole model in memory in float32")
        elif not parts.config.get("layer_replication"):
            _check_shapes(parts, base, base_name)
        kinds.initial(parts)
    return tuple(notes)


def _check_shapes(parts: Parts, base: Path, base_name: str) -> None:
    config = read_json(base / "config.json")
    form = {False: "lora_{}.weight", True: "lora_embedding_{}"}
    pairs = {
        f"{module.name}.{form[module.is_embedding].format(end)}": matrix.shape
        for module in parts.modules
        if not module.name.endswith(".experts")
        for end, matrix in (("A", module.a), ("B", module.b))
    }
    reason = adapter.mismatch(pairs, config) or ("" if parts.wholes else adapter.vocabulary(pairs, config))
    if (base / INDEX).is_file() and not reason:
        named = read_json(base / INDEX).get("weight_map")
        index = names.index(named if isinstance(named, dict) else ())
        parameters = parts.config.get("target_parameters")
        strays = [module.name for module in parts.modules if not parameters and not names.find(index, f"{module.name}.weight")]
        strays = [name for name in strays if not name.endswith("lm_head")]
        reason = f"it changes {strays[0]}, and the base has no such module" if strays and index else ""
    if reason:
        raise base_files.misfit(parts.adapter.name, parts.config, base_name, reason)
