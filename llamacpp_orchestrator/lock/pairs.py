"""Adapters and bases of a job that lie in folders of the user's own: whether they belong together."""

from __future__ import annotations

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.lock import local_folders
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.merge import check as merge_check
from llamacpp_orchestrator.merge.records import Adapter
from llamacpp_orchestrator.models import adapter


def check(context: Context) -> None:
    """Refuse adapters that do not belong to their base, as far as the folders at hand tell."""
    places = local_folders.local_folders(context)
    for model in context.job.models:
        base = places.get(records.base_wanted(model))
        need = records.model_need(model)
        merged = [(part, places.get(part.wanted), weight) for part, weight in need.merged]
        adapters = [Adapter(name=part.name, folder=folder, weight=weight) for part, folder, weight in merged if folder]
        if base and adapters and len(adapters) == len(merged):
            merge_check.check(base, need.parts[0].name, adapters)
        for lora in model.loras if not merged else ():
            mine = places.get(records.lora_wanted(lora))
            if base and mine:
                adapter.check(mine, base, lora.name, model.name)
