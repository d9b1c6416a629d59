"""What a source can explain of zeros in tensors that cannot be compared one by one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from llamacpp_orchestrator.inside import tensor_map

HALVES = struct.pack("<4f", 0, 1, 0, 2)


@pytest.mark.parametrize(
    ("dtype", "content", "to", "spare"),
    [
        ("F32", HALVES, "", 2),
        ("F32", HALVES, "compared", 0),
        ("F16", bytes(8), "compared", 4),
        ("F8_E4M3", b"\x00\x80\x01\x02", "unknown", 2),
        ("I32", HALVES, "", -1),
        ("I64", HALVES, "", 0),
    ],
)
def test_zeros_that_a_source_has_besides(dtype: str, content: bytes, to: str, spare: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    question = {"names": ["compared", "unknown"], "source": {"x": [str(tmp_path / "x"), 0, len(content), dtype]}}
    assert tensor_map.spare(question, {"x": to}, {"unknown": [4, -1]}) == spare
    assert tensor_map.spare(question, {"x": to}, {"unknown": [4, 4]}) == 0
