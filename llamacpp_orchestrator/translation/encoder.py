"""The files of sentence-transformers as older readers know them: how tokens are pooled, and which module does it."""

from __future__ import annotations

from llamacpp_orchestrator.translation import Json
from llamacpp_orchestrator.translation import Read
from llamacpp_orchestrator.translation import Reader
from llamacpp_orchestrator.translation import Rule

MODULES, POOLING = "modules.json", "sentence_transformers.models.Pooling"
OLDER = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}
KEYS = (*OLDER.values(), "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")


def pooling(read: Read, reader: Reader) -> Json:
    """The module's older path, and a flag for each way of pooling instead of one name."""
    modules = read(MODULES)
    if "pooling_mode" in reader.knows or not isinstance(modules, list):
        return {}
    files: Json = {}
    for number, module in enumerate(modules):
        if isinstance(module, dict) and str(module.get("type")).endswith(".Pooling"):
            name = f"{module.get('path')}/config.json"
            config = read(name)
            mode = config.get("pooling_mode") if isinstance(config, dict) else None
            if isinstance(mode, str) and config.keys().isdisjoint(KEYS):
                files[name] = {**config, **{key: key == OLDER.get(mode) for key in KEYS}}
            if module["type"] != POOLING:
                files[MODULES] = [*modules[:number], {**module, "type": POOLING}, *modules[number + 1 :]]
    return files


RULES = (
    Rule(
        name="how tokens are pooled by its older names",
        since="sentence-transformers 5.4",
        source="llama.cpp b3878, BertModel.set_gguf_parameters",
        apply=pooling,
    ),
)
