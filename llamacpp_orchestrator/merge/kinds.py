"""Which adapters the plan can merge, which PEFT has to merge itself, and which nobody can: by their configs alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge.adapter_parts import Parts
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models import adapter_scaling

PLANNED = ("LORA", "TRAINABLE_TOKENS")
TOKEN_KEYS = ("token_indices", "init_weights")  # of the second, beside keys that LoRA has as well
# Variants of LoRA whose two matrices do not simply multiply; the plan knows all others of the table in models/adapter.py.
VARIANTS = ("use_qalora", "use_bdlora", "kasa_config")
# What the name of a quantized copy has after that of its original.
COPY_OF = re.compile(
    r"(?i)[-_.](?:bnb|bitsandbytes|fp8|nvfp4|mxfp4|nf4|[348]-?bits?|int[348]|w\d+a\d+|gptq|awq|hqq|aqlm|autoround)(?![A-Za-z0-9])"
)
PICKLED = (
    "convert it to safetensors first: transformers' from_pretrained(...) and save_pretrained(FOLDER) do that, if you trust the"
    " pickle; then name FOLDER as the source"
)


def refuse(parts: Parts) -> None:
    """Raise OrchestrateError for an adapter that acts in a way that no weights can express."""
    config, name = parts.config, parts.adapter.name
    kind = adapter_parts.kind(config)
    reasons = [f"it is of the type {quoted(kind)}, which has nothing to merge"] if kind in adapter.UNMERGED else []
    reasons += [words for key, words, way in adapter.UNTRUE if way == adapter.ALONE and config.get(key)]
    if config.get("alora_invocation_tokens"):
        reasons.append("it is an activated LoRA, which acts only behind its invocation tokens (alora_invocation_tokens)")
    if reasons:
        message = f"the adapter {name} cannot be merged into its base: {'; '.join(reasons)}"
        raise OrchestrateError(message, "serve it with PEFT, or train it as plain LoRA")
    if str(config.get("init_lora_weights")).lower() == "loftq":
        message = f"the adapter {name} cannot be merged into its base as it is published: LoftQ changed the base"
        raise OrchestrateError(message, "name the base that was saved with it as the source")


def unplanned(parts: Parts) -> str:
    """Why PEFT must merge an adapter itself; "" where the plan says all that it does."""
    if reason := _unplanned(parts.config, parts.adapter.name):
        return reason
    deep = [module.name for module in parts.modules if len(module.a.shape) != 2 or len(module.b.shape) != 2]
    return f"the adapter {parts.adapter.name} changes the convolution {quoted(deep[0])}" if deep else ""


def needs_peft(config: Mapping[str, Any]) -> bool:
    """Tell whether PEFT may have to merge an adapter of such a config itself, whatever its tensors are."""
    return bool(_unplanned(config, "")) or "conv" in str(config.get("target_modules")).lower()


def _unplanned(config: Mapping[str, Any], name: str) -> str:
    if (kind := adapter_parts.kind(config)) not in PLANNED:
        return f"the adapter {name} is of the type {quoted(kind)}"
    variants = [key for key in VARIANTS if config.get(key)]
    strange = [key for key in adapter.unknown(config) if kind == "LORA" or key not in TOKEN_KEYS]
    names = [*variants, *strange]
    return f"the adapter {name} sets {', '.join(map(quoted, names[:5]))}" if names else ""


def notes(parts: Parts, config: Mapping[str, Any], base_name: str) -> tuple[str, ...]:
    """Notes on an adapter beside its base, whose config is given."""
    lines = adapter.quantized(parts.config, config, base_name)
    if parts.modules and adapter_scaling.ambiguous(
        adapter_scaling.read(parts.config, parts.adapter.name), (module.name for module in parts.modules)
    ):
        lines = (*lines, f"the adapter {parts.adapter.name}: {adapter_scaling.AMBIGUOUS}")
    return lines


def changes_base(config: Mapping[str, Any]) -> bool:
    """Tell whether an adapter fits what was left of its base when its first matrices had been taken out of it."""
    return bool(adapter.CHANGED_BASE.match(str(config.get("init_lora_weights"))))


def check_base(config: Mapping[str, Any], name: str, trained_on: str) -> None:
    """Raise OrchestrateError for a base whose weights are quantized: a sum cannot be written into them."""
    how = config.get("quantization_config") or config.get("compression_config")
    if not how:
        return
    method = how.get("quant_method") if isinstance(how, dict) else ""
    names = [cut for text in (name, trained_on) if (cut := original(text)) not in ("", name)]
    where = "name its unquantized original as the source" + (f" ({quoted(names[0])}?)" if names else "")
    raise OrchestrateError(
        f"{name} is quantized ({quoted(method or 'quantization_config')}), and a merge needs its numbers as they were", where
    )


def original(name: str) -> str:
    """The name of the model that a quantized copy was made of, as far as the copy's name tells; else the name itself."""
    match = COPY_OF.search(name)
    return name[: match.start()] if match else name


def initial(parts: Parts) -> Parts | None:
    """The adapter as it was before training, where only what has changed since then is its update; None for all others.

    PEFT's documents keep it in a folder inside the adapter's, with an `init_lora_weights` of its own that changes no base.
    Raises OrchestrateError where it is needed, and not there or not the only one.
    """
    if not changes_base(parts.config):
        return None
    name, folder = parts.adapter.name, parts.adapter.folder
    start = f"the adapter {name} was started with {quoted(parts.config['init_lora_weights'])}, which changes the base"
    folders = sorted(
        path.parent for path in folder.glob("*/adapter_config.json") if (path.parent / "adapter_model.safetensors").is_file()
    )
    every = [adapter_parts.read(msgspec.structs.replace(parts.adapter, folder=path)) for path in folders]
    first = [other for other in every if not changes_base(other.config)]
    if len(first) != 1:
        lack = "more than one folder in it may hold its initial adapter" if first else "no folder in it holds its initial adapter"
        raise OrchestrateError(f"{start}, and was not converted when it was saved; {lack}", adapter.INITIAL)
    if parts.config.get("use_dora"):
        raise OrchestrateError(f"{start}, and trains magnitudes (DoRA) of what was left of it", adapter.INITIAL)
    places = {(module.name, module.depth): (module.a.shape, module.b.shape) for module in parts.modules}
    if places != {(module.name, module.depth): (module.a.shape, module.b.shape) for module in first[0].modules}:
        raise OrchestrateError(f"{start}; {quoted(first[0].adapter.folder.name)} is the start of another", adapter.INITIAL)
    return msgspec.structs.replace(parts, modules=first[0].modules, wholes={}, tokens={})
