"""The copy of an adapter whose B matrices carry what one alpha cannot say, as a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import base_files
from llamacpp_orchestrator.merge.records import File
from llamacpp_orchestrator.merge.records import Plan
from llamacpp_orchestrator.merge.records import Tensor
from llamacpp_orchestrator.merge.records import Update
from llamacpp_orchestrator.models.safetensors import read_json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def plan(adapter: Path, factors: Mapping[str, float]) -> Plan:
    """The plan of the copy: tensors times their factors as float32, all else as it is; its config names one scale for all."""
    weights = base_files.weight_file(adapter / WEIGHTS)
    tensors = [
        Tensor(name=name, dtype="F32", shape=tensor.shape, updates=(Update(kind="vector", scale=factors[name], tensor=tensor),))
        if name in factors
        else Tensor(name=name, dtype=tensor.dtype, shape=tensor.shape, base=tensor)
        for name, tensor in weights.tensors.items()
    ]
    # Wide types first, so that every tensor stays aligned; the order is otherwise kept.
    tensors.sort(key=lambda tensor: -adapter_parts.WIDTHS.get(tensor.dtype, 1))
    config = read_json(adapter / CONFIG) | {"use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}
    return Plan(
        files=(File(path=WEIGHTS, tensors=tuple(tensors), metadata=weights.metadata),),
        texts={CONFIG: json.dumps(config, indent=2, sort_keys=True)},
        copies={path.name: str(path) for path in sorted(adapter.iterdir()) if path.name not in (WEIGHTS, CONFIG)},
    )
