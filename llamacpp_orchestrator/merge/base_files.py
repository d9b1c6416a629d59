"""The base of a merge: its config, and the tensors of its safetensors files by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.merge import adapter_parts
from llamacpp_orchestrator.merge import kinds
from llamacpp_orchestrator.merge import names
from llamacpp_orchestrator.merge.records import Stored
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models.safetensors import read_json
from llamacpp_orchestrator.models.safetensors import safetensors_header
from llamacpp_orchestrator.models.weight_files import ADAPTER_WEIGHTS
from llamacpp_orchestrator.models.weight_files import ASIDE
from llamacpp_orchestrator.models.weight_files import PICKLES


class WeightFile(msgspec.Struct, frozen=True, kw_only=True):
    """One safetensors file: its tensors in the order of their bytes, and its metadata."""

    tensors: dict[str, Stored]
    metadata: dict[str, str] = {}


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base with its files read: `tensors` are those of all files, `index` finds them by an adapter's names."""

    folder: Path
    name: str
    config: dict[str, Any]
    files: dict[str, WeightFile]
    tensors: dict[str, Stored]
    index: Mapping[tuple[str, ...], tuple[str, ...]]

    @property
    def text(self) -> Mapping[str, Any]:
        """The config of the text model: the nested one where there is one."""
        return adapter.text_config(self.config)


def read(folder: Path, name: str) -> Base:
    """The base in a folder; OrchestrateError where it has no safetensors, or files that are not whole."""
    paths = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in (ADAPTER_WEIGHTS, *ASIDE)]
    if not paths:
        pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
        if pickles:
            raise OrchestrateError(
                f"{name} has its weights only as pickles ({pickles[0]}): a merge reads safetensors", kinds.PICKLED
            )
        raise OrchestrateError(f"{name} has no weights (model*.safetensors)", "get all of its files")
    files = {path.name: weight_file(path) for path in paths}
    tensors = {key: tensor for file in files.values() for key, tensor in file.tensors.items()}
    return Base(
        folder=folder,
        name=name,
        config=read_json(folder / "config.json"),
        files=files,
        tensors=tensors,
        index=names.index(tensors),
    )


def weight_file(path: Path) -> WeightFile:
    """What the header of a safetensors file says, its metadata as texts; IntegrityError for a file that is not whole."""
    entries = safetensors_header(path).get("__metadata__")
    metadata = {str(key): str(value) for key, value in entries.items()} if isinstance(entries, dict) else {}
    return WeightFile(tensors=adapter_parts.stored_tensors(path), metadata=metadata)


def misfit(name: str, config: Mapping[str, Any], base_name: str, why: str) -> OrchestrateError:
    """The error for an adapter of a name, with its config, that was trained on another base."""
    trained_on = quoted(config.get("base_model_name_or_path") or "no base")
    return OrchestrateError(
        f"the adapter {name} does not fit {base_name}: {why}",
        f"merge it into its own base; adapter_config.json names {trained_on}",
    )
