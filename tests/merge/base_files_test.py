"""The files of a base, and bases that have none to merge into."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.merge import base_files
from tests.support.merging import TIED
from tests.support.merging import make_base
from tests.support.merging import save


def test_a_base_is_read_with_all_its_files(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", TIED, text_config={"hidden_size": 9})
    save(base / "model-2.safetensors", {"lm_head.weight": (16, 8)}, "F16", {"format": "pt", "by": "me"})
    save(base / "adapter_model.safetensors", {"x": (1,)})
    found = base_files.read(base, "base")
    assert list(found.files) == ["model-2.safetensors", "model.safetensors"] and found.text["hidden_size"] == 9
    assert found.files["model-2.safetensors"].metadata == {"format": "pt", "by": "me"}
    assert found.tensors["lm_head.weight"].dtype == "F16" and len(found.tensors) == len(TIED) + 1


def test_a_base_without_safetensors_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2])
    with pytest.raises(IntegrityError, match="model.safetensors is cut"):
        base_files.read(base, "base")
    weights.unlink()
    with pytest.raises(OrchestrateError, match="base has no weights"):
        base_files.read(base, "base")
    (base / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(OrchestrateError, match="only as pickles") as refused:
        base_files.read(base, "base")
    assert "save_pretrained" in refused.value.hint
